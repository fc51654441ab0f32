"""The tensor types of GGUF by their numbers: those that are read, and the names of the others."""

from __future__ import annotations

from minicpm_mlc.compile.checkpoint.gguf.blocks import (
    Q6K,
    Q8,
    SUPER,
    Block,
    Floats,
    Ints32,
    KPairs,
)
from minicpm_mlc.compile.checkpoint.gguf.code_book import IQ4NL, IQ4XS
from minicpm_mlc.compile.checkpoint.gguf.low_bits import Q2K, Q3K, Ternary

BLOCKS: dict[int, Block] = {
    0: Floats("F32", 1, 4, "<f4"),
    1: Floats("F16", 1, 2, "<f2"),
    30: Floats("BF16", 1, 2, "<u2"),
    2: Ints32("Q4_0", 32, 18, bits=4, has_minimum=False),
    3: Ints32("Q4_1", 32, 20, bits=4, has_minimum=True),
    6: Ints32("Q5_0", 32, 22, bits=5, has_minimum=False),
    7: Ints32("Q5_1", 32, 24, bits=5, has_minimum=True),
    8: Q8("Q8_0", 32, 34),
    10: Q2K("Q2_K", SUPER, 84),
    11: Q3K("Q3_K", SUPER, 110),
    12: KPairs("Q4_K", SUPER, 144, bits=4),
    13: KPairs("Q5_K", SUPER, 176, bits=5),
    14: Q6K("Q6_K", SUPER, 210),
    20: IQ4NL("IQ4_NL", 32, 18),
    23: IQ4XS("IQ4_XS", SUPER, 136),
    34: Ternary("TQ1_0", SUPER, 54),
    35: Ternary("TQ2_0", SUPER, 66),
}
REFUSED = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
    42: "Q2_0",
}
