"""Quantised checkpoints: each file of this folder reads one form, and is found by its METHODS.

Such a file has

    METHODS: tuple[str, ...]        the names of the form in a config
    def reader(stated: Stated, found: Found) -> Reader

A reader gives the tensor that stands for a published matrix, or None for one that is stored as
floats. What the config says is checked when the reader is made, what the files hold when a tensor
is; both raise CheckpointError.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.files import Found
from minicpm_mlc.compile.checkpoint.tensor import Tensor
from minicpm_mlc.compile.config.keys import shown

Shapes = Mapping[str, tuple[int, ...]]  # of the published tensors


@dataclass(frozen=True)
class Stated:
    """What a checkpoint says of its quantisation, and the file and key that say it."""

    method: str
    values: dict[str, Any]
    where: str

    def refuse(self, key: str, expected: str) -> CheckpointError:
        """The error of a key's value."""
        found = shown(self.values.get(key))
        return CheckpointError(
            f"{self.where}: {key} is {found}, expected {expected}; {UNQUANTISED}"
        )

    def require(self, key: str, *allowed: Any) -> None:
        """Raises CheckpointError unless a key has one of these values, or is absent."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self.refuse(key, " or ".join(map(shown, allowed)))


@dataclass(frozen=True)
class Reader:
    """`tensor` reads a published matrix by its name, given the shapes of all; `remarks` are for
    the user. Tensors with the ends `beside` stand for no weight.
    """

    tensor: Callable[[str, Shapes], Tensor | None]
    remarks: list[str] = field(default_factory=list)
    beside: tuple[str, ...] = ()


UNQUANTISED = "compile the unquantised checkpoint instead"


@cache
def forms() -> dict[str, ModuleType]:
    """The file of every form by its names."""
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(name) for name in names]
    return {method: m for m in modules for method in getattr(m, "METHODS", ())}


def open_form(stated: Stated, found: Found) -> Reader:
    """The reader of a stated form. Raises CheckpointError for one that no file here reads."""
    if stated.method not in forms():
        raise CheckpointError(
            f"{stated.where}: {shown(stated.method)} is not a form that is read, expected one of "
            f"{', '.join(sorted(forms()))}; {UNQUANTISED}"
        )
    return forms()[stated.method].reader(stated, found)
