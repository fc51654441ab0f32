"""native/engine's policy of speculation beside Python's, on the same made-up times: the same
decisions.
"""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_process import built

from minicpm_mlc.runtime_py.speculative.options import Speculation
from minicpm_mlc.runtime_py.speculative.policy import Policy, Round
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

PROGRAM = Path(__file__).with_name("engine_policy.cc")
NAMES = ["ngram", "eagle"]


class Native:
    """engine_policy.cc in a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(built(PROGRAM))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *words: object) -> str:
        assert self._process.stdin and self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def words(options: Speculation) -> str:
    sizes = (options.tree_size, options.draft_depth, options.draft_top_k)
    return " ".join([options.speculate, *(str(size or 0) for size in sizes)])


def written(draft: Draft) -> str:
    nodes = zip(draft.tree.parents, draft.reach.tolist(), strict=True)
    rows = " ".join(f"{parent} {reach!r}" for parent, reach in nodes)
    heads = (draft.kind, draft.levels, draft.read_tokens, repr(draft.read_seconds))
    return " ".join([*map(str, heads), str(len(draft.tree)), rows])


def drafted(draw: random.Random, name: str, depth: int, top_k: int) -> Draft:
    """A tree of a few levels, its nodes' numbers for tokens."""
    parents, reach, level = [-1], [1.0], [0]
    levels = draw.randint(1, min(depth, 16))
    for _ in range(levels):
        after: list[int] = []
        for node in level[:top_k]:
            for _ in range(draw.randint(1, top_k)):
                after.append(len(parents))
                parents.append(node)
                reach.append(reach[node] * draw.uniform(0.3, 1))
        level = after
    kind = draw.randrange(4) if name == "ngram" else 0
    read = draw.choice([1, 1, 1, 3, 90]) if name == "eagle" else 0
    tree = Tree(list(range(len(parents))), parents)
    return Draft(tree, np.array(reach), kind, levels, read, read * 1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("asked", ["auto 0 0 0", "eagle 0 0 0", "ngram 0 0 2", "eagle 12 4 3"])
def test_the_same_decisions(seed: int, asked: str) -> None:
    speculate, *sizes = asked.split()
    options = Speculation(speculate, *(int(size) or None for size in sizes))
    draw = random.Random(f"{seed} {asked}")
    step = draw.choice([0.01, 0.03])  # seconds of a plain one; a row more costs a share of it
    share = draw.choice([0.01, 0.1, 0.6])
    native, python = Native(), Policy(NAMES)
    for token in range(250):
        if token % 60 == 0:
            native("begin")
            python.begin()
        sleeps = python.sleeps(options)
        assert native("sleeps", asked) == str(int(sleeps))
        following = [NAMES.index(name) for name in python.following(options)]
        assert native("following", asked) == str(following)
        if sleeps:
            continue
        names = python.drafters(options)
        assert native("due", asked) == str([NAMES.index(name) for name in names])
        if not any(
            propose(native, python, options, draw, name, names, step, share) for name in names
        ):
            spent = step * draw.uniform(0.9, 1.2)
            python.decoded(spent)
            native("decoded", repr(spent))
    assert native("describe") == python.describe()
    native.close()


def propose(
    native: Native,
    python: Policy,
    options: Speculation,
    draw: random.Random,
    name: str,
    names: list[str],
    step: float,
    share: float,
) -> bool:
    """One drafter is asked; whether its tree was verified."""
    i = NAMES.index(name)
    plan = python.plan(name, options)
    depth, top_k, floor = native("plan", i, words(options)).split()
    assert (int(depth), int(top_k)) == (plan.depth, plan.top_k)
    assert float(floor) == pytest.approx(plan.floor, rel=1e-4)
    draft = drafted(draw, name, plan.depth, plan.top_k)
    spent = draft.read_seconds + (1e-5 if name == "ngram" else 0.1 * step * draft.levels)
    python.drafted(name, draft, spent)
    native("drafted", i, repr(spent), written(draft))
    cut = python.cut(name, draft, options, 64)
    found = native("cut", i, 64, words(options), written(draft))
    assert found == ("none" if cut is None else str(list(cut.tree.token_ids)))
    if cut is not None:
        # as numbers from the root on again, for the other side to read
        cut = replace(cut, tree=Tree(list(range(len(cut.tree))), cut.tree.parents))
        other = len(names) > 1 and python.prefers_another(name, cut)
        if len(names) > 1:
            assert native("prefers", i, written(cut)) == str(int(other))
        if not other:
            accepted = draw.randint(0, int(cut.tree.depths.max()))
            verified = step * (1 + share * len(cut.tree)) * draw.uniform(0.9, 1.1)
            python.finished(Round(name, cut, range(accepted + 1), spent, verified, 1e-4))
            native("finished", i, repr(spent), repr(verified), 1e-4, accepted, written(cut))
            return True
    missed = spent - draft.reading
    python.missed(name, missed)
    native("missed", i, repr(missed))
    return False
