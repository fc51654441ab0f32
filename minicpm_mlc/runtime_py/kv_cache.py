"""The kv cache's bookkeeping: which page of the pool holds which tokens. No tensor is touched
here.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids

import numpy as np

from minicpm_mlc.base.errors import ContextError


class PagePool:
    """Free list and owner count of `num_pages` pages; a page with two owners is a shared prefix.

    `kept` bool [pages] marks those that one of the owners keeps only for what may come: where no
    page is free, `reclaim` makes such an owner give one back, and says whether it did. `drafted`
    int32 [pages] counts the rows that a draft head has of a page's tokens, from its first on.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.owners = np.zeros(num_pages, np.int32)
        self.kept = np.zeros(num_pages, bool)
        self.drafted = np.zeros(num_pages, np.int32)
        self.reclaim: Callable[[], bool] = lambda: False
        # The lowest page is taken first, so that memory never used is never committed by the
        # system.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """How many pages have no owner."""
        return len(self._free)

    @property
    def available(self) -> int:
        """How many pages can be taken: the free ones, and those that are only kept."""
        return len(self._free) + int((self.kept & (self.owners == 1)).sum())

    def take(self) -> int:
        """A page with one owner. Raises ContextError when none is free."""
        if not self._free and not self.reclaim():
            tokens = len(self.owners) * self.page_size
            raise ContextError(
                f"the kv cache is full: all {len(self.owners)} pages ({tokens} tokens) are in use; "
                "start the engine with a larger --context or shorten the conversation"
            )
        page = self._free.pop()
        self.owners[page] = 1
        self.drafted[page] = 0
        return page

    def share(self, page: int) -> None:
        """Gives a page that is in use one more owner."""
        self.owners[page] += 1

    def release(self, page: int) -> None:
        """Takes one owner from a page; without any it is free again."""
        self.owners[page] -= 1
        if self.owners[page] == 0:
            self._free.append(page)


class Sequence:
    """One sequence: the tokens whose keys and values are in the cache, and the pages that hold
    them.
    """

    def __init__(self, pool: PagePool, context: int, recurrent: bool = False) -> None:
        """`context`: the most tokens that it may ever hold. `recurrent`: the model also keeps state
        of the sequence as a whole, which can't go back to an earlier token.
        """
        self.pool = pool
        self.context = context
        self.recurrent = recurrent
        self.tokens: list[int] = []
        self._table = np.zeros(-(-context // pool.page_size), np.int32)
        self._num_pages = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def page_table(self) -> np.ndarray:
        """int32 [pages]: slot s of the sequence is in page page_table[s // page_size]. A view, not
        a copy.
        """
        return self._table[: self._num_pages]

    @property
    def room(self) -> int:
        """How many more tokens it can hold now."""
        pages = self._num_pages + self.pool.available
        return min(self.context, pages * self.pool.page_size) - len(self.tokens)

    def adopt(self, pages: Ids[int], token_ids: Ids[int]) -> None:
        """Begins with these full pages, which hold `token_ids` and have other owners. The sequence
        must be empty.
        """
        assert not self._num_pages and len(token_ids) == len(pages) * self.pool.page_size
        for page in pages:
            self.pool.share(page)
        self._table[: len(pages)] = pages
        self._num_pages = len(pages)
        self.tokens = list(token_ids)

    def reserve(self, n: int) -> np.ndarray:
        """Makes room for n more tokens; returns their slots, int32 [n]. A ContextError leaves all
        as it was.
        """
        length = len(self.tokens) + n
        if length > self.context:
            raise ContextError(
                f"{length} tokens don't fit the context of {self.context}; "
                "shorten the prompt or start the engine with a larger --context"
            )
        before = self._num_pages
        try:
            while self._num_pages * self.pool.page_size < length:
                self._table[self._num_pages] = self.pool.take()
                self._num_pages += 1
        except ContextError:
            self._release_from(before)
            raise
        return np.arange(len(self.tokens), length, dtype=np.int32)

    def append(self, token_ids: Ids[int]) -> None:
        """Records tokens whose keys and values have been written. Their slots were reserved
        before.
        """
        assert len(self.tokens) + len(token_ids) <= self._num_pages * self.pool.page_size
        self.tokens.extend(token_ids)

    def truncate(self, length: int) -> int:
        """Forgets the tokens from `length` on; returns how many are kept.

        A page with another owner is never written again, so a cut inside one drops that page whole.
        A recurrent sequence that is cut at all is cut to nothing.
        """
        length = min(length, len(self.tokens))
        if self.recurrent and length < len(self.tokens):
            length = 0
        pages = -(-length // self.pool.page_size)
        if length % self.pool.page_size and self.pool.owners[self._table[pages - 1]] > 1:
            pages -= 1
            length = pages * self.pool.page_size
        if rest := length % self.pool.page_size:
            page = self._table[pages - 1]  # its last row was made of the token after it, too
            self.pool.drafted[page] = min(self.pool.drafted[page], rest - 1)
        self._release_from(pages)
        del self.tokens[length:]
        return length

    def fork(self) -> Sequence:
        """A second sequence that begins with this one's full pages, shared; a recurrent one begins
        with nothing.
        """
        other = Sequence(self.pool, self.context, self.recurrent)
        if self.recurrent:
            return other
        pages = len(self.tokens) // self.pool.page_size
        other.adopt(self._table[:pages].tolist(), self.tokens[: pages * self.pool.page_size])
        return other

    def _release_from(self, pages: int) -> None:
        # Last page first: the free list then hands the lowest page out next.
        for page in self._table[pages : self._num_pages][::-1]:
            self.pool.release(int(page))
        self._num_pages = min(pages, self._num_pages)


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """Length of the longest prefix that both have."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
