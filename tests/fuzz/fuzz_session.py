"""A saved session: loaded, shown, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

from fake_engine import FakeEngine

from minicpm_mlc.runtime_py.chat.session import ChatSession

SAVED = {
    "kind": "minicpm-mlc chat",
    "format": 1,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>Hello"},
    ],
    "options": {"temperature": 0.5, "stop": ["\n"], "think": None, "max_tokens": 9, "seed": 1},
}


def seeds() -> list[bytes]:
    return [json.dumps(SAVED).encode(), b'{"kind": ' + b"[" * 50000]


def run(data: bytes, folder: Path) -> None:
    """No line of a session raises."""
    path = folder / "saved.json"
    path.write_bytes(data)
    chat = ChatSession(FakeEngine(), lambda text, kind: None)  # type: ignore[arg-type]
    for line in (f"/load {path}", "/set", "more", f"/save {folder / 'again.json'}", "/stats"):
        chat.handle(line)
    (folder / "again.json").unlink(missing_ok=True)
