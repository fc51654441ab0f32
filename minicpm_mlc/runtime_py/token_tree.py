"""The shape of a token tree, as the compiled functions take it: depths and ancestor masks from
parent indices.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import numpy as np

from minicpm_mlc.bundle.manifest import MAX_TREE_NODES as MAX_NODES


def tree_shape(parents: Ids[int], first: Ids[int] = ()) -> tuple[np.ndarray, list[int]]:
    """Depths int32 [n], and masks of n bits, of nodes whose parents come before them; a parent of
    -1 is a root.

    Bit j of node i's mask is set if j is i or one of its ancestors. `first` are the masks of nodes
    that are there
    already: the new ones are numbered after them. Raises ValueError for a parent that doesn't come
        before its child,
    or more than 64 nodes.
    """
    masks = list(first)
    for parent in parents:
        own = len(masks)
        if not -1 <= parent < own:
            raise ValueError(
                f"node {own} of a token tree has parent {parent}; a parent comes before its "
                "children"
            )
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << own)
    if len(masks) > MAX_NODES:
        raise ValueError(f"a token tree of {len(masks)} nodes; the library holds {MAX_NODES}")
    new = masks[len(first) :]
    return np.array([mask.bit_count() - 1 for mask in new], np.int32), new


def mask_words(masks: Ids[int]) -> np.ndarray:
    """Masks of 64 bits as int32 [n, 2], low word first."""
    return np.array(masks, "<u8").view("<i4").reshape(-1, 2)
