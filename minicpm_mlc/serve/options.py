"""What the options of `minicpm-mlc serve` say."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.choices import SERVE_PORT
from minicpm_mlc.base.errors import EngineError

KEY_VARIABLE = "MINICPM_MLC_API_KEY"
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", re.IGNORECASE)
HOST = re.compile(r"[^/:\s]+|\[[0-9a-f:.]+\]", re.IGNORECASE)


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

    def __post_init__(self) -> None:
        """Raises EngineError for pages and names that no request could ever come from."""
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise EngineError(
                    f"--cors-origin {origin}: expected *, or a page's scheme and host without a "
                    "path, such as https://a.b"
                )
        for host in self.hosts:
            if not HOST.fullmatch(host):
                raise EngineError(
                    f"--allowed-host {host}: expected a name without scheme and port, such as a.b"
                )


def given_keys(keys: Sequence[str], file: str | Path | None) -> list[str]:
    """The keys of --api-key, of the lines of --api-key-file, else of the environment. Raises
    EngineError.
    """
    if not all(key.strip() for key in keys):
        raise EngineError("--api-key is empty; give a key, or leave the option out")
    found = list(keys)
    if file is not None:
        try:
            found += Path(file).read_text("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise EngineError(f"--api-key-file {file} is not UTF-8 text; name another") from None
        except OSError as error:
            said = error.strerror or error
            raise EngineError(
                f"--api-key-file {file} can't be read ({said}); name another"
            ) from None
    elif not found:
        found = [os.environ.get(KEY_VARIABLE, "")]
    found = [key.strip() for key in found if key.strip()]
    if file is not None and not found:
        raise EngineError(f"--api-key-file {file} has no key; write one on a line")
    return found
