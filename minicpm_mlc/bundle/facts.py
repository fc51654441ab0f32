"""What a compiled library says of itself, and whether a bundle's files say the same.

Nothing signs a manifest. So the library holds what it was compiled from: the manifest but for its
files, every tensor that it takes, and which kernel cases are its own. A bundle's files are held
against that before any number of theirs reaches compiled code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES
from minicpm_mlc.bundle.manifest import REPAIR, Bundle, Manifest
from minicpm_mlc.bundle.manifest_schema import MANIFEST
from minicpm_mlc.bundle.params import TENSOR_CACHE, numpy_dtype

FACTS = "bundle_facts"  # the library's function that returns them


@dataclass(frozen=True)
class TensorFact:
    """A stored tensor that the library takes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """`manifest`: Manifest.compiled_part; `tensors`: in the library's order; `cases`: the SHA-256
    of kernel-cases.npz.
    """

    manifest: dict[str, Any]
    tensors: tuple[TensorFact, ...]
    cases: str

    @staticmethod
    def of(manifest: Manifest, tensors: Iterable[TensorFact], cases: str) -> Facts:
        """Those of a library that is being compiled; `manifest` names the tensors already."""
        return Facts(manifest.compiled_part(), tuple(tensors), cases)

    def to_text(self) -> str:
        """What the library holds."""
        tensors = [[each.name, each.dtype, each.shape] for each in self.tensors]
        return json.dumps({"manifest": self.manifest, "tensors": tensors, "cases": self.cases})

    @staticmethod
    def from_text(text: str) -> Facts:
        """The inverse of to_text."""
        value = json.loads(text)
        tensors = (TensorFact(name, dtype, tuple(shape)) for name, dtype, shape in value["tensors"])
        return Facts(value["manifest"], tuple(tensors), value["cases"])

    def check(self, bundle: Bundle) -> None:
        """Raises BundleError where the manifest says something else than the library."""
        wrong = _difference(bundle.manifest.compiled_part(), self.manifest)
        if wrong:
            place, seen, expected = wrong
            own = bundle.path / (bundle.manifest.part + MANIFEST)
            raise BundleError(
                f"{own} is damaged at {place!r}: {seen!r:.60}, and "
                f"{bundle.manifest.library} was compiled for {expected!r:.60}; {REPAIR}"
            )
        cases = bundle.named(KERNEL_CASES)
        if bundle.manifest.files.get(cases, {}).get("sha256") != self.cases:
            raise BundleError(
                f"{bundle.path / cases} is missing or not the one that "
                f"{bundle.manifest.library} was compiled with; {REPAIR}"
            )

    def check_tensors(self, bundle: Bundle, arrays: Sequence[np.ndarray]) -> None:
        """Raises BundleError where the stored arrays have other shapes or dtypes than the library
        takes.
        """
        for fact, array in zip(self.tensors, arrays, strict=True):
            if (array.shape, array.dtype) != (fact.shape, numpy_dtype(fact.dtype)):
                raise BundleError(
                    f"{bundle.path / TENSOR_CACHE} is damaged at {fact.name!r}: {array.dtype} "
                    f"{list(array.shape)}, and {bundle.manifest.library} was compiled for "
                    f"{fact.dtype} {list(fact.shape)}; {REPAIR}"
                )


def _difference(seen: Any, expected: Any) -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, and what stands there; None if they don't."""
    if isinstance(seen, dict) and isinstance(expected, dict):
        for key in sorted(seen.keys() | expected.keys()):
            if wrong := _difference(seen.get(key), expected.get(key)):
                place, *values = wrong
                return f"{key}: {place}" if place else key, *values
        return None
    # type too: 1 is not true, nor 1.0
    return None if json.dumps(seen) == json.dumps(expected) else ("", seen, expected)
