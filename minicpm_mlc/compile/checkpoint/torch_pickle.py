"""The objects that torch.save describes in data.pkl, built step by step and without `pickle`.

A pickle is a program for a machine with a stack and a memo. This machine knows the steps that plain
values and tensors take. It calls nothing that the program names, and what the program can make it
do is bounded by the program's length.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minicpm_mlc.compile.checkpoint.safetensors import ITEM_BYTES, MAX_RANK

MAX_STEPS = 1 << 19  # the longest frequency lists have as many tokens as a vocabulary
STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "BoolStorage": "BOOL",
}


class RefusedError(Exception):
    """A program that asks for more than numbers, containers and tensors."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in the zip: which member, and from which element on."""

    member: str
    dtype: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    dtype: str
    member: str


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


def build(program: bytes, folder: str) -> Any:
    """The object of a data.pkl whose tensors' numbers are members of the zip in `folder`.

    Raises RefusedError as the class says, and nearly anything for a damaged program.
    """
    machine = _Machine(folder)
    for number, (step, argument, _) in enumerate(pickletools.genops(program)):
        if number == MAX_STEPS:
            raise RefusedError(f"more than {MAX_STEPS:,} values")
        machine.take(step.name, argument)
    return machine.stack.pop()


class _Machine:
    def __init__(self, folder: str) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._folder = folder

    def take(self, step: str, argument: Any) -> None:
        """One step of the program."""
        if step in _VALUES:
            self.stack.append(argument)
        elif step in _CONSTANTS:
            self.stack.append(_CONSTANTS[step]())
        elif step in _STEPS:
            _STEPS[step](self, argument)
        elif step not in _IDLE:
            raise RefusedError(f"a pickle's {step}")

    def pop(self, count: int) -> list[Any]:
        """The last values of the stack, in their order."""
        if count > len(self.stack):
            raise ValueError("a step finds too few values")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def marked(self) -> list[Any]:
        """The values since the last mark."""
        return self.pop(len(self.stack) - self._marks.pop())

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def keep(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def name(self, argument: str) -> None:
        self.stack.append(_known(*argument.split(" ")))

    def name_on_stack(self, _: Any) -> None:
        self.stack.append(_known(*self.pop(2)))

    def storage(self, _: Any) -> None:
        (kind, storage, key, *_), *_ = self.pop(1)
        if kind != "storage" or not isinstance(storage, _Storage):
            raise RefusedError(f"a {kind!r:.40}")
        self.stack.append(_Storage(storage.dtype, f"{self._folder}{key}"))

    def call(self, _: Any) -> None:
        what, arguments = self.pop(2)
        if not isinstance(what, _Global):
            raise RefusedError(f"a call of {type(what).__name__}")
        self.stack.append(_CALLS[what](*arguments))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("values are appended to what is no list")
        target += values

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        keys, items = values[::2], values[1::2]
        if type(target) is not dict or not all(type(key) is str for key in keys):
            raise RefusedError("a dict whose keys are not text")
        target.update(zip(keys, items, strict=True))


def _known(module: str, name: str) -> _Global | _Storage:
    if module == "torch" and name in STORAGES:
        return _Storage(STORAGES[name], "")
    found = _Global(module, name)
    if found not in _CALLS:
        raise RefusedError(f"{module}.{name}")
    return found


def _tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> TensorPlace:
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) > MAX_RANK:
        raise ValueError(f"a tensor whose shape has more than {MAX_RANK} sizes, or is none")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *shape, *stride)):
        raise ValueError("a tensor with a size that is no whole number below 2^63")
    step = 1
    for size, own in zip(reversed(shape), reversed(stride), strict=True):
        if own != step and size > 1:
            raise ValueError(f"a tensor of shape {shape} with strides {stride}")
        step *= size
    return TensorPlace(storage.member, storage.dtype, offset, shape)


assert set(STORAGES.values()) <= ITEM_BYTES.keys()
_IDLE = {"PROTO", "FRAME", "STOP"}
_VALUES = set("BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split())
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_CALLS: dict[_Global, Callable[..., Any]] = {
    _Global("collections", "OrderedDict"): lambda: {},
    _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Global("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.keep,
    "LONG_BINPUT": _Machine.keep,
    "MEMOIZE": _Machine.keep,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "BUILD": lambda machine, _: machine.pop(1),  # a state dict's metadata
}
