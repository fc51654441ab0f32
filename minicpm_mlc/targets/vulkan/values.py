"""Typed values inside a kernel: constants, instructions that are emitted once where they are equal,
conversions.

Integers of up to 32 bits are 32-bit numbers in registers, whatever memory holds, so no device needs
arithmetic on small ones; a result that may have left its type's range is wrapped back into it.
int64 is an index here: it has 32 bits too unless the target allows more, as no buffer of ours has
2^31 elements.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

from minicpm_mlc.targets.vulkan.spirv import GLSL, Instruction, Module


class Unsupported(Exception):
    """What the generator has no instructions for."""


class Scalar(NamedTuple):
    """`kind`: i and u for integers, f, or b for truth values."""

    kind: str
    bits: int

    @property
    def whole(self) -> bool:
        """Whether it is an integer."""
        return self.kind in "iu"

    @property
    def small(self) -> bool:
        """Whether it is an integer that registers hold as one of 32 bits."""
        return self.whole and self.bits < 32


BOOL = Scalar("b", 1)
INT32 = Scalar("i", 32)
UINT32 = Scalar("u", 32)
FLOAT32 = Scalar("f", 32)


@cache
def scalar(dtype: str) -> Scalar:
    """The type that TVM calls `dtype`. Raises Unsupported for vectors and formats of fewer than 8
    bits.
    """
    if dtype == "bool":
        return BOOL
    for kind, name in (("i", "int"), ("u", "uint"), ("f", "float")):
        bits = dtype[len(name) :]
        if (
            dtype.startswith(name)
            and bits in ("8", "16", "32", "64")
            and (kind, bits) != ("f", "8")
        ):
            return Scalar(kind, int(bits))
    raise Unsupported(f"values of type {dtype}")


@dataclass(frozen=True)
class Features:
    """What the target allows beyond Vulkan 1.1's minimum; the names are those of TVM's target
    attributes.
    """

    supports_int64: bool = False
    supports_float16: bool = False
    supports_float64: bool = False
    supports_8bit_buffer: bool = False
    supports_16bit_buffer: bool = False

    @classmethod
    def of(cls, target: Any) -> Features:
        """Those that a TVM target declares."""
        return cls(
            **{field.name: bool(target.attrs.get(field.name, False)) for field in fields(cls)}
        )


class Values:
    """Emits instructions. A scope is a region of code whose values are known to have been
    computed.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.module = Module()
        self.scopes: list[dict[Any, int]] = [{}]

    def known(self, key: Any) -> int | None:
        """The value that was computed for a key in a region around this place, if there is one."""
        return next((scope[key] for scope in reversed(self.scopes) if key in scope), None)

    def emit(self, opcode: str, type: int, *operands: int) -> int:
        """The value of an instruction without effects, computed here unless it has been already."""
        key = (opcode, type, operands)
        found = self.known(key)
        if found is None:
            found = self.scopes[-1][key] = self.append(opcode, type, *operands)
        return found

    def append(self, opcode: str, type: int, *operands: int) -> int:
        """A new instruction; `type` is 0 if it has no result."""
        return self.define(opcode, type, self.module.new_id() if type else 0, *operands)

    def define(self, opcode: str, type: int, result: int, *operands: int) -> int:
        """The same for an id that may have been referred to before."""
        self.module.body.append(Instruction(opcode, type, result, operands))
        return result

    def glsl(self, name: str, type: int, *operands: int) -> int:
        """The value of an instruction of GLSL's extended set."""
        return self.emit("ExtInst", type, self.module.glsl, GLSL[name], *operands)

    def bits(self, t: Scalar) -> int:
        """Bits of a value in a register."""
        if not t.whole:
            return t.bits
        return 64 if t.bits == 64 and self.features.supports_int64 else 32

    def type(self, t: Scalar) -> int:
        """The type of a value in a register."""
        if t == BOOL:
            return self.module.declare("TypeBool")
        if t.kind == "u" and t.bits == 64 and not self.features.supports_int64:
            raise Unsupported("uint64, which the target doesn't allow")
        bits = self.bits(t)
        if t.kind == "f" and bits != 32:
            self._need(f"supports_float{bits}", f"float{bits} arithmetic")
            self.module.require(f"Float{bits}")
        if t.whole and bits == 64:
            self.module.require("Int64")
        return (
            self.module.declare("TypeFloat", bits) if t.kind == "f" else self.module.integer(bits)
        )

    def _need(self, feature: str, what: str) -> None:
        if not getattr(self.features, feature):
            raise Unsupported(f"{what}, which the target doesn't allow ({feature})")

    def stored(self, t: Scalar) -> int:
        """The type of an element of a storage buffer."""
        if t == BOOL:
            t = Scalar("u", 8)
        if t.bits == 16:
            self._need("supports_16bit_buffer", "16-bit numbers in memory")
            self.module.require("StorageBuffer16BitAccess")
        if t.bits == 8:
            self._need("supports_8bit_buffer", "8-bit numbers in memory")
            self.module.require("StorageBuffer8BitAccess", "SPV_KHR_8bit_storage")
        if t.whole and t.bits == 64:
            self._need("supports_int64", "64-bit integers in memory")
        if t.small:
            return self.module.integer(t.bits)
        return self.module.declare("TypeFloat", 16) if t == Scalar("f", 16) else self.type(t)

    def constant(self, t: Scalar, value: float) -> int:
        """The id of a constant."""
        if t == BOOL:
            return self.module.declare(
                "ConstantTrue" if value else "ConstantFalse", type=self.type(t)
            )
        if t.kind == "f":
            raw = struct.pack({16: "<exx", 32: "<f", 64: "<d"}[t.bits], value)
        else:
            bits = self.bits(t)
            if not -(1 << bits - 1) <= value < 1 << bits:
                raise Unsupported(
                    f"the {t.bits}-bit constant {value}, as the target allows 32 bits"
                )
            raw = (int(value) & (1 << bits) - 1).to_bytes(bits // 8, "little")
        return self.module.declare(
            "Constant", *struct.unpack(f"<{len(raw) // 4}I", raw), type=self.type(t)
        )

    def wrap(self, t: Scalar, value: int) -> int:
        """A 32-bit number as the small integer that its low bits are."""
        if not t.small:
            return value
        opcode = "BitFieldSExtract" if t.kind == "i" else "BitFieldUExtract"
        return self.emit(
            opcode, self.type(t), value, self.module.number(0), self.module.number(t.bits)
        )

    def cast(self, value: int, source: Scalar, to: Scalar) -> int:
        """As C converts: integers wrap, floats are rounded to the nearest or, to integers, towards
        zero.
        """
        if source == to:
            return value
        if to == BOOL:
            opcode = "FUnordNotEqual" if source.kind == "f" else "INotEqual"
            return self.emit(opcode, self.type(to), value, self.constant(source, 0))
        if source == BOOL:
            return self.emit(
                "Select", self.type(to), value, self.constant(to, 1), self.constant(to, 0)
            )
        if source.whole and to.whole:
            return self._resize(value, source, to)
        if source.kind == to.kind:
            return self.emit("FConvert", self.type(to), value)
        if to.kind == "f":
            return self.emit(
                "ConvertSToF" if source.kind == "i" else "ConvertUToF", self.type(to), value
            )
        return self.wrap(
            to, self.emit("ConvertFToS" if to.kind == "i" else "ConvertFToU", self.type(to), value)
        )

    def _resize(self, value: int, source: Scalar, to: Scalar) -> int:
        if self.bits(source) != self.bits(to):
            opcode = "SConvert" if source.kind == "i" and self.bits(to) == 64 else "UConvert"
            value = self.emit(opcode, self.type(to), value)
        fits = source.bits < to.bits and (source.kind == "u" or to.kind == "i")
        return value if fits else self.wrap(to, value)

    def widen(self, value: int, t: Scalar) -> int:
        """An element of a storage buffer as a value."""
        if t == BOOL:
            return self.emit(
                "INotEqual", self.type(t), self.widen(value, Scalar("u", 8)), self.module.number(0)
            )
        if t.small:
            return self.emit("SConvert" if t.kind == "i" else "UConvert", self.type(t), value)
        return value

    def narrow(self, value: int, t: Scalar) -> int:
        """A value as an element of a storage buffer."""
        if t == BOOL:
            return self.narrow(self.cast(value, BOOL, UINT32), Scalar("u", 8))
        return self.emit("UConvert", self.stored(t), value) if t.small else value
