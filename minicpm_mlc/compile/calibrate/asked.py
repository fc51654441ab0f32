"""What `compile` does with text, where it is asked to: calibrate, and spend a budget of bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.progress import Progress
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile.calibrate.forecast import calibration_seconds
from minicpm_mlc.compile.calibrate.layers import Calibration, require_integers
from minicpm_mlc.compile.calibrate.sensitivity import (
    Sensitivity,
    check_budget,
    spread,
    within_budget,
)
from minicpm_mlc.compile.calibrate.texts import MOST, calibration_sequences, said_of
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.groups import GroupScheme


@dataclass(frozen=True)
class TextWork:
    """`sequences` of a text that a model is run on: to spread `bits` a weight over its linears if
    they are given, and to calibrate if that is asked for.
    """

    sequences: list[np.ndarray]
    calibrate: bool
    bits: float | None

    @classmethod
    def asked(
        cls,
        files: SmallFiles,
        config: ModelConfig,
        calibrate: Sequence[str | Path] | None,
        bits: float | None,
        carried: bool,
    ) -> TextWork | None:
        """None where neither is asked for. `carried`: whether weights are stored in integers that
        the source has. Raises CompileError.
        """
        if calibrate is None and bits is None:
            return None
        option = "--bits" if calibrate is None else "--calibrate"
        if config.lightning_layers:
            raise CompileError(
                f"{option}: {config.name} keeps state per sequence, which calibration does not "
                "run; leave it out"
            )
        if carried:
            raise CompileError(
                f"{option} would round again what the file has quantised; leave it out, or compile "
                "the unquantised checkpoint"
            )
        texts = [Path(text) for text in calibrate or ()]
        sequences = calibration_sequences(files, config, texts)
        return cls(sequences, calibrate is not None, bits)

    def spent(
        self, config: ModelConfig, precision: Precision, weights: Checkpoint, progress: Progress
    ) -> Precision:
        """The precision with more bits for the linears that need them, as many as `bits` allow."""
        if self.bits is None:
            return precision
        base = require_integers(precision.linear, "--bits")
        run = Sensitivity(config, precision, weights, spread(self.sequences))
        params = of_linears(run.model.parameters())
        check_budget(params, precision.linear, self.bits)
        found = run.measure(richer(base), progress)
        linears = sum(param.weights for param in params)
        return replace(precision, mixed=within_budget(found, precision.linear, self.bits, linears))

    def calibration(
        self, compilation: Compilation, weights: Checkpoint, bundle: Path
    ) -> Calibration | None:
        """The run, if it is asked for; it keeps what is done beside the bundle. `weights`: those of
        the draft head too.
        """
        if not self.calibrate:
            return None
        folder = bundle.absolute().with_name(f".{bundle.name}.calibration")
        config, precision = compilation.config, compilation.precision
        return Calibration(config, precision, weights, self.sequences, folder, compilation.draft)

    @property
    def said(self) -> dict[str, Any] | None:
        """What the manifest says of it."""
        return said_of(self.sequences) if self.calibrate else None


def richer(base: GroupScheme) -> list[GroupScheme]:
    """The scheme, and those of integers that take more bits."""
    others = [each for each in SCHEMES.values() if isinstance(each, GroupScheme)]
    return [base, *(each for each in others if bits_of(each) > bits_of(base))]


def bits_of(scheme: GroupScheme) -> float:
    """Bits that a weight takes, its share of the group's numbers included."""
    tensors = scheme.group_tensors
    numbers = sum(t.count * np.dtype(t.dtype).itemsize / t.columns for t in tensors)
    return scheme.values.bits + 8 * numbers


def of_linears(params: Sequence[Param]) -> list[Param]:
    """The linears of the layers."""
    return [param for param in params if param.columns and param.name.startswith("layers.")]


def calibration_offer(params: Sequence[Param]) -> str | None:
    """What calibrating would gain and cost; None where the linears are not of 4 bits."""
    linears = of_linears(params)
    if not all(isinstance(p.scheme, GroupScheme) and p.scheme.values.bits <= 4 for p in linears):
        return None
    seconds = calibration_seconds(linears, MOST)
    return (
        "--calibrate would bring the answers closer to the unquantised model's (a third of the "
        f"divergence, docs/quality.md) and take about {_duration(seconds)} here"
    )


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.0f} hours"
