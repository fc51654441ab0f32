"""A library's key/value pools and their pages, which any number of sequences share."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.kv_cache import PagePool
from minicpm_mlc.runtime_py.protocols import Library

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.library import Pools


class PagedCache:
    """`pages` says which page is free, `pools` are the library's tensors behind them."""

    def __init__(self, library: Library, context: int) -> None:
        """`context`: the tokens that all sequences together may hold, rounded up to whole pages."""
        page_size = library.manifest.page_size
        num_pages = -(-context // page_size)
        self.library = library
        self.pages = PagePool(num_pages, page_size)
        self.pools = library.new_pools(num_pages)

    def copy_drafted(self, source: int, page: int, rows: int) -> None:
        """Copies what a draft head has of a page's first tokens, where this process can."""
        if not self.pages.drafted[source]:
            return
        try:
            pools = self.library.pool_arrays(self.draft_pools)
        except EngineError:  # the head goes on without
            return
        for pool in pools:
            pool[[page]] = pool[[source]]
        self.pages.drafted[page] = min(rows, self.pages.drafted[source])

    @cached_property
    def draft_pools(self) -> Pools:
        """The draft head's pools, made when first used. A sequence has the same pages in them."""
        return self.library.new_draft_pools(len(self.pages.owners))
