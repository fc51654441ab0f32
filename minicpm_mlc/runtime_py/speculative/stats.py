"""Figures of speculation during one call."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields

from minicpm_mlc.runtime_py.speculative.policy import Round


@dataclass
class SpeculationStats:
    """Lists are by depth: entry 0 is the first guessed token."""

    decision: str = "off"  # what the policy thinks of each drafter at the end
    rounds: int = 0  # trees verified
    plain_steps: int = 0
    nodes: int = 0  # verified, the roots among them
    accepted: int = 0  # guessed tokens that were kept
    accept_length: float = (
        0.0  # tokens per tree, the model's own one after the accepted path among them
    )
    drafters: dict[str, int] = field(default_factory=dict)  # rounds of each
    drafted_at: list[int] = field(default_factory=list)  # rounds whose tree had this depth
    accepted_at: list[int] = field(default_factory=list)  # rounds that were accepted to this depth
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    commit_seconds: float = 0.0
    host_seconds: float = 0.0  # choosing, cutting, bookkeeping: Python between the calls

    @property
    def accepted_shares(self) -> list[float]:
        """Share of drafts that were accepted to each depth."""
        return [
            hits / drafts for hits, drafts in zip(self.accepted_at, self.drafted_at, strict=True)
        ]

    def add(self, round: Round, commit_seconds: float) -> None:
        """Counts one round."""
        depth = int(round.draft.tree.depths.max())
        self.rounds += 1
        self.nodes += len(round.draft.tree)
        self.accepted += round.accepted
        self.accept_length = 1 + self.accepted / self.rounds
        self.drafters[round.drafter] = self.drafters.get(round.drafter, 0) + 1
        for counts, reached in ((self.drafted_at, depth), (self.accepted_at, round.accepted)):
            counts.extend([0] * (depth - len(counts)))
            for level in range(reached):
                counts[level] += 1
        self.verify_seconds += round.verify_seconds
        self.commit_seconds += commit_seconds
        self.host_seconds += round.other_seconds - commit_seconds

    def merge(self, other: SpeculationStats) -> None:
        """Adds another call's figures."""
        for part in fields(self):
            mine = getattr(self, part.name)
            theirs = getattr(other, part.name)
            if isinstance(mine, list):
                padded = itertools.zip_longest(mine, theirs, fillvalue=0)
                setattr(self, part.name, [a + b for a, b in padded])
            elif isinstance(mine, dict):
                setattr(
                    self,
                    part.name,
                    {name: mine.get(name, 0) + theirs.get(name, 0) for name in mine | theirs},
                )
            else:
                setattr(self, part.name, theirs if isinstance(mine, str) else mine + theirs)
        self.accept_length = 1 + self.accepted / self.rounds if self.rounds else 0.0
