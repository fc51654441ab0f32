"""Vectors of 16 float32 lanes in TIR: loads, stores, reductions, exp and sin/cos without libm.

Every function here emits TIR through TVM's script builder, so it is called while a PrimFunc is
being built: an operator writes its signature as a TVMScript function and its body as plain Python
that calls these. LLVM lowers 16 lanes to one AVX-512, two AVX2 or four NEON registers.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, log2, pi

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.ops import tir
from minicpm_mlc.ops.tir import Buffer, Expr, T

LANES = 16
ATTRS = tir.ATTRS  # of kernels that write their own heads

# minimax fit of 2**f on [-0.5, 0.5] that is exact at 0, relative error 1e-7
EXP2_COEFFICIENTS = (1.0, 0.6931470037, 0.2402224243, 0.05550733581, 0.009671512991, 0.001326472731)
SIN_COEFFICIENTS = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)
COS_COEFFICIENTS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320)


def vectors_in(width: int, what: str) -> int:
    """Number of 16-lane vectors in `width` elements; CompileError when they don't fill whole
    vectors.
    """
    if width % LANES:
        raise CompileError(
            f"{what} is {width}, but the CPU operators need a multiple of {LANES}: check "
            "config.json"
        )
    return width // LANES


def splat(value: Expr) -> Expr:
    """The scalar in all 16 lanes."""
    return T.broadcast(T.float32(value) if isinstance(value, int | float) else value, LANES)


def load(buffer: Buffer, *index: Expr) -> Expr:
    """16 elements from `index` on along the last axis, as float32."""
    value = buffer[(*index[:-1], T.ramp(index[-1], 1, LANES))]
    return value if buffer.dtype == "float32" else T.Cast(f"float32x{LANES}", value)


def store(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """Write 16 float32 lanes from `index` on along the last axis, converted to the buffer's
    dtype.
    """
    if buffer.dtype != "float32":
        value = T.Cast(f"{buffer.dtype}x{LANES}", value)
    T.buffer_store(buffer, value, [*index[:-1], T.ramp(index[-1], 1, LANES)])


def prefetch(buffer: Buffer, *index: Expr) -> None:
    """Ask for the cache line of an element that is read soon, into L2; it may lie past the buffer's
    end.
    """
    read, into_l2, data = 0, 2, 1
    intrinsic = T.llvm_lookup_intrinsic_id("llvm.prefetch.p0")
    T.evaluate(
        T.call_llvm_intrin(
            intrinsic, T.address_of(buffer[index]), read, into_l2, data, dtype="void"
        )
    )


def registers(count: int) -> Buffer:
    """`count` float32 vectors that LLVM keeps in registers as long as every index is a constant.

    On the stack, thus fewer than 16: TVM puts the scope "local", and 1 KiB or more, on the heap,
    call by call.
    """
    return T.alloc_buffer((count * LANES,), "float32", scope="global")


def in_order(value: Expr) -> Expr:
    """A value that LLVM computes here. Where it is free to choose the order of independent sums, it
    begins more of them than there are registers. No instruction comes of it.
    """
    value = T.Bind(value)
    fake_use = T.llvm_lookup_intrinsic_id("llvm.fake.use")
    T.evaluate(T.call_llvm_intrin(fake_use, value, dtype="void"))
    return value


def spread(extent: Expr, body: Callable[[Expr], None], serial_below: int) -> None:
    """Run body(i) for i < extent: on all threads, or on this one where waking the others (6 us)
    costs more.
    """
    with T.If(extent < serial_below):
        with T.Then(), T.serial(extent) as i:
            body(i)
        with T.Else(), T.parallel(extent) as i:
            body(i)


def opaque(value: Expr) -> Expr:
    """An int64 that TVM's index analysis can't look into: seeing through all of them takes it half
    a minute, where they come of divisions by what is no constant.
    """
    cell = T.alloc_buffer((1,), "int64")
    T.buffer_store(cell, value, [0])
    return T.Bind(cell[0])


def fold(combine: Callable[[Expr, Expr], Expr], vector: Expr, lanes: int = 1) -> Expr:
    """Reduce the 16 lanes to `lanes` (a power of two) in halves: lane l combines l, l + lanes, l +
    2 lanes, ...

    The halves are stored, which LLVM undoes: of bound ones, TVM's simplifier would put each into
    the next, twice, and take seconds for a kernel.
    """
    dtype = str(vector.ty.dtype).partition("x")[0]
    kept = T.alloc_buffer((LANES,), dtype, scope="global")
    T.buffer_store(kept, vector, [T.ramp(0, 1, LANES)])
    width = LANES // 2
    while width >= max(lanes, 2):
        low, high = (kept[T.ramp(first, 1, width)] for first in (0, width))
        T.buffer_store(kept, combine(low, high), [T.ramp(0, 1, width)])
        width //= 2
    return T.Bind(kept[T.ramp(0, 1, lanes)] if lanes > 1 else combine(kept[0], kept[1]))


def polynomial(coefficients: tuple[float, ...], x: Expr) -> Expr:
    """Horner's rule, lowest coefficient first."""
    value = splat(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + splat(coefficient)
    return T.Bind(value)


def _scale_by_power_of_two(value: Expr, exponent: Expr) -> Expr:
    """value * 2**exponent for integral float32 exponents in [-126, 127]."""
    bits = T.shift_left(
        T.Cast("int32x16", exponent) + T.broadcast(127, LANES), T.broadcast(23, LANES)
    )
    return value * T.reinterpret(bits, dtype="float32x16")


def _whole_exponent(x: Expr) -> Expr:
    return T.Bind(T.max(splat(-126.0), T.min(splat(127.0), T.nearbyint(x))))


def exp2(x: Expr) -> Expr:
    """2**x, relative error <= 2e-7; 0 below -126 (so also at -inf), inf above 128."""
    x = T.Bind(x)
    whole = _whole_exponent(x)
    power = _scale_by_power_of_two(polynomial(EXP2_COEFFICIENTS, T.Bind(x - whole)), whole)
    return T.Bind(T.Select(x < splat(-126.0), splat(0.0), power))


def exp2_below_1(x: Expr) -> Expr:
    """2**x for x <= 0, relative error <= 2e-7; 0 below -126.5 (so also at -inf), where the
    exponent's bits are 0.
    """
    x = T.Bind(T.max(splat(-127.0), x))
    whole = T.Bind(T.nearbyint(x))
    return T.Bind(_scale_by_power_of_two(polynomial(EXP2_COEFFICIENTS, T.Bind(x - whole)), whole))


def exp(x: Expr) -> Expr:
    """e**x, relative error <= 1e-6; 0 below -87.3 (so also at -inf), inf above 88.7.

    ln 2 is subtracted in two parts (Cody and Waite), so that large |x| loses no digits.
    """
    x = T.Bind(x)
    whole = _whole_exponent(x * splat(log2(2.718281828459045)))
    ln2_high = 0.693359375  # 9 bits: its product with a whole exponent is exact
    rest = T.Bind((x - whole * splat(ln2_high)) - whole * splat(log(2) - ln2_high))
    power = _scale_by_power_of_two(
        polynomial(EXP2_COEFFICIENTS, T.Bind(rest * splat(1 / log(2)))), whole
    )
    return T.Bind(T.Select(x < splat(-126 * log(2)), splat(0.0), power))


def sin_cos(angle: Expr) -> tuple[Expr, Expr]:
    """Sine and cosine of float32 angles in radians, absolute error <= 2e-7 up to |angle| = 1e7.

    The quarter turns are taken off in float64, where a context's largest angle still has 30 good
    bits.
    """
    wide = T.Bind(T.Cast("float64x16", angle))
    quarter = T.Bind(T.nearbyint(wide * T.broadcast(T.float64(2 / pi), LANES)))
    rest = T.Bind(T.Cast("float32x16", wide - quarter * T.broadcast(T.float64(pi / 2), LANES)))
    square = T.Bind(rest * rest)
    sine, cosine = (
        T.Bind(rest * polynomial(SIN_COEFFICIENTS, square)),
        polynomial(COS_COEFFICIENTS, square),
    )
    turn = T.Bind(T.Cast("int32x16", quarter))
    odd = T.bitwise_and(turn, T.broadcast(1, LANES)).equal(T.broadcast(1, LANES))
    sin_negative = T.bitwise_and(turn, T.broadcast(2, LANES)).equal(T.broadcast(2, LANES))
    cos_negative = T.bitwise_and(turn + T.broadcast(1, LANES), T.broadcast(2, LANES)).equal(
        T.broadcast(2, LANES)
    )
    sin_size, cos_size = T.Bind(T.Select(odd, cosine, sine)), T.Bind(T.Select(odd, sine, cosine))
    return T.Select(sin_negative, -sin_size, sin_size), T.Select(cos_negative, -cos_size, cos_size)
