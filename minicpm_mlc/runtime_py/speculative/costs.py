"""What speculation costs and what it yields, measured while it runs: moving averages of seconds and
of acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from minicpm_mlc.runtime_py.speculative.tree import Draft

MAX_LEVELS = 16  # of a draft tree
PAST_WEIGHT = 0.9  # of the past in a moving average
OUTLIER_RATIO = 3.0  # a sample counts at most this many times what is expected
SLOPE_STEPS = 0.1  # decode steps that one more row costs while only one number of rows was measured


@dataclass
class Average:
    """A moving average of seconds; a sample counts at most OUTLIER_RATIO times the average, so that
    no outlier decides.
    """

    value: float = 0.0
    samples: int = 0

    def add(self, sample: float) -> None:
        """Counts a sample, in seconds."""
        self.samples += 1
        keep = min(PAST_WEIGHT, 1 - 1 / self.samples)
        highest = OUTLIER_RATIO * self.value if self.value else sample
        self.value = keep * self.value + (1 - keep) * min(sample, highest)


@dataclass
class Costs:
    """Seconds of a plain decode step, and of verifying trees by their number of nodes."""

    decode: Average = field(default_factory=Average)
    _verify: dict[int, Average] = field(default_factory=dict)

    def verified(self, nodes: int, seconds: float) -> float:
        """Counts a sample, and returns it; the first one of a size may be three times what was
        expected, and is cut there.

        A library takes memory when a size is new, and a draft must not look bad for that.
        """
        if nodes not in self._verify and self.decode.samples:
            seconds = min(seconds, OUTLIER_RATIO * float(self.verify(np.array([nodes]))[0]))
        self._verify.setdefault(nodes, Average()).add(seconds)
        return seconds

    def verify(self, nodes: np.ndarray) -> np.ndarray:
        """Seconds to verify trees of that many nodes each: measured, between two measured ones, or
        beyond them.
        """
        points = {1: self.decode.value} | {
            n: average.value for n, average in sorted(self._verify.items())
        }
        known = np.array(list(points), float)
        seconds = np.maximum.accumulate(list(points.values()))
        slope = SLOPE_STEPS * self.decode.value
        if len(known) > 2:
            slope = max(
                (seconds[-1] - seconds[1]) / (known[-1] - known[1]), 0.01 * self.decode.value
            )
        return np.interp(nodes, known, seconds) + slope * np.maximum(0, nodes - known[-1])


class Acceptance:
    """How often each level of one kind of draft is accepted, and how that compares with what its
    drafter said.
    """

    def __init__(self, prior: float) -> None:
        """`prior`: the chance of each level, times what the drafter says, before anything was
        seen.
        """
        self._accepted = prior ** np.arange(MAX_LEVELS + 1)
        self._said = np.ones(MAX_LEVELS + 1)
        self._drafted = np.zeros(MAX_LEVELS + 1)
        self._prior = 1.0  # the weight that the prior has left

    def add(self, draft: Draft, accepted: int) -> None:
        """A tree was verified and followed `accepted` levels down."""
        said = np.bincount(draft.tree.depths, draft.reach)
        self._prior *= PAST_WEIGHT
        for total, sample in (
            (self._said, said),
            (self._accepted, np.arange(len(said)) <= accepted),
            (self._drafted, 1),
        ):
            total *= PAST_WEIGHT
            total[: len(said)] += sample

    def reach(self, draft: Draft) -> np.ndarray:
        """The draft's chances in the light of what was accepted, float64 [n], at most those of the
        parent.
        """
        reach = (
            draft.reach * self._continued(self._accepted / self._said)[draft.tree.depths]
        ).tolist()
        reach[0] = 1.0
        for node, parent in enumerate(draft.tree.parents[1:], 1):
            reach[node] = min(reach[node], reach[parent])
        return np.array(reach)

    def survival(self) -> np.ndarray:
        """The share of drafts that were accepted down to each depth, float64 [MAX_LEVELS + 1]."""
        shares = np.minimum(self._accepted / (self._drafted + self._prior), 1.0)
        return np.minimum.accumulate(self._continued(shares))

    def _continued(self, values: np.ndarray) -> np.ndarray:
        """Values by depth; those of depths that were not drafted lately go on as from the two
        before them.
        """
        for depth in range(2, MAX_LEVELS + 1):
            if self._drafted[depth] < 1:
                values[depth] = values[depth - 1] ** 2 / max(values[depth - 2], 1e-9)
        return values
