"""mask_logits beside what the operator grid asks of it."""

from __future__ import annotations

import numpy as np
from op_cases import compiled, cpu_kernel

from minicpm_mlc.ops.mask_logits import LOWEST, MaskLogits


def test_only_allowed_tokens_keep_their_logits():
    logits = np.arange(48, dtype=np.float32)[None]
    mask = np.array([[1 << 3 | 1 << 31, 1 << 1]], np.uint32).view(np.int32)
    compiled(cpu_kernel(MaskLogits(40)))(mask, logits)
    assert np.flatnonzero(logits[0] > LOWEST).tolist() == [3, 31, 33]
    assert logits[0, [3, 31, 33]].tolist() == [3, 31, 33]
