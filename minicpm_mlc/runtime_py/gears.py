"""The two gears of attention: dense while a sequence is short, sparse from the model's `dense_len` tokens on."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import EngineError
from ..manifest import Manifest

ATTENTION = ("auto", "dense", "sparse")


@dataclass(frozen=True)
class Gears:
    """Which gear a call takes. `dense_len` None: the library has only the dense one. Lengths and positions in tokens."""

    attention: str
    dense_len: int | None
    budget: int  # blocks that a sparse row reads at most
    block_size: int

    @classmethod
    def of(cls, manifest: Manifest, attention: str) -> Gears:
        """Raises EngineError for an unknown gear, or a sparse one that the bundle does not have."""
        if attention not in ATTENTION:
            raise EngineError(f"attention is {attention!r}; choose {', '.join(ATTENTION)}")
        sparse = manifest.model.get("sparse")
        if attention == "sparse" and not sparse:
            raise EngineError(
                f"{manifest.name} has no sparse attention in this bundle: the model was not trained for it, or it was "
                "compiled with --attention dense; use --attention auto"
            )
        budget = sparse["topk"] + sparse["window_size"] // sparse["block_size"] if sparse else 0
        return cls(attention, sparse["dense_len"] if sparse else None, budget, manifest.page_size)

    def sparse(self, length: int) -> bool:
        """Whether a call that brings the sequence to `length` tokens reads sparsely: from dense_len on, unless forced."""
        if self.attention == "auto":
            return self.dense_len is not None and length >= self.dense_len
        return self.attention == "sparse"

    def blocks(self, length: int) -> tuple[int, int]:
        """(blocks that the last of `length` tokens reads per layer and KV head, blocks there are)."""
        present = -(-length // self.block_size)
        return (min(self.budget, present) if self.sparse(length) else present), present
