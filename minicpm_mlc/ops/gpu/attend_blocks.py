"""Attention of each query over its selected blocks."""

from __future__ import annotations

from functools import partial

from minicpm_mlc.ops.attend_blocks import AttendBlocks
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.gpu.attend import call_of, launch, selected_pages
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, T


def attend_blocks(operator: AttendBlocks, traits: GpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """Decode's rows in splits, a prefill's in one piece."""
    *shared, selected, out = buffers
    visit = partial(selected_pages, selected)
    call = call_of(operator, traits, dims, (*shared, out), operator.batched, visit)
    launch(call, T.int64(operator.budget) if operator.batched else None)
