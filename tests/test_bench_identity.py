"""What bench/speculation_identity.py draws: every setting meets every other, and enough answers
shift the gear.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import speculation_identity as identity

CASES = list(identity.cases(2000, 0))


def test_the_same_seed_draws_the_same_cases() -> None:
    assert list(identity.cases(2000, 0)) == CASES != list(identity.cases(2000, 1))


@pytest.mark.parametrize("one", ["head", "scheme", "gear", "drafter"])
def test_each_setting_meets_every_skill_and_trees_of_all_sizes(one: str) -> None:
    skills, sizes, others = defaultdict(set), defaultdict(set), defaultdict(set)
    for case in CASES:
        skills[getattr(case, one)].add(case.skill)
        sizes[getattr(case, one)].add(case.tree_size)
        others[getattr(case, one)].add((case.head, case.scheme, case.gear, case.drafter))
    cells = len(identity.HEADS) * len(identity.OTHER) * len(identity.GEARS) * len(identity.DRAFTERS)
    assert all(len(seen) == len(identity.SKILLS) for seen in skills.values())
    assert all(
        len(seen) == identity.LARGEST + 1 for seen in sizes.values()
    )  # all sizes, and none given
    assert sum(len(seen) for seen in others.values()) == cells


def test_a_cell_sees_several_skills_and_much_is_asked_to_cross() -> None:
    cells = defaultdict(set)
    for case in CASES:
        cells[case.row].add(case.skill)
    assert min(map(len, cells.values())) >= 5
    crossing = Counter(case.skill for case in CASES if case.gear == "crossing")
    assert crossing.total() > 900 and len(crossing) == len(identity.SKILLS)


def test_a_prompt_is_fitted_to_a_length_behind_its_first_token() -> None:
    assert identity.fitted([1, 2, 3], 5, [7, 8, 9]) == [1, 7, 8, 2, 3]
    assert identity.fitted([1, 2, 3, 4, 5], 3, []) == [1, 4, 5]
    assert identity.fitted([1, 2, 3], 3, [7]) == [1, 2, 3]
