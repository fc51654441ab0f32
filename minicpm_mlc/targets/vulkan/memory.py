"""The arrays of a kernel: storage buffers, memory of the workgroup, and each invocation's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from minicpm_mlc.targets.vulkan.values import BOOL, Scalar, Unsupported, Values

MAX_PUSH_SCALARS = 16  # 128 bytes of push constants are what every device has


@dataclass
class Array:
    """`variable` points to the elements, in a storage buffer to the struct whose one member they
    are.
    """

    variable: int
    dtype: Scalar
    storage: str


@dataclass
class Arguments:
    """Of a kernel: each pointer a binding, scalars behind them in order."""

    values: Values
    bindings: dict[int, int] = field(default_factory=dict)  # of each pointer's handle
    written: set[int] = field(default_factory=set)  # bindings
    arrays: dict[tuple[int, Scalar], Array] = field(default_factory=dict)
    scalars: int = 0

    @property
    def uniform(self) -> bool:
        """True if the scalars don't fit into push constants."""
        return self.scalars > MAX_PUSH_SCALARS

    def array(self, binding: int, dtype: Scalar) -> Array:
        """A pointer's memory as elements of one type."""
        if (binding, dtype) not in self.arrays:
            values = self.values
            module = self.values.module
            elements = module.runtime_array(values.stored(dtype), max(dtype.bits, 8) // 8)
            variable = module.block("StorageBuffer", (elements,), [0])
            self._bind(variable, binding)
            self.arrays[binding, dtype] = Array(variable, dtype, "StorageBuffer")
        return self.arrays[binding, dtype]

    def _bind(self, variable: int, binding: int) -> None:
        self.values.module.decorate(variable, "DescriptorSet", 0)
        self.values.module.decorate(variable, "Binding", binding)

    def load_scalars(self, dtypes: list[Scalar]) -> list[int]:
        """The scalar arguments, each from its slot of 8 bytes."""
        self.scalars = len(dtypes)
        if not dtypes:
            return []
        values = self.values
        storage = "Uniform" if self.uniform else "PushConstant"
        types = tuple(values.type(t) for t in dtypes)
        if BOOL in dtypes or any(t.bits < 32 for t in dtypes):
            raise Unsupported("scalar arguments of fewer than 32 bits")
        block = values.module.block(storage, types, [8 * i for i in range(len(types))])
        if self.uniform:
            self._bind(block, len(self.bindings))
        pointers = [
            values.emit(
                "AccessChain", values.module.pointer(storage, type), block, values.module.number(i)
            )
            for i, type in enumerate(types)
        ]
        return [
            values.emit("Load", type, pointer)
            for type, pointer in zip(types, pointers, strict=True)
        ]

    def finish(self) -> None:
        """Say which buffers are only read; those that are written may share memory with others."""
        for (binding, _), array in self.arrays.items():
            self.values.module.decorate(
                array.variable, "Aliased" if binding in self.written else "NonWritable"
            )


def element(values: Values, array: Array, index: int) -> int:
    """A pointer to an element."""
    if array.storage == "StorageBuffer":
        pointer = values.module.pointer(array.storage, values.stored(array.dtype))
        return values.emit("AccessChain", pointer, array.variable, values.module.number(0), index)
    return values.emit(
        "AccessChain",
        values.module.pointer(array.storage, values.type(array.dtype)),
        array.variable,
        index,
    )


def load(values: Values, array: Array, index: int) -> int:
    """The number at an index of an array, as wide as registers hold it."""
    pointer = element(values, array, index)
    if array.storage == "StorageBuffer":
        return values.widen(values.append("Load", values.stored(array.dtype), pointer), array.dtype)
    return values.append("Load", values.type(array.dtype), pointer)


def store(values: Values, array: Array, index: int, value: int) -> None:
    """Write a number to an index of an array, as narrow as the array holds it."""
    pointer = element(values, array, index)
    if array.storage == "StorageBuffer":
        value = values.narrow(value, array.dtype)
    values.append("Store", 0, pointer, value)
