"""SPIR-V modules, word by word: ids, types, constants and one function. Numbers are those of the
SPIR-V specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

MAGIC = 0x07230203
VERSION = 0x00010300  # SPIR-V 1.3, what Vulkan 1.1 takes

OPCODES = {
    "Extension": 10,
    "ExtInstImport": 11,
    "ExtInst": 12,
    "MemoryModel": 14,
    "EntryPoint": 15,
    "ExecutionMode": 16,
    "Capability": 17,
    "TypeVoid": 19,
    "TypeBool": 20,
    "TypeInt": 21,
    "TypeFloat": 22,
    "TypeVector": 23,
    "TypeArray": 28,
    "TypeRuntimeArray": 29,
    "TypeStruct": 30,
    "TypePointer": 32,
    "TypeFunction": 33,
    "ConstantTrue": 41,
    "ConstantFalse": 42,
    "Constant": 43,
    "Function": 54,
    "FunctionEnd": 56,
    "Variable": 59,
    "Load": 61,
    "Store": 62,
    "AccessChain": 65,
    "Decorate": 71,
    "MemberDecorate": 72,
    "CompositeExtract": 81,
    "ConvertFToU": 109,
    "ConvertFToS": 110,
    "ConvertSToF": 111,
    "ConvertUToF": 112,
    "UConvert": 113,
    "SConvert": 114,
    "FConvert": 115,
    "Bitcast": 124,
    "FNegate": 127,
    "IAdd": 128,
    "FAdd": 129,
    "ISub": 130,
    "FSub": 131,
    "IMul": 132,
    "FMul": 133,
    "UDiv": 134,
    "SDiv": 135,
    "FDiv": 136,
    "UMod": 137,
    "FRem": 140,
    "UMulExtended": 151,
    "IsNan": 156,
    "IsInf": 157,
    "LogicalEqual": 164,
    "LogicalNotEqual": 165,
    "LogicalOr": 166,
    "LogicalAnd": 167,
    "LogicalNot": 168,
    "Select": 169,
    "IEqual": 170,
    "INotEqual": 171,
    "UGreaterThan": 172,
    "SGreaterThan": 173,
    "UGreaterThanEqual": 174,
    "SGreaterThanEqual": 175,
    "ULessThan": 176,
    "SLessThan": 177,
    "ULessThanEqual": 178,
    "SLessThanEqual": 179,
    "FOrdEqual": 180,
    "FUnordNotEqual": 183,
    "FOrdLessThan": 184,
    "FOrdGreaterThan": 186,
    "FOrdLessThanEqual": 188,
    "FOrdGreaterThanEqual": 190,
    "ShiftRightLogical": 194,
    "ShiftRightArithmetic": 195,
    "ShiftLeftLogical": 196,
    "BitwiseOr": 197,
    "BitwiseXor": 198,
    "BitwiseAnd": 199,
    "Not": 200,
    "BitFieldSExtract": 202,
    "BitFieldUExtract": 203,
    "BitCount": 205,
    "ControlBarrier": 224,
    "Phi": 245,
    "LoopMerge": 246,
    "SelectionMerge": 247,
    "Label": 248,
    "Branch": 249,
    "BranchConditional": 250,
    "Return": 253,
    "SDotKHR": 4450,
    "SUDotKHR": 4452,
}
GLSL = {  # extended instructions of GLSL.std.450
    "RoundEven": 2,
    "Trunc": 3,
    "FAbs": 4,
    "Floor": 8,
    "Ceil": 9,
    "Tanh": 21,
    "Pow": 26,
    "Exp": 27,
    "Log": 28,
    "Exp2": 29,
    "Log2": 30,
    "Sqrt": 31,
    "InverseSqrt": 32,
    "FMin": 37,
    "UMin": 38,
    "SMin": 39,
    "FMax": 40,
    "UMax": 41,
    "SMax": 42,
    "UnpackHalf2x16": 62,
    "FindUMsb": 75,
}
CAPABILITIES = {
    "Shader": 1,
    "Float16": 9,
    "Float64": 10,
    "Int64": 11,
    "StorageBuffer16BitAccess": 4433,
    "StorageBuffer8BitAccess": 4448,
    "DotProductInput4x8BitPackedKHR": 6018,
    "DotProductKHR": 6019,
}
STORAGE = {
    "Uniform": 2,
    "Input": 1,
    "Workgroup": 4,
    "Function": 7,
    "PushConstant": 9,
    "StorageBuffer": 12,
}
DECORATIONS = {
    "Block": 2,
    "ArrayStride": 6,
    "BuiltIn": 11,
    "Aliased": 20,
    "NonWritable": 24,
    "Binding": 33,
    "DescriptorSet": 34,
    "Offset": 35,
}
BUILTINS = {"NumWorkgroups": 24, "WorkgroupId": 26, "LocalInvocationId": 27}
EFFECTS = {
    "Store",
    "ControlBarrier",
    "Phi",
    "LoopMerge",
    "SelectionMerge",
    "Label",
    "Branch",
    "BranchConditional",
    "Return",
    "Function",
    "FunctionEnd",
}


@dataclass(frozen=True)
class Instruction:
    """`type` and `result` are 0 where the instruction has none; `operands` are words, ids among
    them.
    """

    opcode: str
    type: int
    result: int
    operands: tuple[int, ...]

    def words(self) -> list[int]:
        """The instruction as 32-bit words."""
        ids = [i for i in (self.type, self.result) if i]
        return [
            (1 + len(ids) + len(self.operands)) << 16 | OPCODES[self.opcode],
            *ids,
            *self.operands,
        ]


def text(string: str) -> list[int]:
    """A string as SPIR-V's words: zero-terminated, padded."""
    raw = string.encode()
    raw += bytes(4 - len(raw) % 4)
    return list(struct.unpack(f"<{len(raw) // 4}I", raw))


class Module:
    """One compute shader. Types and constants are made when first asked for, equal ones once."""

    def __init__(self) -> None:
        self._last = 0
        self._declared: dict[tuple, int] = {}
        self._declarations: list[Instruction] = []
        self._decorations: list[Instruction] = []
        self._capabilities = {"Shader": None}
        self._extensions: dict[str, None] = {}
        self._inputs: dict[str, int] = {}
        self.variables: list[Instruction] = []  # of the function
        self.body: list[Instruction] = []
        self.glsl = self.new_id()
        self.start = self.new_id()  # the label of the function's first block

    def new_id(self) -> int:
        """An id that nothing else has."""
        self._last += 1
        return self._last

    def require(self, capability: str, extension: str | None = None) -> None:
        """Declare that the module needs a capability, and the extension that brings it."""
        self._capabilities[capability] = None
        if extension:
            self._extensions[extension] = None

    def declare(self, opcode: str, *operands: int, type: int = 0) -> int:
        """The id of a type or constant."""
        key = (opcode, type, operands)
        if key not in self._declared:
            self._declared[key] = self.new_id()
            self._declarations.append(Instruction(opcode, type, self._declared[key], operands))
        return self._declared[key]

    def integer(self, bits: int = 32) -> int:
        """Integers without a sign of their own: it is the operations that have one."""
        return self.declare("TypeInt", bits, 0)

    def number(self, value: int) -> int:
        """A 32-bit constant."""
        return self.declare("Constant", value & 0xFFFFFFFF, type=self.integer())

    def pointer(self, storage: str, to: int) -> int:
        """The type of pointers to the type `to` in a storage class."""
        return self.declare("TypePointer", STORAGE[storage], to)

    def array(self, element: int, length: int) -> int:
        """The type of arrays of `length` elements."""
        return self.declare("TypeArray", element, self.number(length))

    def decorate(self, target: int, decoration: str, *operands: int) -> None:
        """Attach a decoration to an id."""
        self._decorations.append(
            Instruction("Decorate", 0, 0, (target, DECORATIONS[decoration], *operands))
        )

    def variable(self, storage: str, type: int) -> int:
        """A variable outside of the function, or inside, where every invocation has its own."""
        where = self.variables if storage == "Function" else self._declarations
        where.append(
            Instruction("Variable", self.pointer(storage, type), self.new_id(), (STORAGE[storage],))
        )
        return where[-1].result

    def block(self, storage: str, members: tuple[int, ...], offsets: Iterable[int]) -> int:
        """A variable that holds a struct in memory shared with the host."""
        struct_type = self.new_id()
        self._declarations.append(Instruction("TypeStruct", 0, struct_type, members))
        self.decorate(struct_type, "Block")
        for i, offset in enumerate(offsets):
            operands = (struct_type, i, DECORATIONS["Offset"], offset)
            self._decorations.append(Instruction("MemberDecorate", 0, 0, operands))
        return self.variable(storage, struct_type)

    def runtime_array(self, element: int, stride: int) -> int:
        """An array as long as its buffer."""
        key = ("TypeRuntimeArray", 0, (element,))
        if key not in self._declared:
            self.decorate(self.declare("TypeRuntimeArray", element), "ArrayStride", stride)
        return self._declared[key]

    def builtin(self, name: str) -> int:
        """The variable with three numbers of an invocation."""
        if name not in self._inputs:
            self._inputs[name] = self.variable(
                "Input", self.declare("TypeVector", self.integer(), 3)
            )
            self.decorate(self._inputs[name], "BuiltIn", BUILTINS[name])
        return self._inputs[name]

    def words(self, name: str, local_size: tuple[int, int, int]) -> list[int]:
        """The module with its one entry point."""
        void = self.declare("TypeVoid")
        entry = self.new_id()
        function = Instruction("Function", void, entry, (0, self.declare("TypeFunction", void)))
        head = [Instruction("Capability", 0, 0, (CAPABILITIES[c],)) for c in self._capabilities]
        head += [Instruction("Extension", 0, 0, tuple(text(e))) for e in self._extensions]
        head += [
            Instruction("ExtInstImport", 0, self.glsl, tuple(text("GLSL.std.450"))),
            Instruction("MemoryModel", 0, 0, (0, 1)),  # logical addresses, GLSL450
            Instruction(
                "EntryPoint", 0, 0, (5, entry, *text(name), *self._inputs.values())
            ),  # GLCompute
            Instruction("ExecutionMode", 0, 0, (entry, 17, *local_size)),  # LocalSize
        ]
        start = [function, Instruction("Label", 0, self.start, ()), *self.variables]
        end = [Instruction("Return", 0, 0, ()), Instruction("FunctionEnd", 0, 0, ())]
        parts = head + self._decorations + self._declarations + start + _used(self.body) + end
        return [
            MAGIC,
            VERSION,
            0,
            self._last + 1,
            0,
            *(word for part in parts for word in part.words()),
        ]


def _used(body: list[Instruction]) -> list[Instruction]:
    """Without the values that nothing reads. (An operand that is no id may keep a value; that does
    no harm.)
    """
    kept, used = (
        [],
        {word for i in body if i.opcode == "Phi" for word in i.operands},
    )  # some are computed below it
    for instruction in reversed(body):
        if instruction.opcode in EFFECTS or instruction.result in used:
            kept.append(instruction)
            used.update(instruction.operands)
    return kept[::-1]
