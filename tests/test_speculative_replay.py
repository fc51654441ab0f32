"""Recorded acceptance: what is written is read back, what is damaged is refused, and a replay
follows the record.
"""

from __future__ import annotations

from pathlib import Path

import acceptance
import numpy as np
import pytest

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bench.replay import Record, Replay, ReplayError
from minicpm_mlc.runtime_py.speculative.ngram import NgramDrafter
from minicpm_mlc.runtime_py.speculative.policy import Round
from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree


def round_of(parents: list[int], path: list[int]) -> Round:
    draft = Draft(Tree(list(range(len(parents))), parents), np.linspace(1, 0.5, len(parents)))
    return Round("eagle", draft, path, 0.1, 0.2, 0.3)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    record = Record("eagle", draft_depth=3, draft_top_k=2, source="a test")
    record.add(round_of([-1, 0, 1, 0], [0, 1, 2]))
    record.write(tmp_path / "r.json")
    assert Record.read(tmp_path / "r.json") == record
    assert (record.options.speculate, record.options.tree_size) == ("eagle", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a record"),
        ('{"drafter": "eagle", "size": 3}', "not a record"),
        ('{"drafter": "eagle", "trees": [[-1, 0]], "paths": [[1]]}', "do not lead through"),
        ('{"drafter": "eagle", "trees": [[-1, 0]], "paths": [[0, 7]]}', "do not lead through"),
        ('{"drafter": "eagle", "trees": [], "paths": []}', "do not lead through"),
        ('{"drafter": "medusa", "trees": [[-1, 0]], "paths": [[0]]}', "speculate is 'medusa'"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(MiniCPMError, match=message):
        Record.read(tmp_path / "r.json")
    with pytest.raises(ReplayError, match="there is no record"):
        Record.read(tmp_path / "none.json")


def test_a_replay_follows_the_recorded_path_and_then_leaves_the_tree() -> None:
    record = Record("ngram", [[-1, 0, 1, 0], [-1, 0]], [[0, 1, 2], [0]])
    replay = Replay(record, NgramDrafter(), vocab_size=50)
    for parents, path in zip(record.trees * 2, record.paths * 2, strict=True):
        draft = replay.draft(np.array([5, 6, 5], np.int32), 4, 2, 0.0)
        assert draft is not None and list(draft.tree.parents) == parents
        tokens = [replay.next(None, 0) for _ in path]  # type: ignore[arg-type]
        node = 0
        for token in tokens[:-1]:
            node = draft.tree.children[node, token]
        assert node == path[-1] and (node, tokens[-1]) not in draft.tree.children


def test_a_record_of_published_rates_has_these_rates(tmp_path: Path) -> None:
    record = acceptance.record([0.58, 0.34, 0.22])
    lengths = np.array([len(path) - 1 for path in record.paths])
    assert [float((lengths >= depth).mean()) for depth in (1, 2, 3)] == [0.58, 0.34, 0.22]
    record.write(tmp_path / "r.json")
    options = Record.read(tmp_path / "r.json").options
    assert (options.tree_size, options.draft_depth, options.draft_top_k) == (4, 3, 1)
    with pytest.raises(SystemExit, match="fall with the depth"):
        acceptance.record([0.3, 0.5])


def test_figures_of_several_answers_add_up() -> None:
    first, second = SpeculationStats(), SpeculationStats()
    first.add(round_of([-1, 0, 1, 0], [0, 1, 2]), 0.1)
    second.add(round_of([-1, 0], [0]), 0.1)
    first.merge(second)
    assert (first.rounds, first.accepted, first.accept_length, first.drafters) == (
        2,
        2,
        2.0,
        {"eagle": 2},
    )
    assert (first.drafted_at, first.accepted_at) == ([2, 1], [1, 1])
