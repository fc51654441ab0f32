"""How a bundle stores things: weights, and keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minicpm_mlc.ops.formats.kv import KVFormat
from minicpm_mlc.ops.formats.weights.base import Scheme


@dataclass(frozen=True)
class Precision:
    """What is stored how: linears, embedding and head, and the key/value pools.

    Arithmetic is float32; with `activations` "int8" integer weights meet inputs rounded to 8 bits.
    `mixed`: the linears that aren't as `linear` says, by the first published tensor of each.
    """

    linear: Scheme
    embedding: Scheme
    kv: KVFormat
    activations: str = "f32"
    mixed: Mapping[str, Scheme] = field(default_factory=dict)

    def of(self, source: str) -> Scheme:
        """How the linear of a published tensor is stored, laid out for the activations."""
        return self.mixed.get(source, self.linear).beside(self.activations)

    @property
    def matrices(self) -> Scheme:
        """How linears are stored, laid out for the activations."""
        return self.linear.beside(self.activations)

    @property
    def tables(self) -> Scheme:
        """How the embedding and the head are stored, laid out for the activations."""
        return self.embedding.beside(self.activations)
