"""How much each block matters to a query: InfLLM-v2's first stage, from the segments' means
alone.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu.int8_dot import DOTS
from minicpm_mlc.ops.cpu.score_call import ScoreCall
from minicpm_mlc.ops.cpu.score_integers import IntegerScoreCall, Means
from minicpm_mlc.ops.cpu.score_segments import Lanes
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.score_blocks import ScoreBlocks
from minicpm_mlc.ops.tir import Buffer


def score_blocks(operator: ScoreBlocks, traits: CpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """Decode splits each row over threads, prefill takes a few rows a task. Raises CompileError for
    groups of more than 16 heads.
    """
    lanes, heads = Lanes.of(operator.group, operator.batched, traits), operator.num_kv_heads
    arguments = lanes, heads, dims.n, dims.p, *buffers
    if operator.batched:
        ScoreCall(*arguments).decode()
    elif operator.integers:
        assert traits.int8_dot is not None, traits
        means = Means.allocate(heads, dims.p, operator.head_dim)
        IntegerScoreCall(*arguments, dot=DOTS[traits.int8_dot], means=means).prefill()
    else:
        ScoreCall(*arguments).prefill()
