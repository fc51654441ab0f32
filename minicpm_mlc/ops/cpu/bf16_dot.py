"""The processor's dot products of two bfloat16 pairs, added to float32: AVX-512 BF16. Twice the
multiply-adds of float32.

TVM's code generator has no bfloat16, so the two instructions are functions of LLVM's own language,
which it links in and inlines; vectors of bfloat16 are their bits, uint16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import tvm

from minicpm_mlc.ops.tir import Expr, T

PAIRS = 16  # that one instruction multiplies
FUNCTIONS = """
define linkonce_odr <16 x float> @minicpm_bf16_dot(\
<16 x float> %sum, <32 x i16> %a, <32 x i16> %b) alwaysinline {
  %x = bitcast <32 x i16> %a to <32 x bfloat>
  %y = bitcast <32 x i16> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(\
<16 x float> %sum, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
define linkonce_odr <16 x i16> @minicpm_bf16_round(<16 x float> %x) alwaysinline {
  %y = fptrunc <16 x float> %x to <16 x bfloat>
  %r = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %r
}
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
"""


def dot(total: Expr, a: Expr, b: Expr) -> Expr:
    """total float32[16] + the products of 16 pairs, uint16[32] each."""
    return T.call_pure_extern("float32x16", "minicpm_bf16_dot", total, a, b)


def rounded(x: Expr) -> Expr:
    """float32[16] to the nearest bfloat16, uint16[16]."""
    return T.Bind(T.call_pure_extern("uint16x16", "minicpm_bf16_round", x))


def pairs_of(bits: Expr) -> Expr:
    """uint16[16] as int32[8]: two neighbours each."""
    return T.reinterpret(bits, dtype="int32x8")


def in_every_pair(word: Expr) -> Expr:
    """The pair in an int32, in all 16 places."""
    return T.reinterpret(T.broadcast(word, PAIRS), dtype="uint16x32")


def interleaved(a: Expr, b: Expr) -> list[Expr]:
    """uint16[32] each: pairs (a[i], b[i]) of the first 16 places, and of the last 16."""
    return [
        T.Bind(
            T.Shuffle([a, b], [i + side for i in range(start, start + PAIRS) for side in (0, 32)])
        )
        for start in (0, PAIRS)
    ]


def functions() -> AbstractContextManager[None]:
    """`with functions():` around the body of a kernel that calls them gives LLVM their text."""
    text = tvm.ir.StringImm(FUNCTIONS)
    return T.attr(tvm.tirx.IntImm("int32", 0), "pragma_import_llvm", text)
