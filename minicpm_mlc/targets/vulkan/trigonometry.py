"""sin and cos of float32 to the last digits, also of the angle of a late position: Vulkan promises
2^-11 within one turn.

|x| * 2/pi is taken in fixed point from the bits of x. Its integer part is the quadrant; what is
left of a quadrant goes into Taylor's series.
"""

from __future__ import annotations

from math import factorial, pi

from minicpm_mlc.targets.vulkan.values import BOOL, FLOAT32, INT32, Values

TWO_OVER_PI = (0xA2F9836E, 0x4E441529)  # words of its fraction
ONE = 127  # the biased exponent of 1
FIXED = 190  # 32 + the biased exponent of a number whose 32-bit mantissa is its integer part
TERMS = 5


def sine(values: Values, x: int, quarter_turns: int = 0) -> int:
    """sin(x + quarter_turns * pi / 2), for |x| < 2^32 with an absolute error below 1e-7."""
    return _Sine(values).at(x, quarter_turns)


class _Sine:
    def __init__(self, values: Values) -> None:
        self.values = values
        self.word = values.type(INT32)
        self.float = values.type(FLOAT32)

    def at(self, x: int, quarter_turns: int) -> int:
        """The result's id: sin of x (float32) after so many quarter turns; 1 makes it cos."""
        number = self.values.module.number
        bits = self._whole(
            "BitwiseAnd", self.values.emit("Bitcast", self.word, x), number(0x7FFFFFFF)
        )
        exponent = self._whole("ShiftRightLogical", bits, number(23))
        quadrant, rest = self._reduced(bits, exponent)
        small = self.values.emit("ULessThan", self.values.type(BOOL), exponent, number(ONE))
        quadrant = self._whole("Select", small, number(0), quadrant)
        rest = self._float("Select", small, self.values.emit("Bitcast", self.float, bits), rest)
        return self._signed(
            x,
            self._whole("IAdd", quadrant, number(quarter_turns)),
            rest,
            odd=quarter_turns % 2 == 0,
        )

    def _reduced(self, bits: int, exponent: int) -> tuple[int, int]:
        """(nearest multiple of pi / 2, what is left) of |x| >= 1."""
        number = self.values.module.number
        mantissa = self._whole(
            "BitwiseOr", self._whole("ShiftLeftLogical", bits, number(8)), number(0x80000000)
        )
        low, high = self._product(mantissa, TWO_OVER_PI[0])
        _, more = self._product(mantissa, TWO_OVER_PI[1])
        total = self._whole("IAdd", low, more)
        carry = self.values.emit("ULessThan", self.values.type(BOOL), total, low)
        high = self._whole("IAdd", high, self._whole("Select", carry, number(1), number(0)))
        shift = self._whole(
            "BitwiseAnd", self._whole("ISub", number(FIXED - 32), exponent), number(31)
        )
        doubled, left = (
            self._whole("ShiftLeftLogical", high, number(1)),
            self._whole("ISub", number(31), shift),
        )
        fraction = self._whole(
            "ShiftLeftLogical", doubled, left
        )  # by 32 - shift in all, which may be 32
        fraction = self._whole(
            "BitwiseOr", fraction, self._whole("ShiftRightLogical", total, shift)
        )
        whole, half = (
            self._whole("ShiftRightLogical", high, shift),
            self._whole("ShiftRightLogical", fraction, number(31)),
        )
        return self._whole("IAdd", whole, half), self._times(
            self._float("ConvertSToF", fraction), pi / 2 / 2**32
        )

    def _product(self, a: int, b: int) -> tuple[int, int]:
        pair = self.values.module.declare("TypeStruct", self.word, self.word)
        product = self.values.emit("UMulExtended", pair, a, self.values.module.number(b))
        return self._whole("CompositeExtract", product, 0), self._whole(
            "CompositeExtract", product, 1
        )

    def _signed(self, x: int, quadrant: int, rest: int, odd: bool) -> int:
        """The series that the quadrant asks for, with its sign; that of an odd function changes
        with x's too.
        """
        number = self.values.module.number
        square = self._float("FMul", rest, rest)
        sin = self._float("FMul", rest, self._series(square, 1))
        cosine = self._bit(self._whole("BitwiseAnd", quadrant, number(1)))
        value = self._float("Select", cosine, self._series(square, 0), sin)
        sign = self._whole("ShiftLeftLogical", quadrant, number(30))
        if odd:
            sign = self._whole("BitwiseXor", sign, self.values.emit("Bitcast", self.word, x))
        sign = self._whole("BitwiseAnd", sign, number(0x80000000))
        flipped = self._whole("BitwiseXor", self.values.emit("Bitcast", self.word, value), sign)
        return self.values.emit("Bitcast", self.float, flipped)

    def _series(self, square: int, odd: int) -> int:
        """sum over i of (-square)^i / (2 i + odd)!"""
        total = self.values.constant(FLOAT32, (-1) ** TERMS / factorial(2 * TERMS + odd))
        for i in reversed(range(TERMS)):
            term = self.values.constant(FLOAT32, (-1) ** i / factorial(2 * i + odd))
            total = self._float("FAdd", self._float("FMul", total, square), term)
        return total

    def _bit(self, value: int) -> int:
        return self.values.emit(
            "INotEqual", self.values.type(BOOL), value, self.values.module.number(0)
        )

    def _times(self, value: int, factor: float) -> int:
        return self._float("FMul", value, self.values.constant(FLOAT32, factor))

    def _whole(self, opcode: str, *operands: int) -> int:
        return self.values.emit(opcode, self.word, *operands)

    def _float(self, opcode: str, *operands: int) -> int:
        return self.values.emit(opcode, self.float, *operands)
