"""Which blocks of a sparse row's list its scores chose."""

from __future__ import annotations

import numpy as np

from minicpm_mlc.ops.select_blocks import select_blocks_definition
from minicpm_mlc.runtime_py.gears import Gears

GEARS = Gears(
    "sparse", 384, budget=7, block_size=64, init_blocks=2, window_blocks=2
)  # 2 of 7 by score


def test_chosen_blocks_are_those_that_are_not_forced_at_their_own_position():
    positions = np.array([0, 7 * 64 - 1, 7 * 64, 700, 64 * 20 - 1])
    pooled = np.random.default_rng(0).random((len(positions), 3, 20))
    selected = select_blocks_definition(pooled, positions, topk=5, window_blocks=2, init_blocks=2)
    for row, position in enumerate(positions.tolist()):
        forced = GEARS.forced(position, 20)
        free = [
            block for block in selected[row].ravel().tolist() if block >= 0 and not forced[block]
        ]
        assert GEARS.chosen_by_score([selected[row]]).tolist() == free
        assert len(free) == (3 * 2 if position >= 7 * 64 else 0)
    layers = [selected, selected[:, ::-1]]
    both = [block for layer in layers for block in GEARS.chosen_by_score([layer]).tolist()]
    assert GEARS.chosen_by_score(layers).tolist() == both and len(both) == 2 * 3 * 3 * 2


def test_padding_of_dense_rows_in_a_tree_counts_as_nothing():
    rows = np.full((2, 3, 7), -1, np.int32)
    rows[1] = [0, 1, 5, 9, 17, 18, 19]
    assert GEARS.chosen_by_score([rows]).tolist() == [5, 9] * 3
