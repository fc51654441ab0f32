"""native/engine, built for this machine and driven by the tests: engine_driver.cc in a process."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from engine_sanitized import SANITIZED, sanitized_program
from filelock import FileLock

from minicpm_mlc.compile.engine_build import EngineBuild

HERE = f"{platform.machine()}-linux-gnu.2.17"
DRIVER = Path(__file__).with_name("engine_driver.cc")
THINKING, ANSWER, TOKEN = range(3)


class Refused(Exception):
    """What a call of the engine failed with: (status, text)."""


def built(main: Path | None = None, target: str = HERE, devices: tuple[str, ...] = ()) -> Path:
    """A program over the engine: minicpm-run, or this one. Built once on this machine."""
    if SANITIZED:
        return sanitized_program(main)
    build = EngineBuild(target, devices=devices)
    with FileLock(Path("/tmp") / f"minicpm-engine-{target}.lock"):
        return build.program(main)


class EngineProcess:
    """An open engine in another process; its calls are those of minicpm.h."""

    def __init__(self, bundle: Path, devices: tuple[str, ...] = (), **options: Any):
        self._start([built(DRIVER, devices=devices), bundle, json.dumps(options)])

    def _start(self, command: Sequence[str | Path]) -> None:
        """Raises Refused with what the bundle was refused with."""
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        code = self._process.wait(60)
        assert kind is not None or code == 0, f"the engine's process ended with {code}"

    def tokenize(self, text: str) -> list[int]:
        return json.loads(self._call("tokenize", text)[0])

    def prompt(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return json.loads(self._call("prompt", json.dumps(messages), json.dumps(options))[0])

    def tokens(self, ids: Sequence[int], **options: Any) -> list[int]:
        asked = json.dumps(options | {"tokens": True})
        _, pieces = self._call("generate", json.dumps(list(ids)), asked)
        return [int.from_bytes(piece, "little") for _, piece in pieces]

    def generate(self, prompt: str | list[int], **options: Any) -> str:
        _, pieces = self._call("generate", json.dumps(prompt), json.dumps(options))
        return "".join(piece.decode() for _, piece in pieces)

    def chat(
        self, messages: list[dict[str, str]], most: int = 0, cancel: bool = False, **options: Any
    ) -> list[tuple[int, str]]:
        """(kind, text) of each piece. `most`: pieces after which the caller wants no more, or has
        the call cancelled.
        """
        more = [str(most)] + ["cancel"] * cancel
        _, pieces = self._call("chat", json.dumps(messages), json.dumps(options), *more)
        return [(kind, piece.decode()) for kind, piece in pieces]

    def save(self, path: Path) -> None:
        self._call("save", str(path))

    def truncate(self, length: int) -> None:
        self._call("truncate", str(length))

    def info(self) -> dict[str, Any]:
        return json.loads(self._call("info")[0])

    def stats(self) -> dict[str, Any]:
        return json.loads(self._call("stats")[0])

    def _call(self, verb: str, *arguments: str) -> tuple[str, list[tuple[int, bytes]]]:
        assert self._process.stdin
        words = [verb, *(a.encode("utf-8", "surrogatepass").hex() or "-" for a in arguments)]
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> tuple[str, list[tuple[int, bytes]]]:
        assert self._process.stdout
        line = self._process.stdout.readline().split()
        if not line:
            raise Refused(self._process.wait(60), "the process ended")
        status, text, *rest = line
        said = _bytes(text).decode()
        if int(status):
            raise Refused(int(status), said)
        pieces = zip(rest[::2], rest[1::2], strict=True)
        return said, [(int(kind), _bytes(piece)) for kind, piece in pieces]


def _bytes(word: str) -> bytes:
    return b"" if word == "-" else bytes.fromhex(word)
