"""Which linears deserve more bits: what storing each of them in each scheme does to the model.

A layer is run with one of its linears rounded and all else exact. What counts is how far that moves
the residual stream behind the layer, at each token relative to the stream's size and once more for
every later token that attends to it: the weights that calibration rounds by. Relative errors of
different layers add up alike, so their sum stands for the loss of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.progress import Progress, no_progress
from minicpm_mlc.compile.calibrate.text_run import TextRun
from minicpm_mlc.compile.convert import Param, stored_bytes
from minicpm_mlc.compile.model.layers import Batch, Layer
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.formats.weights.groups import GroupScheme
from minicpm_mlc.ops.linear import Linear

SEQUENCES = 4  # of the calibration text, spread over it


@dataclass(frozen=True)
class Choice:
    """One linear in one scheme: how many bits it takes, and what it loses."""

    linear: str  # its first published tensor
    scheme: Scheme
    bits: int
    loss: float


class Sensitivity(TextRun):
    """Measures the loss of every linear in every scheme."""

    _rounded: tuple[str, np.ndarray] = ("", np.empty(0))  # a linear's name, and its weights

    def measure(
        self, schemes: Sequence[GroupScheme], progress: Progress = no_progress
    ) -> list[list[Choice]]:
        """The choices for each linear. `progress` counts layers, as the stage "sensitivity"."""
        found: list[list[Choice]] = []
        states, batch, layers = self.embedded(), self.batch(), self.model.layers
        for number, layer in enumerate(layers):
            progress("sensitivity", number, len(layers))
            with self.loaded(f"layers.{number}", layer):
                exact = self.layer(layer, states, batch)
                assert self.kernels.received is not None, "a layer has attention"
                counts = (1 + self.kernels.received) / (exact**2).mean(1)
                for param, matrix in self.matrices():
                    moved = [self._moved(param, matrix, s, layer, states, batch) for s in schemes]
                    losses = [float(((m - exact) ** 2).mean(1) @ counts) for m in moved]
                    pairs = zip(schemes, losses, strict=True)
                    found.append([_choice(param, *pair) for pair in pairs])
            states = exact
        progress("sensitivity", len(layers), len(layers))
        return found

    def multiply(
        self, param: Param, linear: Linear, x: np.ndarray, matrix: np.ndarray
    ) -> np.ndarray:
        name, rounded = self._rounded
        return x @ (rounded if name == param.name else matrix).T

    def _moved(
        self,
        param: Param,
        matrix: np.ndarray,
        scheme: GroupScheme,
        layer: Layer,
        states: np.ndarray,
        batch: Batch,
    ) -> np.ndarray:
        """The stream behind a layer with one linear rounded."""
        parts = scheme.quantize(matrix, param.name)
        self._rounded = param.name, scheme.dequantize(parts)
        try:
            return self.layer(layer, states, batch)
        finally:
            self._rounded = "", np.empty(0)


def _choice(param: Param, scheme: Scheme, loss: float) -> Choice:
    bits = 8 * stored_bytes([replace(param, scheme=scheme)])
    return Choice(param.sources[0], scheme, bits, loss)


def spread(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """SEQUENCES of them, from the whole text."""
    return sequences[:: max(1, len(sequences) // SEQUENCES)][:SEQUENCES]


def check_budget(params: Sequence[Param], base: Scheme, bits: float) -> None:
    """Raises CompileError for a budget that these linears exceed as `base`, before any is run."""
    stored = stored_bytes([replace(param, scheme=base) for param in params])
    least = 8 * stored / sum(param.weights for param in params)
    if bits < least:
        raise _too_few(bits, base, least)


def _too_few(bits: float, base: Scheme, least: float) -> CompileError:
    return CompileError(
        f"--bits {bits:g}: {base.name} linears take {least:.2f} bits a weight; give more, or leave "
        "--bits out"
    )


def within_budget(
    choices: Sequence[Sequence[Choice]], base: Scheme, bits: float, weights: int
) -> dict[str, Scheme]:
    """The linears that aren't stored as `base`: upgraded one after the other, each time where the
    loss falls most per bit, while all linears take at most `bits` a weight.

    Raises CompileError for a budget that `base` alone exceeds.
    """
    chosen = [next(c for c in of_one if c.scheme.name == base.name) for of_one in choices]
    room = bits * weights - sum(c.bits for c in chosen)
    if room < 0:
        raise _too_few(bits, base, sum(c.bits for c in chosen) / weights)
    upgrades = [(c, i) for i, of_one in enumerate(choices) for c in of_one]
    while fitting := [
        (gain(chosen[i], c), i, c) for c, i in upgrades if 0 < c.bits - chosen[i].bits <= room
    ]:
        best, i, choice = max(fitting, key=lambda each: each[0])
        if best <= 0:
            break
        room -= choice.bits - chosen[i].bits
        chosen[i] = choice
    return {c.linear: c.scheme for c in chosen if c.scheme.name != base.name}


def gain(before: Choice, after: Choice) -> float:
    """Loss that a larger choice saves per bit."""
    return (before.loss - after.loss) / (after.bits - before.bits)
