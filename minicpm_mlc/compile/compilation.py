"""What is compiled, when everything is chosen, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minicpm_mlc.bundle.facts import TensorFact
from minicpm_mlc.bundle.manifest import CPU_PART, Manifest
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param, stored_tensors
from minicpm_mlc.compile.make_manifest import make_manifest, with_draft
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.targets import Target
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.tuning import Tuning

if TYPE_CHECKING:
    from minicpm_mlc.compile.pipeline import Program  # imports TVM


@dataclass(frozen=True)
class Compilation:
    """A model for a target, for up to `longest` tokens of context and `chunk` rows of a prefill.

    `draft`: a draft head, and how it is stored. `calibration` and `source`: what the manifest says
    of the text that rounding saw, and of where the checkpoint is from. `tuning`: what was measured
    of the kernels' parameters, if anything. `part`: CPU_PART for a bundle's second library.
    """

    config: ModelConfig
    precision: Precision
    target: Target
    longest: int
    chunk: int
    draft: tuple[DraftConfig, Precision] | None = None
    calibration: dict[str, Any] | None = None
    source: str | None = None
    tuning: Tuning | None = None
    part: str = ""

    def for_processor(self, target: CpuTarget, activations: str) -> Compilation:
        """The same as the bundle's second library, for the processor beside the GPU."""
        precision = replace(self.precision, activations=activations)
        head = self.draft
        draft = head and (head[0], replace(head[1], activations=activations))
        tuning = Tuning.nearest(target)
        changed = {"target": target, "precision": precision, "draft": draft, "tuning": tuning}
        return replace(self, part=CPU_PART, **changed)

    @cached_property
    def params(self) -> list[Param]:
        """What is converted, in the library's order."""
        return build_model(self.config, self.precision, self.draft).parameters()

    @cached_property
    def tensors(self) -> list[TensorFact]:
        """What is stored, in the library's order."""
        stored = (tensor for param in self.params for tensor in stored_tensors(param))
        return [TensorFact(each.name, each.dtype, each.shape) for each in stored]

    @cached_property
    def manifest(self) -> Manifest:
        """The bundle's manifest, but for its files and the names of the stored tensors."""
        made = self._manifest
        made = replace(made, source=self.source, library=self.part + made.library)
        return with_draft(made, *self.draft, self.params) if self.draft else made

    @property
    def _manifest(self) -> Manifest:
        return make_manifest(
            self.config,
            self.precision,
            self.target,
            self.params,
            self.longest,
            self.chunk,
            self.calibration,
        )

    def program(self) -> Program:
        """The functions to lower. Raises AssertionError if they take other parameters than are
        converted.
        """
        from minicpm_mlc.compile.pipeline import build_program

        chosen = (self.config, self.precision, self.target, self.chunk, self.draft)
        program = build_program(*chosen, self.tuning)
        if program.params != [tensor.name for tensor in self.tensors]:
            raise AssertionError("the library takes other parameters than those converted")
        return program
