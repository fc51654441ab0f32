"""Where the tokens lie that a row sees: its own sequence's pages, or the path of a token tree
behind one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.formats.tree import MASK_WORDS, MAX_NODES
from minicpm_mlc.ops.gpu.kernel import barrier, registers, shared
from minicpm_mlc.ops.tir import Buffer, Expr, T

Place = Callable[[Expr], tuple[Expr, Expr]]  # of a token in a page: (page in the pools, offset)


class Sequence(Protocol):
    """One row's tokens 0..slot, in the order it sees them."""

    slot: Expr

    def page(self, number: Expr) -> Place:
        """Where the tokens 64 * number + t lie."""
        ...

    def whole_page(self, number: Expr) -> tuple[Expr, Expr | None]:
        """The page that holds those tokens in order, and whether one does; None: it always
        does.
        """
        ...


class Paged:
    """A row of prefill or decode: token t is in page t // 64 of its table."""

    def __init__(self, page_tables: Buffer, table: Expr, slots: Buffer, row: Expr) -> None:
        self.page_tables, self.table, self.slot = page_tables, table, T.Bind(slots[row])

    def page(self, number: Expr) -> Place:
        place, _ = self.whole_page(number)
        return lambda t: (place, t)

    def whole_page(self, number: Expr) -> tuple[Expr, None]:
        return T.Bind(T.Cast("int64", self.page_tables[self.table, number])), None


class PathSequence:
    """A row of a token tree: committed tokens, then the nodes of its path (ops/formats/tree.py),
    whose numbers are shared.
    """

    def __init__(
        self, page_table: Expr, base: Expr, ancestors: Buffer, row: Expr, thread: Expr
    ) -> None:
        self.page_table, self.base = page_table, T.Bind(base[0])
        self.nodes, length = shared((MAX_NODES + 1,), "int32"), registers(1, "int32", 0)
        with T.serial(MASK_WORDS) as word, T.serial(32) as bit:
            here = T.Bind(T.bitwise_and(T.shift_right(ancestors[row, word], bit), 1))
            with T.If(T.And(thread.equal(0), here.equal(1))), T.Then():
                T.buffer_store(self.nodes, word * 32 + bit, [length[0]])
            T.buffer_store(length, length[0] + here, [0])
        barrier()
        self.slot = T.Bind(self.base + length[0] - 1)

    def page(self, number: Expr) -> Place:
        def place(t: Expr) -> tuple[Expr, Expr]:
            position = T.Bind(number * PAGE_SIZE + t)
            node = T.Bind(self.nodes[T.max(position - self.base, 0)])
            source = T.Bind(T.Select(position < self.base, position, self.base + node))
            return T.Bind(T.Cast("int64", self.page_table[0, source // PAGE_SIZE])), T.Bind(
                source % PAGE_SIZE
            )

        return place

    def whole_page(self, number: Expr) -> tuple[Expr, Expr]:
        page = T.Bind(T.Cast("int64", self.page_table[0, number]))
        return page, T.Bind((number + 1) * PAGE_SIZE <= self.base)
