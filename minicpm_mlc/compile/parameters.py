"""How a bundle stores things: weights, and keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import WEIGHT_LAYOUTS
from minicpm_mlc.compile.quantize import Scheme
from minicpm_mlc.ops.formats.kv import KVFormat


@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools.

    Arithmetic is float32; with `activations` "int8" integer weights meet inputs rounded to 8 bits.
    """

    linear: Scheme
    embedding: Scheme
    kv: KVFormat
    activations: str = "f32"

    def layout(self, scheme: Scheme) -> str:
        """How weights of a scheme are interleaved (ops/formats/packing.py)."""
        return WEIGHT_LAYOUTS[self.activations if scheme.kind == "int" else "f32"]
