"""The policy on a clock of its own: it finds what pays, leaves what doesn't, and what it tries
costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.runtime_py.speculative.costs import Acceptance, Average, Costs
from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.policy import Backoff, Policy, Round
from minicpm_mlc.runtime_py.speculative.tree import FREE_ROWS, Draft, Tree

AUTO = Speculation()


def chain(depth: int, reach: float = 0.9, kind: int = 0) -> Draft:
    return Draft(
        Tree(list(range(depth + 1)), list(range(-1, depth))),
        reach ** np.arange(depth + 1),
        kind,
        levels=depth,
    )


@dataclass
class World:
    """A model and drafters whose times and acceptance are known. Times in decode steps."""

    row: float = 0.1  # a row more in a verification
    draft_seconds: dict[str, float] | None = None  # per level, of each drafter
    accept: Callable[[str, int], float] = lambda name, token: (
        0.0
    )  # the chance of each level, at token n
    finds: float = 1.0  # how often the n-gram drafter has something
    seed: int = 0
    prompt: int = 0  # tokens of the text that a draft model has to read
    read: float = 0.0  # reading one of them

    def run(self, policy: Policy, tokens: int, options: Speculation = AUTO) -> float:
        """Seconds that one answer of so many tokens takes; plain decoding takes one each."""
        random, seconds, done = np.random.default_rng(self.seed), 0.0, 0
        self.first = self.known = (
            self.prompt
        )  # the text that the draft model has read: from `first`, up to `known`
        policy.begin()
        while done < tokens:
            seconds, gained = self._step(policy, options, random, seconds, done)
            done += gained
        return seconds * tokens / done

    def _step(self, policy, options, random, seconds: float, done: int) -> tuple[float, int]:
        if policy.sleeps(options):
            return seconds + 1, 1
        names = policy.drafters(options)
        for name in names:
            plan = policy.plan(name, options)
            depth = min(plan.depth, 16)
            cost = (self.draft_seconds or {}).get(name, 0.0) * (1 if name == "ngram" else depth)
            draft = (
                chain(depth, 1.0 if name == "ngram" else 0.9)
                if random.random() < self.finds
                else None
            )
            if name == "draft" and draft:
                draft = self._reading(draft, self.prompt + done + 1, plan.read)
                cost += draft.read_seconds
            seconds += cost
            policy.drafted(name, draft, cost)
            cut = draft and policy.cut(name, draft, options, 64)
            if cut and not (len(names) > 1 and policy.prefers_another(name, cut)):
                hits = random.random(depth) < self.accept(name, done)
                levels = int(cut.tree.depths.max())
                accepted = int(np.append(hits[:levels], False).argmin())
                verify = 1 + self.row * (len(cut.tree) - 1)
                policy.finished(Round(name, cut, range(accepted + 1), cost, verify))
                return seconds + verify, accepted + 1
            policy.missed(name, cost - (draft.reading if draft else 0.0))
        policy.decoded(1.0)
        return seconds + 1, 1

    def _reading(self, draft: Draft, length: int, read: int | None) -> Draft:
        """The draft of a model that reads what it may of a text of so many tokens, as ModelDrafter
        does.
        """
        read = length if read is None else min(read, length)
        if length - self.known > read or (
            self.first and read >= min(length, 2 * (length - self.first))
        ):
            self.first = self.known = length - read
        unread, self.known = length - self.known, length
        return replace(draft, read_tokens=unread, read_seconds=unread * self.read)


NGRAM = {"ngram": 0.002}


@pytest.mark.parametrize("row", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("lookup", [0.0001, 0.002, 0.1])
def test_what_is_never_accepted_costs_two_percent_at_most(row: float, lookup: float) -> None:
    policy = Policy(["ngram"])
    world = World(row, {"ngram": lookup})
    world.run(policy, 200)
    assert world.run(policy, 2000) < 2000 * 1.02


def test_a_head_that_does_not_pay_costs_two_percent_at_most() -> None:
    policy = Policy(["ngram", "eagle"])
    world = World(0.2, {"ngram": 0.01, "eagle": 0.5}, lambda name, _: 0.1)
    world.run(policy, 500)
    assert world.run(policy, 2000) < 2000 * 1.02
    assert policy.describe().startswith("off")


@pytest.mark.parametrize("level", [0.3, 1.5, 8.0])
def test_a_slow_head_costs_a_percent_of_the_next_short_answers(level: float) -> None:
    """Where a level takes longer than a token, two tries tell: the first may be slow for being the
    first.
    """
    policy = Policy(["ngram", "eagle"])
    world = World(0.1, {"ngram": 0.01, "eagle": level})
    first = world.run(policy, 64)
    assert first < 64 * 1.12 + 2 * level
    assert sum(world.run(policy, 64) for _ in range(5)) < 5 * 64 * 1.03 + 2 * level


@pytest.mark.parametrize("level", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("read", [0.005, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("answer", [32, 128])
def test_a_draft_model_that_is_never_right_costs_two_percent_of_answers_to_long_prompts(
    level, read, answer
) -> None:
    """From the very first try on; reading the whole prompt once costs up to 1200 tokens here."""
    policy = Policy(["ngram", "draft"])
    world = World(0.1, {"ngram": 0.01, "draft": level}, prompt=4000, read=read)
    assert sum(world.run(policy, answer) for _ in range(2048 // answer)) < 2048 / 0.98


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("read", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("answer", [8, 32, 512])
def test_a_draft_model_is_left_where_its_answers_do_not_pay_for_reading(
    chance, read, answer
) -> None:
    policy = Policy(["draft"])
    world = World(0.1, {"draft": 0.1}, lambda *_: chance, prompt=4000, read=read)
    assert sum(world.run(policy, answer) for _ in range(4096 // answer)) < 4096 / 0.98


def test_a_draft_model_that_pays_sees_more_of_a_long_text() -> None:
    policy, seen, seconds = Policy(["draft"]), [], 0.0
    world = World(0.1, {"draft": 0.1}, lambda *_: 0.85, prompt=4000, read=0.02)
    for answer in (64, 512, 512, 512):
        seconds += world.run(policy, answer)
        seen.append(world.known - world.first)
    assert seen[0] < 200 and seen[-1] > 1000 and seconds < 1600 / 1.6


def test_a_draft_model_that_is_asked_for_reads_all() -> None:
    policy = Policy(["draft"])
    assert policy.plan("draft", Speculation("draft")).read is None
    assert policy.plan("draft", AUTO).read == FREE_ROWS


def test_what_was_read_on_demand_does_not_keep_auto_from_trying() -> None:
    policy = Policy(["draft"])
    world = World(0.1, {"draft": 0.05}, lambda *_: 0.8, prompt=4000, read=0.1)
    world.run(policy, 8, Speculation("draft", tree_size=4))  # before a plain step was measured
    world.run(policy, 32, Speculation("draft"))
    policy.begin()
    assert policy.arms["draft"].tries.wait < 500


def test_a_tree_of_one_node_is_plain_decoding() -> None:
    for name in ("eagle", "auto"):
        policy = Policy(["eagle"])
        assert policy.drafters(Speculation(name, tree_size=1)) == []
        assert World(0.1, {"eagle": 5.0}).run(policy, 100, Speculation(name, tree_size=1)) == 100


def test_the_first_answer_too_loses_little() -> None:
    assert World(0.1, NGRAM).run(Policy(["ngram"]), 200) < 200 * 1.08


def test_copying_gets_deep_trees_and_little_luck_gets_small_ones() -> None:
    lucky, unlucky = Policy(["ngram"]), Policy(["ngram"])
    assert World(0.1, NGRAM, lambda *_: 0.95).run(lucky, 2000) < 2000 / 3
    assert World(0.1, NGRAM, lambda *_: 0.4).run(unlucky, 2000) < 2000 / 1.1
    assert lucky.arms["ngram"].nodes.value > 10 > 5 > unlucky.arms["ngram"].nodes.value


def test_rows_that_cost_as_much_as_steps_are_not_wasted() -> None:
    policy = Policy(["ngram"])
    world = World(1.0, NGRAM, lambda *_: 0.6)
    world.run(policy, 500)
    assert world.run(policy, 2000) < 2000 * 1.02


def test_speculation_comes_back_when_a_text_begins_to_copy() -> None:
    policy = Policy(["ngram"])
    World(0.1, NGRAM).run(policy, 3000)
    assert World(0.1, NGRAM, lambda *_: 0.95).run(policy, 1000) < 1000 / 2


def test_the_faster_of_two_drafters_is_used() -> None:
    for best, other in (("eagle", "ngram"), ("ngram", "eagle")):
        policy = Policy(["ngram", "eagle"])
        world = World(
            0.05,
            {"ngram": 0.002, "eagle": 0.05},
            lambda name, _, best=best: 0.85 if name == best else 0.2,
        )
        world.run(policy, 500)
        rounds = {name: policy.arms[name].round.samples for name in policy.arms}
        world.run(policy, 1000)
        used = {name: policy.arms[name].round.samples - rounds[name] for name in policy.arms}
        assert used[best] > 5 * used[other], (best, used)


def test_a_good_head_drafts_deeper_than_a_poor_one() -> None:
    depths = []
    for chance in (0.3, 0.95):
        policy = Policy(["eagle"])
        World(0.02, {"eagle": 0.05}, lambda *_, chance=chance: chance).run(policy, 1000)
        depths.append(policy.plan("eagle", AUTO).depth)
    assert depths[0] <= 3 and depths[1] >= 7


def test_a_forced_drafter_is_used_whatever_it_costs() -> None:
    policy = Policy(["ngram"])
    World(3.0, NGRAM).run(policy, 200, Speculation("ngram"))
    assert policy.arms["ngram"].round.samples > 150


def test_forced_sizes_are_kept() -> None:
    policy = Policy(["eagle"])
    options = Speculation("eagle", tree_size=7, draft_depth=3, draft_top_k=2)
    plan = policy.plan("eagle", options)
    assert (plan.depth, plan.top_k, plan.floor) == (3, 2, 0.0)
    cut = policy.cut("eagle", chain(12), options, 64)
    assert cut is not None and len(cut.tree) == 7
    assert policy.cut("eagle", chain(12), options, 1) is None  # no room for more than the root


def test_waits_double_until_trying_costs_a_two_hundredth() -> None:
    backoff, waits = Backoff(), []
    for _ in range(7):
        backoff.lost(0.25)
        waits.append(sum(1 for _ in iter(backoff.due, True)) + 1)
    assert waits == [5, 10, 20, 40, 50, 50, 50]
    backoff.lost(0.25, hopeless=True)
    assert backoff.wait == 250
    backoff.won()
    assert backoff.due()


def test_a_try_that_was_slow_for_being_the_first_is_soon_repeated() -> None:
    """Tokens are given memory when a size of tree is new; a text that copies is found out all the
    same.
    """
    policy, draft = Policy(["ngram"]), chain(3, 1.0)
    for _ in range(3):
        policy.decoded(1.0)
    policy.finished(Round("ngram", draft, range(4), 0.1, 30.0))
    assert policy.drafters(AUTO) == ["ngram"]  # four tokens were worth it, were they not so slow
    policy.finished(Round("ngram", chain(5, 1.0), range(1), 0.1, 30.0))
    assert policy.arms["ngram"].tries.wait <= 4 / 0.05


def test_plain_steps_that_were_slow_at_first_do_not_make_trees_look_good_for_long() -> None:
    policy = Policy(["eagle"])
    for _ in range(2):
        policy.decoded(4.0)
    world = World(0.3, {"eagle": 0.5}, lambda *_: 0.3)
    assert world.run(policy, 200) < 200 * 1.2
    assert world.run(policy, 200) < 200 * 1.03


def test_the_step_after_a_prompt_is_no_measure() -> None:
    policy = Policy(["eagle"])
    policy.begin()
    policy.decoded(100.0)
    policy.decoded(1.0)
    assert policy.costs.decode.value == 1.0


def test_between_tries_nothing_is_asked_and_who_is_due_follows_the_text() -> None:
    policy = Policy(["ngram", "eagle"])
    for _ in range(3):
        policy.decoded(1.0)
    policy.arms["ngram"].gain = policy.arms["eagle"].gain = -1.0
    policy.arms["ngram"].tries, policy.arms["eagle"].tries = Backoff(50), Backoff(1000)
    assert policy.drafters(AUTO) == []
    assert list(policy.following(AUTO)) == ["ngram"]
    assert list(policy.following(Speculation("eagle"))) == ["ngram", "eagle"]
    assert sum(1 for _ in iter(lambda: policy.sleeps(AUTO), False)) == 48
    assert policy.drafters(AUTO) == ["ngram"]
    assert policy.arms["eagle"].tries.waited == 50
    assert policy.drafters(Speculation("eagle")) == ["eagle"]  # what is asked for never sleeps


def test_a_head_whose_levels_take_longer_than_tokens_is_hardly_tried() -> None:
    policy = Policy(["eagle"])
    World(0.1, {"eagle": 1.2}).run(policy, 500)
    assert policy.arms["eagle"].tries.wait > 1000
    policy = Policy(["eagle"])
    World(0.1, {"eagle": 0.2}).run(policy, 500)
    assert policy.arms["eagle"].tries.wait < 300


def test_one_hiccup_moves_an_average_little() -> None:
    average = Average()
    for sample in [1.0] * 10 + [100.0]:
        average.add(sample)
    assert average.value < 1.3


def test_verification_costs_are_read_between_and_beyond_what_was_measured() -> None:
    costs = Costs()
    costs.decode.add(1.0)
    np.testing.assert_allclose(
        costs.verify(np.array([1, 11])), [1, 2]
    )  # 0.1 of a step a row, until measured
    costs.verified(5, 2.0)
    costs.verified(9, 4.0)
    np.testing.assert_allclose(costs.verify(np.array([3, 7, 11])), [1.5, 3.0, 5.0])


def test_acceptance_corrects_what_a_drafter_says() -> None:
    acceptance = Acceptance(1.0)
    for accepted in [0, 1] * 40:
        acceptance.add(chain(3, 0.9), accepted)
    reach = acceptance.reach(chain(3, 0.9))
    assert 0.3 < reach[1] < 0.7 and reach[2] < 0.15 and (np.diff(reach) <= 0).all()
    survival = acceptance.survival()
    assert 0.3 < survival[1] < 0.7 and survival[8] < 0.05


def test_a_range_is_named() -> None:
    with pytest.raises(SamplingError, match="tree_size is 100"):
        Speculation(tree_size=100)
