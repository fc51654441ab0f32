"""What bench/gpu_static.py counts and simulates: the launches of MiniCPM4.1-8B with 4-bit weights,
and the steps that they make up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 4096, 16384, 32, 2, 128, 73448, 32
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
W4, SCALE = 0.5, 2 / 32  # bytes of a weight
WORKGROUPS = 128  # of ops/gpu/attend_tiles.py
LEAST_PAGES = 2  # of ops/gpu/attend.py
AT_ONCE = 16  # of ops/gpu/attend_last.py


@dataclass(frozen=True)
class Case:
    """One launch: the `kernel`-th of an operator.

    `turns`: how often a warp goes through its hottest loop; `units`: what one turn of it does, in
    `unit`s: weights of a thread, tokens of a warp; `bytes`: what the launch reads and no cache has.
    """

    name: str
    operator: str
    groups: int
    threads: int
    unit: str = ""
    units: float = 0
    turns: int = 1
    bytes: float = 0
    kernel: int = 0
    others: int = 1  # turns of the other loops
    loads: int | None = None  # of the loop's wide ones a turn; None: all
    cached: bool = False  # its narrow loads find all in the second level's cache
    timed: bool = True
    near: bool = False  # its wide loads too
    skips: bool = False  # its hottest loop jumps over what seldom has to be done
    rounds: int = 1  # meetings that a workgroup comes to
    merges: int = 0  # turns of loops that only the last of them goes through
    searches: bool = False  # it finds a threshold in passes, of which half are needed
    before: float | None = None  # microseconds on an H200 of the kernels at commit de83073


def linear_case(name: str, operator: str, n: int, k: int, before: float) -> Case:
    """A linear's streaming kernel on one row: a thread takes 4 rows of a group of 32 columns."""
    threads, size = 256, n * k * (W4 + SCALE)
    turns = -(-k // 32 // (threads // 4))
    return Case(name, operator, n // 16, threads, "weight", 128, turns, size, before=before)


def attention_case(
    name: str, operator: str, pages: int, before: float | None, rows: int = 1
) -> Case:
    """The tiles of rows that see the same pages: a warp takes 16 tokens of one."""
    splits = min(WORKGROUPS // (rows * KV_HEADS), -(-pages // LEAST_PAGES))
    size = pages * 64 * KV_HEADS * HEAD_DIM * 2 * 2
    groups = splits * KV_HEADS * rows
    turns = -(-pages // splits)
    shape = groups, 128, "token", 16, turns, size
    # pages are full but for a row's last one, and a maximum seldom rises by much after the first
    tiles = Case(name, operator, *shape, before=before, loads=HEAD_DIM // 8, skips=True)
    rounds = 1 if splits <= AT_ONCE else 2
    return replace(tiles, rounds=rounds, merges=-(-min(splits, AT_ONCE) // 4))


def few_case(
    name: str, operator: str, n: int, k: int, kernel: int = 4, rows: int = 16, size: float = W4
) -> Case:
    """A linear's kernel of 16 rows and 32 of W on tensor cores, whose warps share the columns: a
    turn of a warp is four times 32 of them.
    """
    warps, groups = 8 if size == W4 else 4, -(-n // 32) * -(-rows // 16)
    shape = groups, 32 * warps, "weight and 16 rows", 128, max(k // 128 // warps, 1)
    return Case(name, operator, *shape, n * k * (size + SCALE) + rows * k * 1.25, kernel)


def staged_case(name: str, operator: str, n: int, k: int, kernel: int = 2) -> Case:
    """The same of a chunk of a prompt: eight warps take 128 of its rows by 128 of W; a turn of a
    warp is four times 32 columns of 32 rows by 64.
    """
    groups, size = CHUNK // 128 * (n // 128), n * k * (W4 + SCALE) + CHUNK * k * 1.25
    shape = groups, 256, "weight and 32 rows", 256, k // 128, size, kernel
    return Case(name, operator, *shape, cached=True, near=True)


def rows_cases(rows: int) -> tuple[Case, ...]:
    """What so many rows pass between a layer's products; most find it in the second level's
    cache.
    """
    names = (f"{name}, {rows} rows" for name in BETWEEN)
    shapes = (
        ("norm", rows, 256, HIDDEN * 4, 0),
        ("quantize", rows * (HIDDEN // 1024), 128, HIDDEN * 4, 0),
        ("norm_swiglu", rows * (WIDTH // 1024), 128, 2 * WIDTH * 4, 7),
        ("rope_append_rows", rows * ROPED, 128, QKV * 4, 0),
    )
    return tuple(
        Case(
            name,
            operator,
            groups,
            threads,
            bytes=rows * size,
            kernel=kernel,
            cached=True,
            near=rows * size < CACHED,
        )
        for name, (operator, groups, threads, size, kernel) in zip(names, shapes, strict=True)
    )


BETWEEN = ("norm, rounding", "rounding", "SwiGLU, rounding", "rope, append")
CACHED = 16 << 20  # bytes that a launch surely leaves in the second level's cache
ROPED = -(-(HEADS + 2 * KV_HEADS) * HEAD_DIM // 8 // 128)  # workgroups of a row
WHOLE = 4096  # columns of queries, keys and values that fill a GPU for a chunk of a prompt
LONG = 2048  # pages of 128K tokens
CHUNK, CHUNKS = 512, 4  # rows of a prefill's call, and calls of a prompt of 2048
# the column `before` is the simulator's for the kernels that were here first, which had no name for
# what is fused now: attention by 94 us a page of its longest split
CASES = (
    linear_case("norm, qkv", "norm_qkv", QKV, HIDDEN, 20),
    linear_case("o", "linear_o", HIDDEN, HIDDEN, 20),
    Case(
        "norm, gate, up, SwiGLU",
        "norm_swiglu",
        WIDTH // 32,
        256,
        "weight",
        128,
        HIDDEN // 32 // 16,
        2 * WIDTH * HIDDEN * (W4 + SCALE),
        before=54,
    ),
    linear_case("down", "linear_down", HIDDEN, WIDTH, 79),
    Case(
        "head, w8",
        "linear_head",
        -(-VOCAB // 16),
        256,
        "weight",
        128,
        2,
        VOCAB * HIDDEN * (1 + SCALE),
    ),
    few_case("qkv, 16 rows", "norm_qkv", QKV, HIDDEN, kernel=6),
    few_case("o, 16 rows", "linear_o", HIDDEN, HIDDEN),
    few_case("gate, up, 16 rows", "norm_swiglu", 2 * WIDTH, HIDDEN, kernel=6),
    few_case("down, 16 rows", "linear_down", HIDDEN, WIDTH),
    few_case("head, w8, 16 rows", "linear_head", VOCAB, HIDDEN, size=1),
    *rows_cases(16),
    attention_case("attention of 16 rows, 1K", "attend", 16, None, rows=16),
    staged_case("qkv, first columns, 512 rows", "norm_qkv", WHOLE, HIDDEN, kernel=4),
    few_case("qkv, others, 512 rows", "norm_qkv", QKV - WHOLE, HIDDEN, 6, CHUNK),
    staged_case("o, 512 rows", "linear_o", HIDDEN, HIDDEN),
    staged_case("gate, up, 512 rows", "norm_swiglu", 2 * WIDTH, HIDDEN, kernel=4),
    staged_case("down, 512 rows", "linear_down", HIDDEN, WIDTH),
    *rows_cases(CHUNK),
    Case(
        "means, 512 rows",
        "segment_means",
        CHUNK * KV_HEADS,
        128,
        bytes=CHUNK * KV_HEADS * HEAD_DIM * 2,
        cached=True,
        others=16,
    ),
    Case(
        "attention of 512 rows",  # whose prompt has 1024 tokens so far, on average
        "attend_prefill",
        CHUNK * KV_HEADS,
        128,
        "token",
        16,
        1024 // 64,
        1024 * KV_HEADS * HEAD_DIM * 2 * 2,
        near=True,
        skips=True,
    ),
    Case(
        "o, exact activations",
        "linear_exact",
        HIDDEN // 16,
        128,
        "weight",
        128,
        HIDDEN // 32 // 32,
        HIDDEN * HIDDEN * (W4 + SCALE),
        timed=False,
    ),
    Case(
        "rope, append, means",
        "rope_append",
        ROPED,
        128,
        bytes=QKV * 4,
        cached=True,
        near=True,
        others=16,
    ),
    Case("norm, rounding", "norm", 1, 256, bytes=HIDDEN * 8, cached=True),
    Case("rounding", "quantize", HIDDEN // 1024, 128, bytes=HIDDEN * 4, cached=True, near=True),
    attention_case("attention, 1K", "attend", 16, 8 * 94),
    attention_case("attention, 128K dense", "attend", LONG, 64 * 94),
    attention_case("attention, 128K sparse", "attend_blocks", 96, 8 * 94),
    Case(
        "logits of segments, 128K",
        "score_blocks",
        KV_HEADS * -(-LONG // 15),
        128,
        bytes=LONG * 4 * KV_HEADS * HEAD_DIM * 4,
        others=2,
        before=15.5 + 4.4,
    ),
    Case(
        "pooling, 128K",
        "score_blocks",
        KV_HEADS * LONG // 64,
        256,
        turns=3,  # of 137 tiles' sums, four at a time by 16 threads
        kernel=1,
        bytes=HEADS * LONG * 16,
        cached=True,
        before=9.8,
    ),
    Case(
        "selection, 128K",
        "select_blocks",
        KV_HEADS,
        256,
        bytes=KV_HEADS * LONG * 4,
        cached=True,
        searches=True,
        before=45,
    ),
)


def records() -> dict[str, Any]:
    """The operators by the names that CASES use."""
    from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
    from minicpm_mlc.ops.attend_blocks import AttendBlocks
    from minicpm_mlc.ops.formats.kv import F16
    from minicpm_mlc.ops.formats.weights import SCHEMES
    from minicpm_mlc.ops.linear import Linear
    from minicpm_mlc.ops.linear_int8 import LinearInt8
    from minicpm_mlc.ops.norm_linear import NormLinearInt8, NormLinearSwigluInt8
    from minicpm_mlc.ops.quantize_rows import QuantizeRows
    from minicpm_mlc.ops.rms_norm import RmsNormInt8
    from minicpm_mlc.ops.rope_append import RopeAppend, RopeAppendMeans
    from minicpm_mlc.ops.score_blocks import ScoreBlocks
    from minicpm_mlc.ops.segment_means import SegmentMeans
    from minicpm_mlc.ops.select_blocks import SelectBlocks

    scheme, factor = SCHEMES["w4"].beside("int8"), -8
    linear = partial(LinearInt8, scheme=scheme, sum_factor=factor)
    heads = HEADS, KV_HEADS, HEAD_DIM
    return {
        "norm_qkv": NormLinearInt8(QKV, HIDDEN, scheme, sum_factor=factor, eps=1e-6),
        "linear_o": linear(HIDDEN, HIDDEN, residual=True),
        "linear_down": linear(HIDDEN, WIDTH, residual=True),
        "norm_swiglu": NormLinearSwigluInt8(WIDTH, HIDDEN, scheme, factor, 1e-6),
        "linear_exact": Linear(HIDDEN, HIDDEN, SCHEMES["w4"], residual=True),
        "linear_head": LinearInt8(VOCAB, HIDDEN, SCHEMES["w8"].beside("int8"), sum_factor=0),
        "norm": RmsNormInt8(HIDDEN, 1e-6, factor),
        "rope_append": RopeAppendMeans(*heads, F16, True),
        "rope_append_rows": RopeAppend(*heads, F16, False),
        "segment_means": SegmentMeans(*heads[1:], F16, False),
        "attend_prefill": AttendPrefill(*heads, F16),
        "quantize": QuantizeRows(HIDDEN, factor),
        "attend": AttendDecode(*heads, F16, sum_factor=factor),
        "attend_blocks": AttendBlocks(*heads, F16, 96, True, sum_factor=factor),
        "score_blocks": ScoreBlocks(*heads, True),
        "select_blocks": SelectBlocks(KV_HEADS, 64, 32, 1),
    }


VERIFY = (  # the launches of a layer over 16 nodes of a tree
    "norm, rounding, 16 rows",
    "qkv, 16 rows",
    "rope, append, 16 rows",
    "attention of 16 rows, 1K",
    "o, 16 rows",
    "norm, rounding, 16 rows",
    "gate, up, 16 rows",
    "SwiGLU, rounding, 16 rows",
    "down, 16 rows",
)
STEP = ("norm, qkv", "rope, append, means", "o", "norm, gate, up, SwiGLU", "down")
SPARSE = ("logits of segments", "pooling", "selection")
LAST = ("norm, rounding", "rounding", "head, w8")
DECODE = "decode 1K"
STEPS = {  # the launches of a layer, and those behind the last one
    DECODE: ((*STEP, "attention, 1K"), LAST),
    "decode 128K sparse": (
        (*STEP, *(f"{name}, 128K" for name in SPARSE), "attention, 128K sparse"),
        LAST,
    ),
    "decode 128K dense": ((*STEP, "attention, 128K dense"), LAST),
    "verify 16 rows, 1K": (VERIFY, tuple(f"{name}, 16 rows" for name in LAST)),
}
PREFILL = (  # the launches of a layer in a chunk of a prompt, without those of sparse attention
    "norm, rounding, 512 rows",
    "qkv, first columns, 512 rows",
    "qkv, others, 512 rows",
    "rope, append, 512 rows",
    "means, 512 rows",
    "attention of 512 rows",
    "rounding, 512 rows",
    "o, 512 rows",
    "norm, rounding, 512 rows",
    "gate, up, 512 rows",
    "SwiGLU, rounding, 512 rows",
    "down, 512 rows",
)
MATRICES = HIDDEN * (QKV + HIDDEN + 3 * WIDTH)  # weights of a layer
# multiplications and additions of a token of the prompt, which sees 1024 others on average
TOKEN_OPERATIONS = LAYERS * (2 * MATRICES + 4 * 1024 * HEADS * HEAD_DIM)
