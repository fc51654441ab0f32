"""The two gears of attention: dense while a sequence is short, sparse from the model's `dense_len`
tokens on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.base.choices import ATTENTION
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.bundle.manifest import Manifest


@dataclass(frozen=True)
class Gears:
    """Which gear a call takes. `dense_len` None: the library has only the dense one. Lengths and
    positions in tokens.
    """

    attention: str
    dense_len: int | None
    budget: int  # blocks that a sparse row reads at most
    block_size: int
    # of the budget, read whatever the scores, as are the row's own block and those of the window
    init_blocks: int = 0
    window_blocks: int = 0

    @classmethod
    def of(cls, manifest: Manifest, attention: str) -> Gears:
        """Raises EngineError for an unknown gear, or a sparse one that the bundle does not have."""
        if attention not in ATTENTION:
            raise EngineError(f"attention is {attention!r}; choose {', '.join(ATTENTION)}")
        sparse = manifest.model.get("sparse")
        if attention == "sparse" and not sparse:
            raise EngineError(
                f"{manifest.name} has no sparse attention in this bundle: the model was not "
                "trained for it, or it was "
                "compiled with --attention dense; use --attention auto"
            )
        if not sparse:
            return cls(attention, None, 0, manifest.page_size)
        local = sparse["window_size"] // sparse["block_size"]
        return cls(
            attention,
            sparse["dense_len"],
            sparse["topk"] + local,
            manifest.page_size,
            sparse["init_blocks"],
            local,
        )

    def sparse(self, length: int) -> bool:
        """Whether a call that brings the sequence to `length` tokens reads sparsely: from dense_len
        on, unless forced.
        """
        if self.attention == "auto":
            return self.dense_len is not None and length >= self.dense_len
        return self.attention == "sparse"

    def blocks(self, length: int) -> tuple[int, int]:
        """(blocks that the last of `length` tokens reads per layer and KV head, blocks there
        are).
        """
        present = -(-length // self.block_size)
        return (min(self.budget, present) if self.sparse(length) else present), present

    def forced(self, position: int, blocks: int) -> np.ndarray:
        """bool [blocks]: those of the first `blocks` that a sparse row at `position` reads whatever
        the scores.
        """
        numbers = np.arange(blocks)
        own = position // self.block_size
        return (
            (own < self.budget)
            | (numbers < self.init_blocks)
            | (numbers >= own - self.window_blocks)
        )

    def chosen_by_score(self, selected: list[np.ndarray]) -> np.ndarray:
        """Of rows' lists of blocks (int32 [..., budget], ascending, then -1) those that were chosen
        by score, int32 [n]; the others are forced.
        """
        rows = np.concatenate(selected).reshape(-1, self.budget)
        rows = rows[rows[:, -1] >= self.budget]  # in the others every block has a place
        return rows[:, self.init_blocks : self.budget - self.window_blocks - 1].ravel()
