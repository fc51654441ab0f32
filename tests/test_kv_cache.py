from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minicpm_mlc.base.errors import ContextError
from minicpm_mlc.runtime_py.kv_cache import PagePool, Sequence, common_prefix

PAGE, PAGES, CONTEXT = 4, 6, 14


class SharedPool(RuleBasedStateMachine):
    """Sequences that grow, shrink, fork and end over one pool; `memory` is what the pages would
    hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, PAGE)
        self.memory = np.full((PAGES, PAGE), -1)
        self.sequences = [Sequence(self.pool, CONTEXT)]
        self.expected: list[list[int]] = [[]]
        self.next_token = 0

    def new_tokens(self, n: int) -> list[int]:
        self.next_token += n
        return list(range(self.next_token - n, self.next_token))

    @rule(which=st.integers(0, 9), n=st.integers(1, 9))
    def append(self, which: int, n: int) -> None:
        which %= len(self.sequences)
        sequence, expected = self.sequences[which], self.expected[which]
        pages = -(-(len(expected) + n) // PAGE) - len(sequence.page_table)
        fits = len(expected) + n <= CONTEXT and pages <= self.pool.free_pages
        if not fits:
            before = sequence.page_table.tolist()
            with pytest.raises(ContextError):
                sequence.reserve(n)
            assert sequence.page_table.tolist() == before
            return
        tokens = self.new_tokens(n)
        slots = sequence.reserve(n)
        assert slots.dtype == np.int32 and slots.tolist() == list(
            range(len(expected), len(expected) + n)
        )
        self.memory[sequence.page_table[slots // PAGE], slots % PAGE] = tokens
        sequence.append(tokens)
        expected += tokens

    @rule(which=st.integers(0, 9), length=st.integers(0, CONTEXT))
    def truncate(self, which: int, length: int) -> None:
        which %= len(self.sequences)
        kept = self.sequences[which].truncate(length)
        wanted = min(length, len(self.expected[which]))
        assert wanted - PAGE < kept <= wanted
        assert kept == wanted or (len(self.sequences) > 1 and kept % PAGE == 0)
        del self.expected[which][kept:]

    @rule(which=st.integers(0, 9), common=st.integers(0, CONTEXT))
    def reuse(self, which: int, common: int) -> None:
        which %= len(self.sequences)
        prefix = self.expected[which][:common]
        sequence = self.sequences[which]
        kept = sequence.truncate(common_prefix(sequence.tokens, [*prefix, *self.new_tokens(2)]))
        assert kept == len(prefix) or (
            len(self.sequences) > 1 and len(prefix) - PAGE < kept < len(prefix)
        )
        del self.expected[which][kept:]

    @rule(which=st.integers(0, 9))
    def fork(self, which: int) -> None:
        which %= len(self.sequences)
        self.sequences.append(self.sequences[which].fork())
        self.expected.append(self.expected[which][: len(self.expected[which]) // PAGE * PAGE])

    @rule(which=st.integers(0, 9))
    def end(self, which: int) -> None:
        if len(self.sequences) > 1:
            which %= len(self.sequences)
            self.sequences.pop(which).truncate(0)
            self.expected.pop(which)

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for sequence, expected in zip(self.sequences, self.expected, strict=True):
            slots = np.arange(len(expected))
            assert sequence.tokens == expected
            assert (
                self.memory[sequence.page_table[slots // PAGE], slots % PAGE].tolist() == expected
            )

    @invariant()
    def no_page_is_lost_or_counted_wrong(self) -> None:
        named = np.zeros(PAGES, int)
        for sequence in self.sequences:
            assert len(set(sequence.page_table.tolist())) == len(sequence.page_table)
            np.add.at(named, sequence.page_table, 1)
        assert named.tolist() == self.pool.owners.tolist()
        assert self.pool.free_pages == (named == 0).sum()


TestSharedPool = SharedPool.TestCase
TestSharedPool.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)


def test_pages_are_taken_as_the_sequence_grows_lowest_first() -> None:
    sequence = Sequence(PagePool(8, PAGE), 32)
    for length, pages in ((1, [0]), (4, [0]), (5, [0, 1]), (9, [0, 1, 2])):
        sequence.append([0] * len(sequence.reserve(length - len(sequence))))
        assert sequence.page_table.tolist() == pages
    sequence.truncate(1)
    sequence.reserve(6)
    assert sequence.page_table.tolist() == [0, 1]


def test_a_full_pool_says_how_much_it_holds() -> None:
    pool = PagePool(2, PAGE)
    Sequence(pool, 8).reserve(5)
    with pytest.raises(ContextError, match=r"all 2 pages \(8 tokens\)"):
        Sequence(pool, 8).reserve(1)


def test_a_sequence_refuses_more_than_its_context() -> None:
    with pytest.raises(ContextError, match="9 tokens don't fit the context of 8"):
        Sequence(PagePool(9, PAGE), 8).reserve(9)


def test_common_prefix_ends_at_the_first_difference_or_the_shorter_end() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0
