"""What the options of `minicpm-mlc serve` say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.choices import SERVE_PORT
from minicpm_mlc.base.errors import EngineError

KEY_VARIABLE = "MINICPM_MLC_API_KEY"


@dataclass(frozen=True)
class Serving:
    """All of them beside those of the engine."""

    host: str = "127.0.0.1"
    port: int = SERVE_PORT
    parallel: int | None = None
    max_waiting: int = 64
    name: str | None = None
    strict_model: bool = False
    tool_format: str = "auto"
    reasoning_field: str = "reasoning_content"
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()
    grace: float = 10.0
    state: str | None = None  # a folder where computed prompts outlive the server
    most_bytes: int = 32 << 20  # of a body


def given_keys(keys: Sequence[str], file: str | Path | None) -> list[str]:
    """The keys of --api-key, of the lines of --api-key-file, else of the environment. Raises
    EngineError.
    """
    found = list(keys)
    if file is not None:
        try:
            found += Path(file).read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"--api-key-file {file} can't be read ({error})") from None
    elif not found:
        found = [os.environ.get(KEY_VARIABLE, "")]
    found = [key.strip() for key in found if key.strip()]
    if file is not None and not found:
        raise EngineError(f"--api-key-file {file} has no key; write one on a line")
    return found
