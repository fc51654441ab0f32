"""What `compile` says when it is done."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from minicpm_mlc.base.text import human_bytes
from minicpm_mlc.bundle.contexts import context_lengths
from minicpm_mlc.bundle.host import mismatch, system_of, this_host
from minicpm_mlc.bundle.manifest import Manifest

NEEDS_ENGINE = ("web",)  # systems where nothing else runs a bundle


@dataclass(frozen=True)
class CompileResult:
    """What was written (or would be), in bytes and tokens; `notes` are what the bundle can't do,
    `offer` what could still be done for its answers, `next` the command that goes on from here.
    """

    out: str
    written: bool
    weights: int
    memory: list[dict[str, int]]  # {"context", "bytes"}
    notes: list[str]
    offer: str | None = None
    next: str | None = None

    @classmethod
    def of(
        cls, path: Path, written: bool, manifest: Manifest, notes: list[str], offer: str | None
    ) -> CompileResult:
        """That of a bundle at `path`."""
        memory = [
            {"context": n, "bytes": manifest.memory_need(n)}
            for n in context_lengths(manifest.max_context)
        ]
        weights = manifest.memory["weights"]
        after = _next_command(path, manifest) if written else None
        return cls(str(path), written, weights, memory, notes, offer, after)

    def json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    def plain(self) -> str:
        """The same for people, on a few lines."""
        head = (
            f"{'wrote' if self.written else 'would write'} {self.out}: weights "
            f"{human_bytes(self.weights)}"
        )
        rows = [
            f"  {row['context']:>8} tokens of context need {human_bytes(row['bytes'])}"
            for row in self.memory
        ]
        notes = [*(f"note: {note}" for note in self.notes), *([self.offer] if self.offer else [])]
        after = [f"next: {self.next}"] if self.next else []
        return "\n".join([head, *rows, *notes, *after])


def _next_command(path: Path, manifest: Manifest) -> str:
    """To chat where the bundle runs on this machine, else to hand it on."""
    target = manifest.target
    bundle = shlex.quote(str(path))
    if mismatch({**target, "features": []}, this_host()) is None:
        return f"minicpm-mlc chat {bundle}"
    there = system_of(target["triple"])
    engine = " --engine" if there in NEEDS_ENGINE else ""
    return f"minicpm-mlc package {bundle} --for {'macos' if there == 'darwin' else there}{engine}"
