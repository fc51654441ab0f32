"""The keys of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile, Value
from minicpm_mlc.compile.config.keys import is_positive

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class Metadata:
    """A GGUF file's keys, those of its architecture without the prefix. Raises CheckpointError for
    an architecture that is not read, ConfigError for a key that asks for other maths.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.values = file.metadata
        found = self.values.get("general.architecture")
        if found not in ARCHITECTURES:
            raise file.error(
                f"general.architecture is {found!r:.60}, expected {', '.join(ARCHITECTURES)}"
            )
        self.architecture = str(found)
        if self.values.get("general.type", "model") != "model":
            kind = self.values["general.type"]
            raise file.error(f"general.type is {kind!r:.60}, expected a whole model")

    def own(self, key: str, default: Value | None = None) -> Any:
        """The value of the architecture's `key`; a list of one value for each layer is that
        value.
        """
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, np.ndarray):
            if not len(value) or (value != value[0]).any():
                raise self.refuse(key, value.tolist()[:8], "the same in every layer")
            value = value[0].item()
        return decimal(value) if isinstance(value, float) else value

    def number(self, key: str) -> float | None:
        """The positive number of the architecture's `key`, where it has one."""
        value = self.own(key)
        if value is not None and not is_positive(value):
            raise self.refuse(key, value, "a positive number")
        return value

    def single(self, key: str) -> int | float | str | None:
        """The value of a key outside the architecture, where it has one that is no list."""
        value = self.values.get(key)
        if isinstance(value, (list, np.ndarray)):
            raise self.file.error(f"{key} is a list, expected one value; convert it again")
        return value

    def refuse(self, key: str, value: object, expected: str) -> ConfigError:
        """The error of an architecture's key."""
        where = f"{self.file.path}: {self.architecture}.{key}"
        return ConfigError(f"{where} is {value!r:.60}, expected {expected}")


def decimal(value: float) -> float:
    """The shortest decimal number that float32 rounds to this one: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
