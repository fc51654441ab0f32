"""Token trees: several continuations of one sequence, checked in one call.

Node j of a tree lies at slot base + j, behind the committed slots 0..base-1; parents come before
their children. Bit j % 32 of `ancestors[i, j // 32]` is set iff node j is node i or one of its
ancestors, so a tree has at most 64 nodes. A node's path is the sequence it would be decoded in: its
k-th node would lie at slot base + k, its own position. Gathering a path's last pages in that order
makes the node an ordinary decode row, with the same sums, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.tir import Buffer, Expr, T

MAX_NODES = 64
MASK_WORDS = MAX_NODES // 32
TAIL_PAGES = 2  # pages that a path's nodes can touch


def ancestor_masks(parents: list[int]) -> np.ndarray:
    """int32 [n, 2] masks of a tree whose node i has the parent parents[i] < i, or -1."""
    masks: list[int] = []
    for node, parent in enumerate(parents):
        masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
    return np.array(masks, np.uint64).view(np.int32).reshape(-1, MASK_WORDS)


def paths_definition(ancestors: np.ndarray) -> list[list[int]]:
    """Each row's path, from the root's side to the node itself, from masks int32 [n, 2]."""
    return [
        [j for j in range(MAX_NODES) if row[j // 32] >> (j % 32) & 1] for row in ancestors.tolist()
    ]


def path_tables_definition(
    base: int, ancestors: np.ndarray, page_table: np.ndarray, *pools: tuple[np.ndarray, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Page tables [n, p + 1] of every row's own sequence, and the pools with its last pages
    appended.

    pools: (array [pages, ...], axis of the 64 tokens of a page). Slots past a row's own hold zeros.
    """
    first, page_size = base // PAGE_SIZE, PAGE_SIZE
    tables = np.tile(np.append(page_table, np.int32(-1)), (len(ancestors), 1)).astype(np.int32)
    tables[:, first : first + TAIL_PAGES] = len(pools[0][0]) + np.arange(
        len(ancestors) * TAIL_PAGES
    ).reshape(-1, 2)
    extended = []
    for pool, axis in pools:
        tokens = np.moveaxis(pool, axis, 1)
        tails = np.zeros((len(ancestors), TAIL_PAGES * page_size, *tokens.shape[2:]), pool.dtype)
        for tail, path in zip(tails, paths_definition(ancestors), strict=True):
            slots = np.array([*range(first * page_size, base), *(base + node for node in path)])
            tail[: len(slots)] = tokens[page_table[slots // page_size], slots % page_size]
        tails = tails.reshape(-1, page_size, *tokens.shape[2:])
        extended.append(np.moveaxis(np.concatenate([tokens, tails]), 1, axis))
    return tables, extended


@dataclass(frozen=True)
class TreePath:
    """The sequence of one tree row, in a kernel that has its nodes' page table."""

    page_table: Buffer  # i32[1, p]
    base: Expr  # the committed length
    nodes: Buffer  # i32, the path's nodes in order
    slot: Expr  # the row's own slot in its sequence

    @staticmethod
    def of(page_table: Buffer, base: Buffer, ancestors: Buffer, row: Expr) -> TreePath:
        """The path of `row`; base i32[m], of which the first counts; ancestors i32[n, 2]."""
        nodes = T.alloc_buffer((MAX_NODES + 1,), "int32")
        length = T.alloc_buffer((1,), "int32")
        T.buffer_store(length, 0, [0])
        with T.serial(MASK_WORDS) as word, T.serial(32) as bit:
            T.buffer_store(nodes, word * 32 + bit, [length[0]])  # overwritten unless it counts
            here = T.bitwise_and(T.shift_right(ancestors[row, word], bit), 1)
            T.buffer_store(length, length[0] + here, [0])
        start = T.Bind(base[0])
        return TreePath(page_table, start, nodes, T.Bind(start + length[0] - 1))

    @property
    def tail(self) -> Expr:
        """The first page that holds uncommitted slots; pages before it lie in the pools as they
        are.
        """
        return T.Bind(self.base // PAGE_SIZE)

    def place(self, slot: Expr) -> tuple[Expr, Expr]:
        """(page, offset) in the pools of a slot >= base of the row's sequence."""
        source = T.Bind(self.base + self.nodes[slot - self.base])
        return T.Bind(T.Cast("int64", self.page_table[0, source // PAGE_SIZE])), T.Bind(
            source % PAGE_SIZE
        )

    def each_gathered(
        self,
        number: Expr,
        copy_page: Callable[[Expr], None],
        copy_slot: Callable[[Expr, Expr, Expr], None],
    ) -> None:
        """Build page `number` >= tail: copy_page(page) takes what is committed of it, then
        copy_slot(to, page, from).
        """
        begin = T.Bind(number * PAGE_SIZE)
        start = T.Bind(T.max(self.base - begin, 0))
        with T.If(start > 0), T.Then():
            copy_page(T.Bind(T.Cast("int64", self.page_table[0, number])))
        with T.serial(T.min(self.slot + 1 - begin, PAGE_SIZE) - start) as step:
            to = T.Bind(start + step)
            copy_slot(to, *self.place(T.Bind(begin + to)))


def copy_vectors(
    target: Buffer, source: Buffer, width: int, to: tuple[Expr, ...], at: tuple[Expr, ...]
) -> None:
    """target[*to, 0:width] = source[*at, 0:width], which have one dtype."""
    with T.serial(width // vector.LANES) as j:
        lanes = T.ramp(j * vector.LANES, 1, vector.LANES)
        T.buffer_store(target, source[(*at, lanes)], [*to, lanes])


@dataclass(frozen=True)
class TailPages:
    """Scratch for one gathered page of one KV head, shaped as a pool of one page and head."""

    kv: KVFormat
    k_pages: Buffer
    v_pages: Buffer

    @staticmethod
    def allocate(head_dim: int, kv: KVFormat) -> TailPages:
        """Scratch for one page of one key/value head."""
        return TailPages(
            kv,
            T.alloc_buffer((1, *kv.key_shape(1, head_dim)), kv.storage),
            T.alloc_buffer((1, *kv.value_shape(1, head_dim)), kv.storage),
        )

    def gather(
        self, path: TreePath, number: Expr, kv_head: Expr, pools: tuple[Buffer, Buffer]
    ) -> tuple[Buffer, Buffer]:
        """Fill the scratch with page `number` of the row's sequence; returned as pools."""
        head_dim = int(self.v_pages.shape[-1])
        gather_keys(self.kv, self.k_pages, head_dim, path, number, kv_head, pools[0])

        def copy_page(page: Expr) -> None:
            with T.serial(PAGE_SIZE) as t:
                copy_vectors(self.v_pages, pools[1], head_dim, (0, 0, t), (page, kv_head, t))

        def copy_slot(to: Expr, page: Expr, at: Expr) -> None:
            places = (0, 0, to), (page, kv_head, at)
            self.kv.cpu_copy_value(self.v_pages, pools[1], head_dim, *places)

        path.each_gathered(number, copy_page, copy_slot)
        return self.k_pages, self.v_pages


def gather_keys(
    kv: KVFormat,
    target: Buffer,
    head_dim: int,
    path: TreePath,
    number: Expr,
    kv_head: Expr,
    k_pages: Buffer,
) -> None:
    """target, a key page of one head, = the keys of page `number` of the row's sequence, with their
    scales.
    """

    def copy_page(page: Expr) -> None:
        with T.serial(target.shape[2]) as i:
            copy_vectors(target, k_pages, PAGE_SIZE, (0, 0, i), (page, kv_head, i))

    def copy_slot(to: Expr, page: Expr, at: Expr) -> None:
        kv.cpu_copy_key(target, k_pages, head_dim, (0, 0, to), (page, kv_head, at))

    path.each_gathered(number, copy_page, copy_slot)
