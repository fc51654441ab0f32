"""EAGLE heads in a bundle: features, rows of the prompt and draft trees against the float64
definition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy_eagle
import pytest
from checkpoints import tiny_config, write_checkpoint, write_json
from draft_heads import EAGLE2, EAGLE3, write_draft
from engine_process import EngineProcess
from numpy_model import states
from op_cases import nmse
from tree_cases import make_tree

from minicpm_mlc import Engine
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.bundle.state import StateEntry
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.draft import open_draft
from minicpm_mlc.runtime_py.cached_model import CachedModel
from minicpm_mlc.runtime_py.draft_model import DraftModel, Proposed
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.speculative.expand import Guesses, expand
from minicpm_mlc.runtime_py.speculative.grown import draft_of

FRSPEC = [5, 300, 2, 17, *range(40, 90)]
HEADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "eagle3": (
        "MiniCPM4.1-8B",
        EAGLE3,
        {"vocab": 100, "feature_layers": (0, 1, 2), "num_kv_heads": 4},
    ),
    "eagle2-frspec": ("MiniCPM4.1-8B", EAGLE2, {"bias": True}),
    "eagle2-tied": ("MiniCPM4-0.5B", EAGLE2, {}),
}
SPARSE = SparseConfig(init_blocks=1, window_size=0, topk=2)  # 2 of 4 blocks, one of them by score
LENGTH = 200


@dataclass
class Case:
    """A bundle with a head, and the definition of both over one prompt."""

    path: Path
    base: ModelConfig
    config: DraftConfig
    weights: dict[str, np.ndarray]  # the base's
    draft: dict[str, np.ndarray]
    token_ids: np.ndarray
    _features: dict[bool, np.ndarray] = field(default_factory=dict)

    @property
    def head(self) -> np.ndarray:
        if self.config.kind == EAGLE3:
            return self.draft["lm_head.weight"]
        return self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])[
            self.token_ids
        ]

    def embedded(self, ids: list[int]) -> np.ndarray:
        return self.weights["model.embed_tokens.weight"][ids] * self.base.scale_emb

    @cached_property
    def ids(self) -> list[int]:
        """The prompt."""
        return np.random.default_rng(0).integers(3, self.base.vocab_size, LENGTH + 1).tolist()

    def features(self, length: int, sparse: bool = False) -> np.ndarray:
        """Of the prompt's first tokens; no row depends on those after it."""
        if sparse not in self._features:
            found = states(self.base, self.weights, self.ids, [sparse] * len(self.ids))
            self._features[sparse] = numpy_eagle.features(
                self.config, self.base, self.weights, found
            )
        return self._features[sparse][:length].copy()

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        scale = 1.0 if self.config.kind == EAGLE3 else self.base.logit_scale
        return (
            numpy_eagle.logits(self.config, self.draft, self.head, hidden)
            * scale
            / self.config.logit_scale
        )

    def log_probabilities(self, hidden: np.ndarray) -> np.ndarray:
        """Of each token of the head's vocabulary, [n, draft vocab]."""
        logits = self.logits(hidden)
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def check(self, proposed: Proposed, hidden: np.ndarray) -> None:
        """What the compiled head proposes after rows whose hidden states [n, H] these are."""
        assert np.abs(proposed.hidden - hidden).max() <= 1e-4
        expected = self.log_probabilities(hidden)
        best = -np.sort(-expected, axis=-1)[:, :16]
        assert proposed.tokens.shape == proposed.values.shape == best.shape
        assert np.abs(proposed.values - best).max() <= 1e-4
        places = np.argsort(self.token_ids)[
            np.searchsorted(np.sort(self.token_ids), proposed.tokens)
        ]
        assert (self.token_ids[places] == proposed.tokens).all()
        assert np.abs(np.take_along_axis(expected, places, 1) - best).max() <= 1e-4
        assert all(len(set(row)) == 16 for row in proposed.tokens.tolist())

    def rows(
        self, tokens: list[int], hidden: np.ndarray, positions: Any, sees: list[list[int]]
    ) -> np.ndarray:
        """The head's last rows: as many as `sees` has."""
        embedded = self.embedded(tokens)
        return numpy_eagle.layer(
            self.config, self.base, self.draft, embedded, hidden, np.array(positions), sees
        )


@pytest.fixture(scope="module", params=HEADS)
def case(request, tmp_path_factory) -> Case:
    family, kind, changes = HEADS[request.param]
    folder, base = (
        tmp_path_factory.mktemp("eagle"),
        tiny_config(family, sparse=SPARSE if kind == EAGLE3 else None),
    )
    weights = write_checkpoint(folder / "base", base, dtype="f32")
    draft = write_draft(folder / "head", base, kind, **changes)
    write_json(folder / "freq.json", FRSPEC)
    frspec = folder / "freq.json" if "frspec" in request.param else None
    options: dict[str, Any] = {
        "scheme": "f32",
        "attention": "auto" if base.sparse else "dense",
        "prefill_chunk": 64,
    }
    compile_model(
        folder / "base", folder / "bundle", draft=folder / "head", frspec=frspec, **options
    )
    head = open_draft(folder / "head", base, frspec)
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    return Case(
        folder / "bundle",
        base,
        head.config,
        wide,
        {k: v.astype(np.float64) for k, v in draft.items()},
        head.token_ids,
    )


@pytest.fixture(scope="module")
def library(case) -> LocalLibrary:
    return LocalLibrary(read_bundle(case.path), threads=2)


@pytest.fixture(scope="module")
def ids(case) -> list[int]:
    return case.ids


def opened(
    library: LocalLibrary, ids: list[int], window: int | None = None, attention: str = "dense"
) -> tuple[CachedModel, DraftModel, list[np.ndarray]]:
    """The base with ids cached, its head, and the features of each chunk."""
    model = CachedModel(PagedCache(library, 512), 512, Gears.of(library.manifest, attention))
    features = [model.features for _ in model.prefill(ids, 64)]
    assert all(part is not None for part in features)
    # pyright: ignore[reportReturnType]
    return model, DraftModel(model.cache, model.sequence, window), features


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_every_call_returns_the_features_of_all_its_rows(case, library, ids, attention):
    if attention == "sparse" and not case.base.sparse:
        pytest.skip("compiled without sparse attention")
    expected = case.features(LENGTH + 1, attention == "sparse")
    model, _, features = opened(library, ids[:180], attention=attention)
    assert np.abs(np.concatenate(features) - expected[:180]).max() <= 1e-4
    model.decode(ids[180])
    assert np.abs(model.features - expected[180]).max() <= 1e-4
    _, features = model.verify(ids[181:191], range(-1, 9))
    assert np.abs(features - expected[181:191]).max() <= 1e-4
    model.commit(range(4))
    assert np.abs(model.features - expected[181:185]).max() <= 1e-4
    assert [blocks.shape for blocks in model.selected] == (
        [(4, 2, 2)] * 2 if attention == "sparse" else []
    )


def test_the_heads_rows_equal_the_definition_in_any_portions(case, library, ids):
    hidden = numpy_eagle.entering(case.config, case.draft, case.features(LENGTH))
    expected = case.rows(
        ids[1:], hidden, range(LENGTH), [list(range(row + 1)) for row in range(LENGTH)]
    )
    _, draft, features = opened(library, ids[:-1])
    for portion in ([200], [37, 1, 162]):
        model = draft._sequence
        tokens, all_features = list(model.tokens), np.concatenate(features)
        draft.truncate(0)
        for end in np.cumsum(portion):
            model.tokens[:] = tokens[:end]
            read = all_features[end - portion[list(np.cumsum(portion)).index(end)] : end]
            case.check(draft.extend(ids[end], read), expected[[end - 1]])


@pytest.mark.parametrize("window", [None, 64])
def test_draft_trees_equal_the_definition(case, library, ids, window):
    base, tree = LENGTH - 10, make_tree(LENGTH - 10, 21, 0)
    first = 0 if window is None else (base - window) // 64 * 64
    _, draft, features = opened(library, ids[:base], window)
    root = draft.extend(ids[base], np.concatenate(features)).hidden[0]

    entered = numpy_eagle.entering(case.config, case.draft, case.features(base))
    tokens, positions = ids[1 : base + 1], list(range(base))
    (known,) = case.rows(tokens, entered, positions, [list(range(first, base))])
    assert np.abs(root - known).max() <= 1e-4
    # the tree's node 0 is the root, which extend has run; the others are stepped a depth at a time
    depths = [len(path) - 1 for path in tree.paths]
    order = sorted(range(1, 21), key=lambda node: (depths[node], node))
    number, states_of = {0: -1} | {node: i for i, node in enumerate(order)}, {0: root}
    inputs, expected = entered, {0: known}
    for depth in range(1, max(depths) + 1):
        nodes = [node for node in order if depths[node] == depth]
        parents = [tree.parents[node] for node in nodes]
        chosen = [ids[node] for node in nodes]
        proposed = draft.step(
            chosen, np.stack([states_of[p] for p in parents]), [number[p] for p in parents]
        )
        inputs = np.concatenate([inputs, [expected[p] for p in parents]])
        tokens, positions = tokens + chosen, positions + [base + depth - 1] * len(nodes)
        sees = [
            [*range(first, base), *(base + number[a] for a in tree.paths[node][1:])]
            for node in nodes
        ]
        rows = case.rows(tokens, inputs, positions, sees)
        expected |= dict(zip(nodes, rows, strict=True))
        states_of |= dict(zip(nodes, proposed.hidden, strict=True))
        case.check(proposed, rows)


class Walk:
    """A head that is asked a level at a time, as `expand` takes it."""

    def __init__(self, draft: DraftModel, hidden: np.ndarray) -> None:
        self.draft, self.hidden, self.first = draft, hidden, -1

    def step(self, token_ids: list[int], rows: list[int]) -> Guesses:
        parents = [self.first + row for row in rows]
        proposed = self.draft.step(token_ids, self.hidden[rows], parents)
        self.first = 0 if self.first < 0 else self.first + len(self.hidden)
        self.hidden = proposed.hidden
        return proposed.values, proposed.tokens


@pytest.mark.parametrize("window", [None, 64])
def test_a_tree_is_grown_as_beam_search_grows_it(case, library, ids, window):
    base = LENGTH - 10
    _, draft, features = opened(library, ids[:base], window)
    draft.extend(ids[base - 1], np.concatenate(features)[:-1])
    deeper = 0
    for rows, levels, width, floor in [
        (1, 1, 4, 0.0),
        (1, 5, 4, 0.0),
        (3, 9, 4, 1e-6),
        (1, 4, 16, 0.0),
        (20, 9, 1, 0.0),
        (2, 17, 4, 0.03),
    ]:
        read = np.concatenate(features)[-rows:]
        proposed = draft.extend(ids[base], read)
        after, walk = (proposed.values, proposed.tokens), Walk(draft, proposed.hidden)
        expected = expand(ids[base], after, walk.step, levels, width, floor)
        found = draft_of(ids[base], draft.grow(ids[base], read, levels, width, floor).tree, floor)
        assert found.tree.token_ids == expected.tree.token_ids
        assert found.tree.parents == expected.tree.parents
        np.testing.assert_allclose(found.reach, expected.reach, 1e-5)
        assert found.levels == expected.levels
        deeper = max(deeper, found.levels)
    assert deeper > 4


def test_features_that_were_never_given_hide_what_is_before_them(case, library, ids):
    """Of a sequence that grew without the head, it sees the page of the first row it is given; the
    rows before are blank.
    """
    base = 150
    _, draft, features = opened(library, ids[:base])
    proposed = draft.extend(ids[base], np.concatenate(features)[140:])
    read = case.features(base)
    read[:140] = 0
    entered = numpy_eagle.entering(case.config, case.draft, read)
    rows = case.rows(ids[1 : base + 1], entered, range(base), [list(range(128, base))])
    case.check(proposed, rows)


def test_the_engine_without_python_drafts_the_same_trees(case, ids):
    tree: dict[str, Any] = {"speculate": "eagle", "tree_size": 24, "draft_depth": 4}
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
    with EngineProcess(case.path, context=512) as native, Engine(case.path, context=512) as python:
        plain = native.tokens(ids[:60], speculate="off", **asked)
        with python.steps(ids[:60], **tree, **asked) as (steps, logits):
            for token in plain:
                assert token == int(np.asarray(logits).argmax())
                logits = steps.next(token)
        assert native.tokens(ids[:60], **tree, **asked) == plain
        found, wanted = native.stats()["speculation"], asdict(python.stats.speculation)
        assert found["rounds"] and found["nodes"]
        for name in ("rounds", "plain_steps", "nodes"):
            assert found[name] == pytest.approx(wanted[name], abs=1), name


def test_a_quantised_head_over_a_quantised_llama_stays_near_the_definition(tmp_path):
    base = tiny_config("MiniCPM5-1B", num_layers=4)
    weights = write_checkpoint(tmp_path / "base", base, dtype="f32")
    options: dict[str, Any] = {"scheme": "w4", "embedding_scheme": "f32", "draft_scheme": "w8"}
    compile_model(tmp_path / "base", tmp_path / "bundle", draft="random-eagle3:64", **options)
    library = LocalLibrary(read_bundle(tmp_path / "bundle"), threads=2)
    assert library.manifest.draft == {
        "kind": "eagle3",
        "scheme": "w8",
        "layers": 1,
        "features": 3 * 192,
        "feature_layers": [2, 2, 1],
        "hidden": 192,
        "vocab": 64,
        "top_k": 16,
        "state": [
            StateEntry("keys", (0,), (2, 128, 64), "float16"),
            StateEntry("values", (0,), (2, 64, 128), "float16"),
        ],
    }
    ids = np.random.default_rng(0).integers(3, base.vocab_size, 51).tolist()
    _, draft, (features,) = opened(library, ids[:50])
    proposed = draft.extend(ids[50], features)
    head = open_draft("random-eagle3:64", base)
    w = {name: head.weights.rows(name).astype(np.float64) for name in head.weights.names()}
    case = Case(
        tmp_path,
        base,
        head.config,
        weights,
        w | {"lm_head.weight": w["lm_head.weight"][:64]},
        head.token_ids,
    )
    entered = numpy_eagle.entering(head.config, w, features.astype(np.float64))
    rows = case.rows(ids[1:], entered, range(50), [list(range(50))])
    every = case.log_probabilities(rows)[0]
    expected = every[proposed.tokens[0]]
    assert nmse(proposed.values[0], expected) <= 2e-3
    assert expected.min() > np.sort(every)[-24]  # the best 16, give or take
