"""TIR expressions as instructions. One method per class of node, found by the class's name."""

from __future__ import annotations

from minicpm_mlc.ops.tir import Expr
from minicpm_mlc.targets.vulkan import memory
from minicpm_mlc.targets.vulkan.memory import Array
from minicpm_mlc.targets.vulkan.trigonometry import sine
from minicpm_mlc.targets.vulkan.values import (
    BOOL,
    FLOAT32,
    INT32,
    Features,
    Scalar,
    Unsupported,
    Values,
    scalar,
)

ARITHMETIC = {  # of signed and unsigned integers, and floats
    "Add": ("IAdd", "IAdd", "FAdd"),
    "Sub": ("ISub", "ISub", "FSub"),
    "Mul": ("IMul", "IMul", "FMul"),
    "Div": ("SDiv", "UDiv", "FDiv"),
    "BitwiseAnd": ("BitwiseAnd",) * 2,
    "BitwiseOr": ("BitwiseOr",) * 2,
    "BitwiseXor": ("BitwiseXor",) * 2,
    "LShift": ("ShiftLeftLogical",) * 2,
    "RShift": ("ShiftRightArithmetic", "ShiftRightLogical"),
}
EXTENDED = {"Min": ("SMin", "UMin", "FMin"), "Max": ("SMax", "UMax", "FMax")}
COMPARISONS = {
    "EQ": ("IEqual", "IEqual", "FOrdEqual", "LogicalEqual"),
    "NE": ("INotEqual", "INotEqual", "FUnordNotEqual", "LogicalNotEqual"),
    "LT": ("SLessThan", "ULessThan", "FOrdLessThan"),
    "LE": ("SLessThanEqual", "ULessThanEqual", "FOrdLessThanEqual"),
    "GT": ("SGreaterThan", "UGreaterThan", "FOrdGreaterThan"),
    "GE": ("SGreaterThanEqual", "UGreaterThanEqual", "FOrdGreaterThanEqual"),
}
OVERFLOWS = {"Add", "Sub", "Mul", "LShift", "Div"}  # what may leave the range of a small integer
MATHS = {  # functions by their names in TVM and C
    "exp": "Exp",
    "exp2": "Exp2",
    "log": "Log",
    "log2": "Log2",
    "pow": "Pow",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "rsqrt": "InverseSqrt",
    "fabs": "FAbs",
    "floor": "Floor",
    "ceil": "Ceil",
    "trunc": "Trunc",
    "nearbyint": "RoundEven",
}
ANY_WIDTH = {
    "Sqrt",
    "InverseSqrt",
    "FAbs",
    "Floor",
    "Ceil",
    "Trunc",
    "RoundEven",
}  # what GLSL.std.450 has for float64 too
KINDS = "iufb"


def node_type(node: Expr) -> Scalar:
    """The type of the numbers that an expression gives."""
    return scalar(str(node.ty.dtype))


def handle(node: Expr) -> int:
    """What tells a node from all others."""
    return node.__chandle__()


class Expressions(Values):
    """Values of TIR's expressions, in the scope where they are asked for."""

    def __init__(self, features: Features) -> None:
        super().__init__(features)
        self.arrays: dict[int, Array] = {}  # by the handle of the buffer
        self.block = self.module.start  # the label that the next instruction comes after
        self._reads = 0  # values so far that another moment would give another way

    def value(self, node: Expr) -> int:
        """An expression's value; of a node without reads, computed once in a scope."""
        key = handle(node)
        found = self.known(key)
        if found is None:
            method = getattr(self, f"_{type(node).__name__}", None)
            reads = self._reads
            found = method(node) if method else self._operator(node)
            if self._reads == reads:
                self.scopes[-1][key] = found
        return found

    def bind(self, variable: Expr, value: int) -> None:
        """Give a TIR variable its value, in the innermost scope."""
        self.scopes[-1][handle(variable)] = value

    def label(self, name: int) -> None:
        """Begin a block."""
        self.block = self.define("Label", 0, name)

    def branch(self, condition: int, arms: tuple[Expr, Expr]) -> list[tuple[int, int]]:
        """Call one arm or the other, each in its own scope. Returns (what it returned, the block it
        ended in) of both.
        """
        labels = [self.module.new_id() for _ in arms]
        merge = self.module.new_id()
        self.append("SelectionMerge", 0, merge, 0)
        self.append("BranchConditional", 0, condition, *labels)
        results = []
        for name, arm in zip(labels, arms, strict=True):
            self.label(name)
            self.scopes.append({})
            results.append((arm(), self.block))
            self.scopes.pop()
            self.append("Branch", 0, merge)
        self.label(merge)
        return results

    def _operator(self, node: Expr) -> int:
        name = type(node).__name__
        if name not in ARITHMETIC and name not in EXTENDED and name not in COMPARISONS:
            raise Unsupported(f"{name} expressions")
        a = self.value(node.a)
        b = self.value(node.b)
        t = node_type(node.a)
        table = ARITHMETIC.get(name) or EXTENDED.get(name) or COMPARISONS[name]
        if KINDS.index(t.kind) >= len(table):
            raise Unsupported(f"{name} of {t.kind}{t.bits}")
        opcode = table[KINDS.index(t.kind)]
        if name in COMPARISONS:
            return self.emit(opcode, self.type(BOOL), a, b)
        if name in EXTENDED:
            return self.glsl(opcode, self.type(t), a, b)
        result = self.emit(opcode, self.type(t), a, b)
        return self.wrap(t, result) if name in OVERFLOWS else result

    def _Mod(self, node: Expr) -> int:
        """The remainder of a division that rounds towards zero; SRem has no defined result for
        negative numbers.
        """
        a = self.value(node.a)
        b = self.value(node.b)
        t = node_type(node)
        if t.kind != "i":
            return self.emit("UMod" if t.kind == "u" else "FRem", self.type(t), a, b)
        quotient = self.emit("SDiv", self.type(t), a, b)
        return self.emit("ISub", self.type(t), a, self.emit("IMul", self.type(t), quotient, b))

    def _Var(self, node: Expr) -> int:
        raise Unsupported(f"the variable {node.name}, which has no value here")

    def _IntImm(self, node: Expr) -> int:
        return self.constant(node_type(node), node.value)

    _FloatImm = _IntImm

    def _Cast(self, node: Expr) -> int:
        return self.cast(self.value(node.value), node_type(node.value), node_type(node))

    def _And(self, node: Expr) -> int:
        return self.emit("LogicalAnd", self.type(BOOL), self.value(node.a), self.value(node.b))

    def _Or(self, node: Expr) -> int:
        return self.emit("LogicalOr", self.type(BOOL), self.value(node.a), self.value(node.b))

    def _Not(self, node: Expr) -> int:
        return self.emit("LogicalNot", self.type(BOOL), self.value(node.a))

    def _BitwiseNot(self, node: Expr) -> int:
        t = node_type(node)
        return self.wrap(t, self.emit("Not", self.type(t), self.value(node.a)))

    def _Select(self, node: Expr) -> int:
        """Both values are computed, as TIR says; if_then_else is what guards."""
        operands = (
            self.value(node.condition),
            self.value(node.true_value),
            self.value(node.false_value),
        )
        return self.emit("Select", self.type(node_type(node)), *operands)

    def _Let(self, node: Expr) -> int:
        self.bind(node.var, self.value(node.value))
        return self.value(node.body)

    def _TensorLoad(self, node: Expr) -> int:
        self._reads += 1
        return memory.load(self, self.array(node.source), self.index(node.indices))

    def array(self, buffer: Expr) -> Array:
        """The array that a TIR buffer is. Raises Unsupported for one that was not declared."""
        if handle(buffer) not in self.arrays:
            raise Unsupported(f"the buffer {buffer.name}, which is declared nowhere")
        return self.arrays[handle(buffer)]

    def index(self, indices: Expr) -> int:
        """The flat index of an access. Raises Unsupported for more than one dimension."""
        if len(indices) != 1:
            raise Unsupported(
                f"buffers of {len(indices)} dimensions; FlattenBuffer makes them flat"
            )
        return self.value(indices[0])

    def _Call(self, node: Expr) -> int:
        name = str(node.op.name).split(".")[-1]
        arguments = list(node.args)
        if name in (
            "call_pure_extern",
            "call_extern",
        ):  # what TVM makes of functions that it knows no better name for
            name = str(arguments.pop(0).value)
            name = name[:-1] if name.endswith("f") and name[:-1] in {*MATHS, "sin", "cos"} else name
        if name in MATHS:
            return self._maths(MATHS[name], node_type(node), *map(self.value, arguments))
        method = getattr(self, f"_call_{name}", None)
        if method is None:
            raise Unsupported(f"calls of {name}")
        return method(node, *arguments)

    def _maths(self, name: str, t: Scalar, *operands: int) -> int:
        if t.kind != "f" or (t.bits == 64 and name not in ANY_WIDTH):
            raise Unsupported(f"{name} of {t.kind}{t.bits}")
        return self.glsl(name, self.type(t), *operands)

    def _call_sin(self, node: Expr, x: Expr) -> int:
        return self._sine(node, x, 0)

    def _call_cos(self, node: Expr, x: Expr) -> int:
        return self._sine(node, x, 1)

    def _sine(self, node: Expr, x: Expr, quarter_turns: int) -> int:
        if node_type(node) != FLOAT32:
            raise Unsupported("sin and cos of other types than float32")
        return sine(self, self.value(x), quarter_turns)

    def _call_if_then_else(self, node: Expr, condition: Expr, then: Expr, otherwise: Expr) -> int:
        arms = self.branch(
            self.value(condition), (lambda: self.value(then), lambda: self.value(otherwise))
        )
        self._reads += 1
        return self.append(
            "Phi", self.type(node_type(node)), *(word for arm in arms for word in arm)
        )

    def _call_likely(self, _: Expr, x: Expr) -> int:
        return self.value(x)

    def _call_reinterpret(self, node: Expr, x: Expr) -> int:
        source = node_type(x)
        to = node_type(node)
        value = self.value(x)
        if source.whole and to.whole and source.bits == to.bits:
            return self.cast(value, source, to)
        if self.bits(source) != source.bits or self.bits(to) != to.bits or source.bits != to.bits:
            raise Unsupported(f"reinterpret of {source.kind}{source.bits} as {to.kind}{to.bits}")
        return self.emit("Bitcast", self.type(to), value)

    def _call_half_bits_to_float(self, _: Expr, bits: Expr) -> int:
        pair = self.module.declare("TypeVector", self.type(FLOAT32), 2)
        unpacked = self.glsl("UnpackHalf2x16", pair, self.value(bits))
        return self.emit("CompositeExtract", self.type(FLOAT32), unpacked, 0)

    def _call_dot_unsigned(self, _: Expr, weights: Expr, values: Expr, total: Expr) -> int:
        return self._dot("SUDotKHR", self.value(values), self.value(weights), total)

    def _call_dot_signed(self, _: Expr, weights: Expr, values: Expr, total: Expr) -> int:
        return self._dot("SDotKHR", self.value(values), self.value(weights), total)

    def _dot(self, opcode: str, values: int, weights: int, total: Expr) -> int:
        """`total` + the products of the bytes of two words, of which the first has signed ones."""
        for capability in ("DotProductInput4x8BitPackedKHR", "DotProductKHR"):
            self.module.require(capability, "SPV_KHR_integer_dot_product")
        packed = 0  # PackedVectorFormat4x8Bit
        product = self.emit(opcode, self.type(INT32), values, weights, packed)
        return self.emit("IAdd", self.type(INT32), product, self.value(total))

    def _call_popcount(self, node: Expr, x: Expr) -> int:
        return self.emit("BitCount", self.type(node_type(node)), self._bits_of(node, x))

    def _call_clz(self, node: Expr, x: Expr) -> int:
        """31 - the highest bit; that of 0 is -1."""
        highest = self.glsl("FindUMsb", self.type(INT32), self._bits_of(node, x))
        return self.emit(
            "ISub", self.type(node_type(node)), self.module.number(node_type(x).bits - 1), highest
        )

    def _bits_of(self, node: Expr, x: Expr) -> int:
        t = node_type(x)
        if not t.whole or t.bits == 64:
            raise Unsupported(f"{node.op.name} of {t.kind}{t.bits}")
        return self.cast(self.value(x), t, Scalar("u", t.bits))

    def _call_isnan(self, _: Expr, x: Expr) -> int:
        return self.emit("IsNan", self.type(BOOL), self.value(x))

    def _call_isinf(self, _: Expr, x: Expr) -> int:
        return self.emit("IsInf", self.type(BOOL), self.value(x))

    def _call_fmod(self, node: Expr, a: Expr, b: Expr) -> int:
        if node_type(node) != FLOAT32:
            raise Unsupported("fmod of other types than float32")
        return self.emit("FRem", self.type(FLOAT32), self.value(a), self.value(b))
