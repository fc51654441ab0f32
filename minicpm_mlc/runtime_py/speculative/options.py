"""What a caller may ask of speculation, checked by name."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.base.choices import SPECULATE
from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.text import quoted
from minicpm_mlc.bundle.manifest_schema import MAX_DRAFT_TOP_K
from minicpm_mlc.prompt.sampling import check_count
from minicpm_mlc.runtime_py.speculative.costs import MAX_LEVELS
from minicpm_mlc.runtime_py.token_tree import MAX_NODES

_LIMITS = {"tree_size": MAX_NODES, "draft_depth": MAX_LEVELS, "draft_top_k": MAX_DRAFT_TOP_K}


@dataclass(frozen=True)
class Speculation:
    """`speculate`: "auto" uses what pays, "off" nothing, a drafter's name that one always.

    `tree_size` counts the nodes of a tree, its root among them; `draft_depth` is how far ahead it
    guesses, `draft_top_k` how many tokens come after a node. What is None is chosen by what was
    measured.
    """

    speculate: str = "auto"
    tree_size: int | None = None
    draft_depth: int | None = None
    draft_top_k: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.speculate, str) or self.speculate not in SPECULATE:
            raise SamplingError(
                f"speculate is {quoted(self.speculate)}; choose {', '.join(SPECULATE)}"
            )
        for name, highest in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check_count(name, value, lowest=1)
                if value > highest:
                    raise SamplingError(f"{name} is {quoted(value)}; it must be at most {highest}")
        stepped = (self.draft_top_k or 1) * ((self.draft_depth or 1) - 1)
        if stepped > MAX_NODES:
            raise SamplingError(
                f"draft_top_k {self.draft_top_k} at draft_depth {self.draft_depth} drafts "
                f"{stepped} nodes before the last "
                f"level; at most {MAX_NODES} fit: lower one of them"
            )
