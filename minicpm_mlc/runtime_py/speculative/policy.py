"""Whether to speculate, with which drafter and how large a tree: whatever gives most tokens per
second, as measured.

All times come from outside, so that the policy can be tested on a clock of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minicpm_mlc.runtime_py.speculative.costs import (
    MAX_LEVELS,
    PAST_WEIGHT,
    Acceptance,
    Average,
    Costs,
)
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.tree import FREE_ROWS, Draft
from minicpm_mlc.runtime_py.token_tree import MAX_NODES

# What trying a drafter that did not pay may cost, as a share of the decoding time: in the long run,
# at first, and where even drafts that were accepted whole would not pay.
TRIES_SHARE = 0.005
FIRST_TRIES_SHARE = 0.05
HOPELESS_SHARE = 0.001
# decode steps that one try counts as lost at most; what took longer was slow for being the first
MAX_LOSS_STEPS = 4
FREE_LOSS_STEPS = 0.003  # decode steps: a drafter that loses no more is asked at every token
SWITCH_RATIO = 1.1  # one drafter is left for another that is this times as fast
MIN_SPEED_UP = 1.02  # a tree must be expected to be this times as fast as decoding
REFRESH_ROUNDS = 64  # at most this many rounds after a plain step was measured, another one is
ROUNDS_PER_STEP = 2  # the same per plain step measured so far, because the first ones may be slow
# the chance of each level, by kind of draft; what a model says of its own guesses is believed
PRIOR_CHANCES = {"ngram": (0.3, 0.5, 0.7, 0.85)}
TOP_K = {"ngram": 4, "eagle": 4, "draft": 1}  # guesses after a token
TREE_NODES = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64])
EXPLORE_NODES = 4  # of a tree that is not expected to pay
TRY_LEVELS = 2  # of a drafter that has not paid yet
RECHOOSE_ROUNDS = 4  # after which the best depth is chosen again
FOLLOW_TOKENS = 128  # that a drafter has seen, at least, before it is asked again
READ_TOKENS = 64  # of a text that a draft model reads until it has paid
READING_SHARE = 0.125  # of the seconds that it saved: what reading more of the text may take


@dataclass
class Backoff:
    """When to try again what did not pay: after waits that double, until trying costs a small share
    of the time.
    """

    wait: int = 1
    waited: int = 0

    def due(self) -> bool:
        """Asked once a token."""
        self.waited += 1
        return self.waited >= self.wait

    def lost(self, steps: float, hopeless: bool = False) -> None:
        """A try cost so many decode steps more than plain decoding would have."""
        soonest, latest = (
            (steps / HOPELESS_SHARE,) * 2
            if hopeless
            else (steps / FIRST_TRIES_SHARE, steps / TRIES_SHARE)
        )
        self.wait = max(1, round(min(max(2 * self.wait, soonest), latest)))
        self.waited = 0

    def won(self) -> None:
        """A try paid: it is due again at the next token."""
        self.wait = 1
        self.waited = 0


@dataclass
class Arm:
    """What is known of one drafter."""

    gain: float = 0.0  # seconds that asking it saves once the text is read, a moving average
    # seconds saved less those of reading; half of what one answer left counts in the next
    saved: float = 0.0
    asked: int = 0
    tries: Backoff = field(default_factory=Backoff)
    level: Average = field(default_factory=Average)  # seconds of drafting one level
    reading: Average = field(default_factory=Average)  # seconds of reading one token of the text
    round: Average = field(default_factory=Average)  # seconds of one round
    tokens: Average = field(default_factory=Average)  # that a round gives
    nodes: Average = field(default_factory=Average)
    depth: int = 0  # that pays best, chosen again from time to time
    acceptance: dict[int, Acceptance] = field(default_factory=dict)  # by kind of draft
    # of drafts that are not expected to pay, by kind
    checks: dict[int, Backoff] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens per second of its rounds; 0 before the first."""
        return self.tokens.value / self.round.value if self.round.value else 0.0


@dataclass(frozen=True)
class Plan:
    """What to ask of a drafter."""

    depth: int
    top_k: int
    floor: float = 0.0  # chance below which another level is not worth its time
    # most tokens to read first, where the drafter has a choice; None: as many as it likes
    read: int | None = None


@dataclass(frozen=True)
class Round:
    """One drafted step as it went; seconds of drafting, of verifying, and of the rest."""

    drafter: str
    draft: Draft  # as verified
    path: Sequence[int]  # the nodes that were accepted, the root first
    draft_seconds: float
    verify_seconds: float
    other_seconds: float = 0.0

    @property
    def accepted(self) -> int:
        """Guessed tokens that were kept."""
        return len(self.path) - 1


class Policy:
    """Figures of one engine, kept from call to call, and what follows from them."""

    def __init__(self, drafters: Sequence[str]) -> None:
        self.costs = Costs()
        self.arms = {name: Arm() for name in drafters}
        self._since_decode = 0
        self._cold = False  # whether the next plain step may be slow for coming after a prompt
        self._asleep = 0
        self._following: list[str] = []  # who must know of tokens that are slept through

    def begin(self) -> None:
        """A call begins. What the last one's text cost to read and its answer did not bring in
        again is lost.
        """
        decode = self.costs.decode.value
        for name, arm in self.arms.items():
            if decode and arm.saved < 0 and arm.reading.samples and self._worth(arm):
                arm.gain = max(arm.saved, -MAX_LOSS_STEPS * decode)
                self._note_loss(name)
            arm.saved = max(0.0, arm.saved / 2)
        self._cold = True

    def sleeps(self, options: Speculation) -> bool:
        """Whether this token is to be decoded plainly, with nothing asked or measured; asked first,
        once a token.
        """
        if not self._asleep or options.speculate != "auto":
            return False
        self._asleep -= 1
        return True

    def following(self, options: Speculation) -> Iterable[str]:
        """Who must know of the tokens that are cached now."""
        return self._following if self._asleep and options.speculate == "auto" else self.arms

    def drafters(self, options: Speculation) -> list[str]:
        """Whom to ask at this token, in this order; asked once a token that isn't slept through."""
        if options.speculate == "off" or options.tree_size == 1:
            return []  # a tree of its root alone is a plain step
        size_is_given = options.tree_size is not None
        measured = self.costs.decode.samples
        if measured < 2 or self._since_decode >= min(REFRESH_ROUNDS, ROUNDS_PER_STEP * measured):
            return [options.speculate] if size_is_given and options.speculate != "auto" else []
        if options.speculate != "auto":
            return [options.speculate]
        names = [name for name, arm in self.arms.items() if self._worth(arm) or arm.tries.due()]
        if not names:
            self._sleep()
        return names

    def _sleep(self) -> None:
        """Until just before the next of the drafters is due; those that are due soon after it go on
        following the text.
        """
        left = {name: arm.tries.wait - arm.tries.waited for name, arm in self.arms.items()}
        self._asleep = max(0, min(left.values(), default=REFRESH_ROUNDS) - 1)
        self._following = [
            name for name, tokens in left.items() if tokens - self._asleep < FOLLOW_TOKENS
        ]
        for arm in self.arms.values():
            arm.tries.waited += self._asleep

    def plan(self, name: str, options: Speculation) -> Plan:
        """How deep and how wide to draft: as asked, else what is expected to give most tokens per
        second.
        """
        arm = self.arms[name]
        top_k = options.draft_top_k or TOP_K[name]
        if name == "ngram":
            return Plan(options.draft_depth or MAX_LEVELS, top_k)
        trying = options.speculate == "auto" and arm.gain <= 0
        depth = min(
            options.draft_depth or (TRY_LEVELS if trying else self._best_depth(arm)),
            1 + MAX_NODES // top_k,
        )
        fixed = options.draft_depth is not None or not self.costs.decode.value
        floor = 0.0 if fixed else min(0.5, arm.level.value / self.costs.decode.value)
        return Plan(depth, top_k, floor, self._may_read(name, options))

    def _may_read(self, name: str, options: Speculation) -> int | None:
        """Few tokens to learn what they cost, then the end of the text, then more for part of what
        was saved.
        """
        arm = self.arms[name]
        if name != "draft" or options.speculate != "auto":
            return None
        if not arm.reading.samples:
            return FREE_ROWS
        paid = READING_SHARE * arm.saved / max(arm.reading.value, 1e-9) if self._worth(arm) else 0.0
        return max(READ_TOKENS, int(paid))

    def cut(self, name: str, draft: Draft, options: Speculation, room: int) -> Draft | None:
        """The part of a draft that is worth verifying, of at most `room` nodes; None: decode
        plainly.
        """
        forced = options.speculate != "auto"
        arm = self.arms[name]
        draft = draft.likeliest(MAX_NODES)
        limit = min(room, len(draft.tree), options.tree_size or MAX_NODES)
        if limit < 2:
            return None
        if options.tree_size is not None:
            return draft.likeliest(limit)
        reach = self._acceptance(arm, name, draft.kind).reach(draft)
        sizes = TREE_NODES[(TREE_NODES <= limit) & (TREE_NODES > 1)]
        tokens = np.cumsum(np.sort(reach)[::-1])[sizes - 1]
        seconds = self.costs.verify(sizes)
        best = int(np.argmax(tokens / (seconds + arm.level.value)))
        pays = tokens[best] * self.costs.decode.value >= MIN_SPEED_UP * seconds[best]
        if pays or forced:
            return draft.likeliest(int(sizes[best]), reach)
        if arm.checks.setdefault(draft.kind, Backoff()).due():
            return draft.likeliest(min(EXPLORE_NODES, limit), reach)
        return None

    def prefers_another(self, name: str, draft: Draft) -> bool:
        """Whether a drafter that is asked after this one has been faster than this draft is
        expected to be.
        """
        later = list(self.arms)[list(self.arms).index(name) + 1 :]
        expected = self._acceptance(self.arms[name], name, draft.kind).reach(draft).sum()
        rate = expected / float(self.costs.verify(np.array([len(draft.tree)]))[0])
        return any(
            self.arms[other].rate > SWITCH_RATIO * rate
            for other in later
            if self._worth(self.arms[other])
        )

    def decoded(self, seconds: float) -> None:
        """One plain step."""
        if self._cold:
            self._cold = False
            return
        if 2 * seconds < self.costs.decode.value:
            # what was measured before was held up, so no gain over it was real
            self.costs.decode = Average()
            for arm in self.arms.values():
                arm.gain = min(arm.gain, 0.0)
        self.costs.decode.add(seconds)
        self._since_decode = 0

    def drafted(self, name: str, draft: Draft | None, seconds: float) -> None:
        """A drafter was asked and took so long; its draft may be verified or not."""
        arm = self.arms[name]
        if draft is None:
            return
        levels = draft.levels - (draft.reading > 0)
        if levels:
            arm.level.add((seconds - draft.reading) / levels)
        if (
            draft.read_tokens >= FREE_ROWS and arm.asked
        ):  # the first time is slow for being the first
            arm.reading.add(draft.read_seconds / draft.read_tokens)
        arm.saved -= draft.reading

    def missed(self, name: str, seconds: float) -> None:
        """A drafter was asked for nothing; the seconds are without reading."""
        self._note_gain(name, -seconds)

    def finished(self, round: Round) -> None:
        """A tree was verified and its path committed."""
        arm = self.arms[round.drafter]
        decode = self.costs.decode.value
        self._since_decode += 1
        spent = self.costs.verified(
            len(round.draft.tree), round.verify_seconds + round.other_seconds
        )
        self._acceptance(arm, round.drafter, round.draft.kind).add(round.draft, round.accepted)
        drafting = round.draft_seconds - round.draft.reading
        arm.round.add(spent + drafting)
        arm.tokens.add(round.accepted + 1)
        arm.nodes.add(len(round.draft.tree))
        if not decode:
            return
        saved = (round.accepted + 1) * decode - spent
        check = arm.checks.setdefault(round.draft.kind, Backoff())
        check.won() if saved > 0 else check.lost(min(MAX_LOSS_STEPS, -saved / decode))
        self._note_gain(round.drafter, saved - drafting)

    def describe(self) -> str:
        """What was decided, and the speed of each drafter that was tried against plain decoding."""
        speeds = {
            name: arm.rate * self.costs.decode.value for name, arm in self.arms.items() if arm.rate
        }
        tried = ", ".join(
            f"{name} {speed:.2f}x with {self.arms[name].nodes.value:.0f} nodes"
            for name, speed in speeds.items()
        )
        on = [name for name in speeds if self._worth(self.arms[name])]
        return (
            f"{max(on, key=lambda name: speeds[name]) if on else 'off'} "
            f"({tried or 'nothing drafted yet'})"
        )

    def _note_gain(self, name: str, gain: float) -> None:
        arm = self.arms[name]
        decode = self.costs.decode.value
        arm.saved += gain
        gain = max(gain, -MAX_LOSS_STEPS * decode)
        was_good = self._worth(arm)
        arm.asked += 1
        keep = min(PAST_WEIGHT, 1 - 1 / arm.asked)
        arm.gain = gain if gain > 0 and not was_good else keep * arm.gain + (1 - keep) * gain
        if not decode:
            return
        if not self._worth(arm):
            self._note_loss(name)
        elif arm.saved >= 0:
            arm.tries.won()

    def _note_loss(self, name: str) -> None:
        """The next try has to wait for what this one cost, and for what it will have to read."""
        arm = self.arms[name]
        lost = READ_TOKENS * arm.reading.value - arm.gain
        arm.tries.lost(lost / self.costs.decode.value, self._hopeless(name))

    def _hopeless(self, name: str) -> bool:
        """Whether even chains that are accepted whole are not worth the time of a drafter that runs
        a model.
        """
        arm = self.arms[name]
        if name == "ngram" or arm.level.samples < 2:
            return False
        depths = np.arange(1, MAX_LEVELS // 2 + 1)
        seconds = depths * arm.level.value + self.costs.verify(depths + 1)
        return bool(((depths + 1) * self.costs.decode.value < MIN_SPEED_UP * seconds).all())

    def _worth(self, arm: Arm) -> bool:
        return arm.gain >= -FREE_LOSS_STEPS * self.costs.decode.value

    def _acceptance(self, arm: Arm, name: str, kind: int) -> Acceptance:
        if kind not in arm.acceptance:
            priors = PRIOR_CHANCES.get(name)
            arm.acceptance[kind] = Acceptance(priors[kind] if priors else 1.0)
        return arm.acceptance[kind]

    def _best_depth(self, arm: Arm) -> int:
        """Of 1 to MAX_LEVELS / 2 levels, those with most tokens per second; before anything was
        measured, 4.
        """
        if not arm.acceptance:
            return 4
        if arm.depth and arm.round.samples % RECHOOSE_ROUNDS:
            return arm.depth
        depths = np.arange(1, MAX_LEVELS // 2 + 1)
        tokens = np.cumsum(arm.acceptance[0].survival())[depths]
        seconds = depths * arm.level.value + self.costs.verify(
            np.array([max(2.0, arm.nodes.value)])
        )
        arm.depth = int(depths[np.argmax(tokens / np.maximum(seconds, 1e-9))])
        return arm.depth
