"""Bytes that a decode step has to read: what its device's memory allows is how fast it can be."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.bundle.params import load_params
from minicpm_mlc.runtime_py.gears import Gears


@dataclass(frozen=True)
class Traffic:
    """Bytes that one decode step must read. `kv_per_token` holds keys, values and, with sparse
    attention, means.
    """

    weights: int
    kv_per_token: int
    gears: Gears | None = None
    means_per_token: int = 0

    def per_step(self, depth: float) -> float:
        """At `depth` cached tokens: all of their keys and values, or every mean and the blocks that
        are selected.
        """
        keys_and_values = self.kv_per_token - self.means_per_token
        if self.gears is None or not self.gears.sparse(int(depth)):
            return self.weights + keys_and_values * depth
        read, _ = self.gears.blocks(int(depth))
        return (
            self.weights
            + self.means_per_token * depth
            + keys_and_values * min(depth, read * self.gears.block_size)
        )


def bundle_traffic(bundle: Bundle, gears: Gears) -> Traffic:
    """Every weight is read once per step, except an embedding table that isn't the head too: one
    row of it is.
    """
    tied = bundle.manifest.model["tie_word_embeddings"]
    named = zip(bundle.manifest.params, load_params(bundle), strict=True)
    weights = sum(
        array.nbytes for name, array in named if tied or not name.startswith("embedding.")
    )
    return Traffic(
        weights, bundle.manifest.memory["kv_per_token"], gears, _means_per_token(bundle.manifest)
    )


def _means_per_token(manifest: Manifest) -> int:
    means = [entry.bytes for entry in manifest.state if entry.name == "means"]
    return sum(means) // manifest.page_size
