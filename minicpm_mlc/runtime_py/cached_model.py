"""A library's functions over one sequence of a paged cache: tokens go in, logits come out."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.runtime_py.device_rows import DeviceRows
from minicpm_mlc.runtime_py.gears import Gears
from minicpm_mlc.runtime_py.kv_cache import Sequence, common_prefix
from minicpm_mlc.runtime_py.outputs import Decoded, Row
from minicpm_mlc.runtime_py.paged_cache import PagedCache
from minicpm_mlc.runtime_py.token_tree import mask_words, tree_shape


@dataclass(frozen=True)
class VerifiedTree:
    """The tree of n nodes that was verified last, after `length` cached tokens.

    Node i lies at slot length + places[i]. `selected`: per layer the blocks that each node read,
    int32 [n, kv_heads, budget].
    """

    length: int
    token_ids: np.ndarray  # int [n]
    parents: np.ndarray  # int [n]
    places: np.ndarray  # int [n]
    selected: tuple[np.ndarray, ...]


class CachedModel:
    """Appends tokens to one sequence. A call that fails or is interrupted leaves the sequence as it
    was before; a recurrent one is then empty.

    `selected` is what the last decode read, if sparsely: per layer the blocks, int32 [kv_heads,
    budget]; after a commit, of each of its rows. `features` float32 [rows, F] are those of the last
    call's rows, where the bundle has a draft head.
    """

    def __init__(self, cache: PagedCache, context: int, gears: Gears) -> None:
        """An empty sequence on the pages of `cache`, of at most `context` tokens."""
        self.cache = cache
        self.sequence = Sequence(cache.pages, context, cache.library.manifest.recurrent)
        self.gears = gears
        self.selected: list[np.ndarray] = []
        self.features: np.ndarray | None = None
        self._tree: VerifiedTree | None = None
        self._library = cache.library
        self._pools = cache.pools

    def __len__(self) -> int:
        return len(self.sequence)

    def fork(self) -> CachedModel:
        """A second sequence that begins with this one's full pages, shared: neither writes into
        them. Raises ValueError where the model keeps state per sequence: there is room for one.
        """
        if self.sequence.recurrent:
            raise ValueError("the model keeps state per sequence: it can't be forked")
        other = CachedModel(self.cache, self.sequence.context, self.gears)
        other.sequence = self.sequence.fork()
        return other

    def free(self) -> None:
        """Forgets all tokens and gives the pages back to the cache."""
        self.sequence.truncate(0)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on; of a recurrent sequence, which can't go back, all.

        A shared page that the cut is in is copied, as nobody writes into it.
        """
        sequence = self.sequence
        length = min(length, len(self))
        cut = length // sequence.pool.page_size
        shared = int(sequence.page_table[cut]) if length < len(self) else -1
        first = sequence.tokens[cut * sequence.pool.page_size : length]
        if sequence.truncate(length) < length and first and not sequence.recurrent:
            self.copy(shared, first)

    def copy(self, page: int, token_ids: Ids[int]) -> None:
        """Appends tokens whose keys and values are the first of another page. The sequence must end
        at a page's end.
        """
        sequence = self.sequence
        size = sequence.pool.page_size
        sequence.reserve(len(token_ids))
        at = np.arange(len(token_ids), dtype=np.int32)
        table = np.array([sequence.page_table[-1], page], np.int32)
        self._library.commit(size + at, at, table, self._pools)
        self.cache.copy_drafted(page, int(table[0]), len(token_ids) - 1)
        sequence.append(token_ids)

    def reuse(self, token_ids: Ids[int]) -> int:
        """Keeps the longest common prefix with `token_ids`; returns its length."""
        self.truncate(common_prefix(self.sequence.tokens, token_ids))
        return len(self)

    def prefill(
        self, token_ids: list[int], chunk: int, all_rows: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Appends tokens chunk by chunk; yields (tokens done, logits float32 [rows, vocab]).

        The rows are those of the chunk's last token, or of all its tokens. All chunks run in one
        gear.
        """
        sparse = self.gears.sparse(len(self) + len(token_ids))
        for start in range(0, len(token_ids), chunk):
            part = token_ids[start : start + chunk]
            yield start + len(part), self.prefill_chunk(part, sparse, all_rows)

    def prefill_chunk(
        self, token_ids: Ids[int], sparse: bool, all_rows: bool = False
    ) -> np.ndarray:
        """Appends one chunk of tokens in this gear; returns logits float32 [rows, vocab] of its
        last token, or of all.
        """
        n = len(token_ids)
        rows = np.arange(0 if all_rows else n - 1, n, dtype=np.int32)
        slots = self.sequence.reserve(n)
        ids = np.array(token_ids, np.int32)
        table = self.sequence.page_table
        with self._advancing():
            out = self._library.prefill(ids, slots, slots, table, rows, self._pools, sparse)
            self.sequence.append(token_ids)
        self.features = out.features
        return out.logits

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token; returns its logits, float32 [vocab]."""
        return np.asarray(self.step(token_id))

    def step(self, token_id: int) -> Row:
        """The same; on a GPU its logits stay there until they are read."""
        (logits,) = decode_together([self], [token_id])
        return logits

    @contextmanager
    def _advancing(self) -> Iterator[None]:
        """Around a call that appends tokens. One that breaks off may have changed a recurrent
        state, so the sequence starts again; of pages, what lies behind its end doesn't matter.
        """
        try:
            yield
        except BaseException:
            if self.sequence.recurrent:
                self.sequence.truncate(0)
            raise

    def verify(
        self, token_ids: Ids[int], parents: Ids[int]
    ) -> tuple[np.ndarray | DeviceRows, np.ndarray | None]:
        """Runs a token tree after the cached tokens, which stay as they are, in one pass.

        Node 0 is the root, the token sampled last, with parent -1; every other node's parent comes
        before it. A node at depth d has position len(self) + d, sees the cached tokens and its
        ancestors, and gets the logits of decoding its path token by token, in the gear of each
        token.

        Returns logits float32 [n, vocab], which stay on a GPU until they are read, and with a draft
        head in the bundle its features float32 [n, F]. Raises ContextError where n more tokens
        don't fit the context, ValueError for a tree of another form, or where the model's state
        can't go back.
        """
        if self.sequence.recurrent:
            raise ValueError("the model keeps state per sequence: its tokens can only be decoded")
        depths, masks = tree_shape(parents)
        sparse = np.array([self.gears.sparse(len(self) + int(depth) + 1) for depth in depths])
        slots = self.sequence.reserve(len(depths))
        order = places = np.arange(len(depths))
        if sparse.any() and not sparse.all():
            # a sparse node's dense ancestors are computed before it
            order = np.argsort(sparse, kind="stable")
            places = np.argsort(order)
            _, masks = tree_shape(
                [int(places[p]) if p >= 0 else -1 for p in np.asarray(parents)[order]]
            )
        rows = [
            np.asarray(token_ids, np.int32)[order],
            len(self) + depths[order],
            slots,
            mask_words(masks),
        ]
        gears = [(gear, sparse[order] == gear) for gear in (False, True) if (sparse == gear).any()]
        outs = [self._verify([row[part] for row in rows], gear) for gear, part in gears]
        selected = tuple(
            _with_dense_rows(blocks, len(order))[places] for blocks in outs[-1].selected
        )
        self._tree = VerifiedTree(
            len(self), np.asarray(token_ids), np.asarray(parents), places, selected
        )
        features = [out.features for out in outs if out.features is not None]
        self.features = np.asarray(_in_order(features, places)) if features else None
        return _in_order([out.logits for out in outs], places), self.features

    def commit(self, nodes: Ids[int]) -> None:
        """Appends a path of the tree verified last, its node indices from the root on; the rest of
        the tree is gone.

        `features` are then those of the path's nodes. Raises ValueError for nodes that are no such
        path.
        """
        tree = self._tree
        path = np.asarray(nodes)
        if tree is None or tree.length != len(self):
            raise ValueError("no tree was verified after the cached tokens; call verify first")
        if not len(path) or (tree.parents[path] != [-1, *path[:-1]]).any():
            raise ValueError(f"nodes {list(nodes)} are no path from the root of the verified tree")
        slots = len(self) + np.arange(len(path), dtype=np.int32)
        sources = (len(self) + tree.places[path]).astype(np.int32)
        self._library.commit(sources, slots, self.sequence.page_table, self._pools)
        self.selected = [blocks[path] for blocks in tree.selected]
        self.features = None if self.features is None else self.features[path]
        self.sequence.append(tree.token_ids[path].tolist())
        self._tree = None

    def _verify(self, rows: list[np.ndarray], sparse: bool) -> Decoded:
        """Nodes of one gear: their token ids, positions, slots and ancestor masks."""
        token_ids, positions, slots, ancestors = rows
        base = np.array([len(self)], np.int32)
        table = self.sequence.page_table
        return self._library.verify(
            token_ids, positions, slots, base, table, ancestors, self._pools, sparse
        )


def decode_together(models: Ids[CachedModel], token_ids: Ids[int]) -> np.ndarray | DeviceRows:
    """Appends one token to each of b sequences on the same pages, in one call; returns their
    logits, float32 [b, vocab], which stay on a GPU until they are read.

    All are in one gear, by the length that the token brings them to. Each row is computed as it
    would be alone. Where the call fails, all sequences are as they were before.
    """
    for model in models:
        model.sequence.reserve(1)
    slots = np.array([len(model) for model in models], np.int32)
    gears = {model.gears.sparse(len(model) + 1) for model in models}
    (sparse,) = gears
    tables = [model.sequence.page_table for model in models]
    padded = np.zeros((len(tables), max(map(len, tables))), np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    ids = np.array(token_ids, np.int32)
    first = models[0]
    with first._advancing():
        out = first._library.decode(ids, slots, slots, padded, first._pools, sparse)
        for i, (model, token_id) in enumerate(zip(models, token_ids, strict=True)):
            model.sequence.append([token_id])
            model.selected = [blocks[i] for blocks in out.selected]
            model.features = None if out.features is None else out.features[i : i + 1]
    return out.logits


def _in_order(parts: Ids[np.ndarray | DeviceRows], places: np.ndarray) -> np.ndarray | DeviceRows:
    """The rows of all gears in the nodes' order; those of one gear, as almost always, are there
    already: no copy.
    """
    return parts[0] if len(parts) == 1 else np.concatenate(list(map(np.asarray, parts)))[places]


def _with_dense_rows(blocks: np.ndarray, n: int) -> np.ndarray:
    """The blocks of n rows, of which only the last ones chose some."""
    dense = np.full((n - len(blocks), *blocks.shape[1:]), -1, np.int32)
    return np.concatenate([dense, blocks])
