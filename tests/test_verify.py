"""Token trees in the whole model: a verified node gets the logits of decoding its path, and a
commit leaves the pools that decoding would have left."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import NARROW, SPARSE
from tree_cases import make_tree

from minicpm_mlc.base.errors import ContextError
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.paged_cache import PagedCache

CONTEXT = 640


@pytest.fixture(scope="module")
def library(tiny_bundle) -> LocalLibrary:
    return LocalLibrary(read_bundle(tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE).path), threads=2)


@pytest.fixture(scope="module")
def ids(library) -> list[int]:
    return np.random.default_rng(0).integers(3, library.vocab_size, CONTEXT).tolist()


def cached(library: LocalLibrary, ids: list[int], attention: str) -> CachedModel:
    model = CachedModel(
        PagedCache(library, CONTEXT), CONTEXT, Gears.of(library.manifest, attention)
    )
    for _ in model.prefill(ids, 64):
        pass
    return model


def decoded(model: CachedModel, tokens: list[int]) -> np.ndarray:
    """Logits of tokens decoded one by one; the model is left as it was."""
    length = len(model)
    rows = [model.decode(token) for token in tokens]
    model.sequence.truncate(length)
    return np.stack(rows)


def pools_of(model: CachedModel) -> list[np.ndarray]:
    """What the sequence has in every pool: keys and values of its tokens, means of its finished
    segments.
    """
    length, table = len(model), model.sequence.page_table
    arrays = [np.from_dlpack(pool)[table] for pool in model.cache.pools.tensors]
    keys, values, means = (arrays[i : i + 2] for i in (0, 2, 4))  # of two layers
    kept = [np.concatenate(page, -1)[..., :length] for page in keys]
    kept += [np.concatenate(page, -2)[:, :length] for page in values]
    return kept + [np.concatenate(page, -2)[:, : length // 16] for page in means]


@pytest.fixture(scope="module")
def int8_library(tiny_bundle) -> LocalLibrary:
    bundle = read_bundle(tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path)
    if bundle.manifest.activations != "int8":
        pytest.skip("this processor has no int8 dot products")
    return LocalLibrary(bundle, threads=2)


CASES = [(base, attention) for base in (1, 62, 130) for attention in ("dense", "sparse")]
CASES += [
    (base, "auto") for base in (378, 383, 384, 500)
]  # across the shift of gears, at it, and behind it
TREES = [(1, False), (13, False), (24, True), (64, True)]  # nodes, deep


@pytest.mark.parametrize("base, attention", CASES)
@pytest.mark.parametrize("nodes, deep", TREES)
def test_a_verified_node_has_the_logits_of_decoding_its_path_bit_for_bit(
    library, ids, base, attention, nodes, deep
):
    model, tree = cached(library, ids[:base], attention), make_tree(base, nodes, 0, deep)
    logits, features = model.verify(ids[:nodes], tree.parents)
    assert logits.shape == (nodes, library.vocab_size) and features is None and len(model) == base
    for leaf in set(range(nodes)) - set(tree.parents):
        path = tree.paths[leaf]
        found = np.asarray(logits)[path]
        np.testing.assert_array_equal(found, decoded(model, [ids[node] for node in path]))


def check_commit(
    library: LocalLibrary, ids: list[int], base: int, attention: str, nodes: int, deep: bool
) -> None:
    """A committed path leaves the pools, and goes on to the logits, of decoding it."""
    model, tree = cached(library, ids[:base], attention), make_tree(base, nodes, 1, deep)
    path = max(tree.paths, key=len)
    model.verify(ids[:nodes], tree.parents)
    model.commit(path)
    other = cached(library, ids[:base], attention)
    for node in path:
        other.decode(ids[node])
    assert model.sequence.tokens == other.sequence.tokens
    for got, expected in zip(pools_of(model), pools_of(other), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(model.decode(5), other.decode(5))


@pytest.mark.parametrize("base, attention", CASES)
@pytest.mark.parametrize("nodes, deep", TREES)
def test_a_commit_leaves_the_pools_of_decoding_bit_for_bit(
    library, ids, base, attention, nodes, deep
):
    check_commit(library, ids, base, attention, nodes, deep)


@pytest.mark.parametrize(
    "base, attention", [(62, "dense"), (NARROW.dense_len - 4, "auto"), (500, "sparse")]
)
@pytest.mark.parametrize("nodes, deep", TREES)
def test_with_int8_activations_trees_and_decoding_agree_bit_for_bit(
    int8_library, ids, base, attention, nodes, deep
):
    model, tree = cached(int8_library, ids[:base], attention), make_tree(base, nodes, 2, deep)
    path = max(tree.paths, key=len)
    logits, _ = model.verify(ids[:nodes], tree.parents)
    found = np.asarray(logits)[path]
    np.testing.assert_array_equal(found, decoded(model, [ids[node] for node in path]))
    check_commit(int8_library, ids, base, attention, nodes, deep)


def test_a_tree_fits_the_context_or_is_refused_and_nothing_changes(library, ids):
    model = cached(library, ids[: CONTEXT - 3], "dense")
    model.verify([1, 2, 3], [-1, 0, 0])
    with pytest.raises(ContextError, match="641 tokens don't fit"):
        model.verify([1, 2, 3, 4], [-1, 0, 0, 1])
    assert len(model) == CONTEXT - 3


@pytest.mark.parametrize(
    "parents, message", [([-1, 1], "comes before"), ([-2], "comes before"), ([-1] * 65, "65 nodes")]
)
def test_trees_of_another_form_are_refused(library, ids, parents, message):
    model = cached(library, ids[:10], "dense")
    with pytest.raises(ValueError, match=message):
        model.verify([1] * len(parents), parents)


@pytest.mark.parametrize("nodes", [[], [1], [0, 2], [0, 1, 3], [1, 2]])
def test_only_a_path_of_the_tree_verified_last_is_committed(library, ids, nodes):
    model = cached(library, ids[:10], "dense")
    with pytest.raises(ValueError, match="call verify first"):
        model.commit([0])
    model.verify([1, 2, 3, 4], [-1, 0, 1, 0])
    with pytest.raises(ValueError, match="no path"):
        model.commit(nodes)
    model.decode(5)
    with pytest.raises(ValueError, match="call verify first"):
        model.commit([0])
    assert model.sequence.tokens == [*ids[:10], 5]
