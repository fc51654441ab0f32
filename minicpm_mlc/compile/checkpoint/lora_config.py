"""adapter_config.json of PEFT: how much a LoRA adds to a weight, and what else it asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.compile.checkpoint.files import ADAPTER_CONFIG
from minicpm_mlc.compile.config.keys import is_positive, shown

READ = """
    peft_type r lora_alpha rank_pattern alpha_pattern use_rslora use_dora bias init_lora_weights
    base_model_name_or_path ensure_weight_tying modules_to_save target_modules
""".split()
# fan_in_fan_out too: PEFT switches it off for the linears of these models
HARMLESS = """
    loftq_config eva_config lora_ga_config corda_config runtime_config exclude_modules
    layers_pattern layers_to_transform lora_dropout inference_mode revision task_type auto_mapping
    peft_version qalora_group_size megatron_core fan_in_fan_out
""".split()
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # of training, that leave the base as it is
QUANTIFIED = re.compile(r"\.[*+]|\\d\+")  # the repetitions that a pattern may hold
MAX_QUANTIFIED = 4  # more of them could take for ever


@dataclass(frozen=True)
class LoraConfig:
    """The settings of one adapter, from its folder."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> LoraConfig:
        """Raises CheckpointError for an adapter that does something else than PEFT's LoRA."""
        path = folder / ADAPTER_CONFIG
        try:
            values = read_json_object(path, CheckpointError, "download it again")
        except FileNotFoundError:
            raise CheckpointError(
                f"--adapter {folder} has no {ADAPTER_CONFIG}; give the folder that PEFT, "
                "LLaMA-Factory or XTuner saved an adapter in"
            ) from None
        config = cls(folder, values)
        config._check()
        return config

    def scaling(self, module: str, rank: int) -> float:
        """What multiplies B A of a module whose A has so many rows: alpha / r, or with use_rslora
        alpha / sqrt(r). Raises CheckpointError where the config gives it another rank.
        """
        expected = self._of(module, "rank_pattern", "r")
        if expected != rank:
            raise self.refuse("r", f"{rank}, the rows of {module}.lora_A", found=expected)
        alpha = self._of(module, "alpha_pattern", "lora_alpha")
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    @property
    def dora(self) -> bool:
        """Whether rows are brought to a trained length."""
        return bool(self.values.get("use_dora"))

    @property
    def keeps_tied(self) -> bool:
        """Whether a head that is the embedding was trained with it."""
        return bool(self.values.get("ensure_weight_tying"))

    def refuse(self, key: str, expected: str, found: object = None) -> CheckpointError:
        """The error of a key's value."""
        value = self.values.get(key) if found is None else found
        where = self.folder / ADAPTER_CONFIG
        return CheckpointError(f"{where}: {key} is {shown(value)}, expected {expected}")

    def _of(self, module: str, patterns: str, key: str) -> float:
        """A number of a module: that of the first pattern its path ends in, else the adapter's."""
        found = self.values.get(patterns) or {}
        matching = (value for name, value in found.items() if self._ends_in(module, name, patterns))
        value = next(matching, self.values.get(key, 8))  # 8 is PEFT's default of both
        if not is_positive(value):
            raise self.refuse(key, "a positive number", found=value)
        return value

    def _ends_in(self, module: str, pattern: str, key: str) -> bool:
        plain, count = QUANTIFIED.subn("", pattern)
        if count > MAX_QUANTIFIED or re.search(r"[*+?{]", plain):
            raise self.refuse(key, "names of modules, without repetitions but .* and .+", pattern)
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error as wrong:
            raise self.refuse(key, f"a regular expression ({wrong})", pattern) from None

    def _check(self) -> None:
        if self.values.get("peft_type") != "LORA":
            raise self.refuse("peft_type", "LORA: no other kind of adapter is merged")
        if self.values.get("bias") not in (None, "none"):
            raise self.refuse("bias", '"none": these models have no biases')
        if self.values.get("init_lora_weights", True) not in STARTS:
            expected = "a start that leaves the base as it is; convert it: PEFT saves an adapter "
            raise self.refuse("init_lora_weights", f"{expected}for the published base so")
        for patterns in ("rank_pattern", "alpha_pattern"):
            if not isinstance(self.values.get(patterns) or {}, dict):
                raise self.refuse(patterns, "an object of numbers by module")
        for key, value in self.values.items():
            off = value in (None, False, "", [], {})
            if not off and key not in READ and key not in HARMLESS:
                raise self.refuse(key, "nothing: what it does is not implemented")
