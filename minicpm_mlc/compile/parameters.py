"""How a bundle stores things: weights, and keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights.base import Scheme


@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools.

    Arithmetic is float32; with `activations` "int8" integer weights meet inputs rounded to 8 bits.
    """

    linear: Scheme
    embedding: Scheme
    kv: KVFormat
    activations: str = "f32"

    @property
    def matrices(self) -> Scheme:
        """How linears are stored, laid out for the activations."""
        return self.linear.beside(self.activations)

    @property
    def tables(self) -> Scheme:
        """How the embedding and the head are stored, laid out for the activations."""
        return self.embedding.beside(self.activations)
