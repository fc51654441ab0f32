"""The compiled functions together with one cached sequence: tokens go in, logits come out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .gears import Gears
from .kv_cache import PagePool, Sequence


class CachedModel:
    """Appends tokens to one sequence. A call that fails or is interrupted leaves the sequence as it was before."""

    def __init__(self, library: Any, context: int, page_size: int, gears: Gears) -> None:
        num_pages = -(-context // page_size)
        self.sequence = Sequence(PagePool(num_pages, page_size), context)
        self.gears = gears
        self.selected: list[np.ndarray] = []  # what the last decode read: per layer the blocks, [kv_heads, budget]
        self._library = library
        self._pools = library.new_pools(num_pages)

    def __len__(self) -> int:
        return len(self.sequence)

    def prefill(self, token_ids: list[int], chunk: int, all_rows: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """Appends tokens chunk by chunk; yields (tokens done, logits float32 [rows, vocab]).

        The rows are those of the chunk's last token, or of all its tokens. All chunks run in one gear.
        """
        sparse = self.gears.sparse(len(self) + len(token_ids))
        for start in range(0, len(token_ids), chunk):
            part = token_ids[start : start + chunk]
            rows = np.arange(0 if all_rows else len(part) - 1, len(part), dtype=np.int32)
            slots = self.sequence.reserve(len(part))
            logits = self._library.prefill(
                np.array(part, np.int32), slots, slots, self.sequence.page_table, rows, self._pools, sparse
            )
            self.sequence.append(part)
            yield start + len(part), logits

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token; returns its logits, float32 [vocab]."""
        slots = self.sequence.reserve(1)
        tables = self.sequence.page_table[None, :]
        sparse = self.gears.sparse(len(self) + 1)
        row = np.array([token_id], np.int32)
        logits, selected = self._library.decode(row, slots, slots, tables, self._pools, sparse)
        self.selected = [blocks[0] for blocks in selected]
        self.sequence.append([token_id])
        return logits[0]
