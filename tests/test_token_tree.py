"""Depths and ancestor masks of token trees."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minicpm_mlc.ops.formats.tree import ancestor_masks
from minicpm_mlc.runtime_py.token_tree import mask_words, tree_shape

TREES = st.lists(st.integers(0, 63), max_size=63).map(
    lambda picks: [-1, *(pick % (i + 1) for i, pick in enumerate(picks))]
)


def test_the_example_of_the_published_drafter():
    depths, masks = tree_shape([-1, 0, 1, 2, 1, 0])
    assert depths.tolist() == [0, 1, 2, 3, 2, 1] and masks == [1, 3, 7, 15, 19, 33]
    assert mask_words([1 << 63 | 1 << 32 | 5]).tolist() == [[5, -(1 << 31) + 1]]


@given(TREES, st.data())
def test_masks_are_those_of_the_kernels_and_grow_in_parts(parents, data):
    depths, masks = tree_shape(parents)
    np.testing.assert_array_equal(mask_words(masks), ancestor_masks(parents))
    assert all(depths[i] == depths[p] + 1 for i, p in enumerate(parents) if p >= 0)
    cut = data.draw(st.integers(0, len(parents)))
    first = tree_shape(parents[:cut])[1]
    later, rest = tree_shape(parents[cut:], first)
    assert first + rest == masks and later.tolist() == depths[cut:].tolist()
