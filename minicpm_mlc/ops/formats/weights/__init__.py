"""Weight schemes: how a matrix is quantised, packed and stored, and how kernels read it back.

Each file of `schemes/` is one scheme, found by its name. This list needs neither NumPy nor TVM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minicpm_mlc.ops.formats.weights.base import Scheme

LANES = 16  # rows interleaved in one block
GROUP = 32  # columns that kernels read together; a scale covers a whole number of these


class _Schemes(Mapping[str, "Scheme"]):
    """The schemes by name; a scheme's file is imported when it is asked for."""

    def __init__(self) -> None:
        folder = Path(__file__).parent / "schemes"
        self._names = sorted(module.name for module in iter_modules([str(folder)]))

    def __getitem__(self, name: str) -> Scheme:
        if name not in self._names:
            raise KeyError(name)
        return import_module(f"{__name__}.schemes.{name}").SCHEME

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


SCHEMES: Mapping[str, Scheme] = _Schemes()
