"""What runs, and what fills its context, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm_mlc.base.text import human_bytes, shown

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.chat.session import ChatSession
    from minicpm_mlc.runtime_py.engine import Engine

BEGINNING = 40  # characters of a message that tell which one it is


def banner(engine: Engine) -> str:
    """One line: the model, where it runs, and in how much context."""
    manifest = engine.manifest
    device = manifest.target["device"]
    threads = f"{engine.threads} thread{'s' if engine.threads > 1 else ''}"
    where = threads if device == "cpu" else engine.library.device_name
    return (
        f"{shown(manifest.name, 60)} ({manifest.scheme}) on {device}, {where}, "
        f"context {engine.context}, {gear(engine)}"
    )


def gear(engine: Engine) -> str:
    """Which attention it reads with."""
    gears = engine.gears
    if gears.attention == "auto" and gears.dense_len is not None:
        return f"sparse from {gears.dense_len} tokens on"
    return "sparse" if gears.sparse(1) else "dense"


def about_lines(engine: Engine) -> list[str]:
    """A line per fact of the model that runs."""
    manifest = engine.manifest
    rows = {
        "model": shown(manifest.name),
        "bundle": str(engine.path),
        "weights": f"{manifest.scheme}, {human_bytes(manifest.memory['weights'])}",
        "keys and values": manifest.kv_dtype,
        "device": f"{manifest.target['device']}: {engine.library.device_name}",
        "threads": str(engine.threads),
        "context": f"{engine.context} of at most {manifest.max_context} tokens",
        "attention": gear(engine),
        "drafters": ", ".join(engine.drafters) or "none",
    }
    return [f"{name:<16} {text}" for name, text in rows.items()]


def context_lines(session: ChatSession) -> list[str]:
    """Tokens of each message, of the template around them, and what is free."""
    engine = session.engine
    rows = [(_tokens(engine, m["content"]), _label(session, i)) for i, m in _messages(session)]
    rows += [(_tokens(engine, text), "document, goes out next") for text in session.documents]
    waiting = sum(_tokens(engine, text) for text in session.documents)
    total = waiting + (engine.count(session.messages) if session.messages else 0)
    rows.append((max(0, total - sum(tokens for tokens, _ in rows)), "the chat template"))
    lines = [f"{tokens:>8}  {label}" for tokens, label in rows]
    return [*lines, f"{total:>8}  of {engine.context} tokens; {engine.context - total} are free"]


def _messages(session: ChatSession) -> list[tuple[int, dict[str, str]]]:
    return list(enumerate(session.messages))


def _label(session: ChatSession, place: int) -> str:
    message = session.messages[place]
    pinned = any(message is each for each in session.pinned)
    text = shown(" ".join(message["content"].split()), BEGINNING)
    return f"{message['role']}{' (pinned)' if pinned else ''}: {text}"


def _tokens(engine: Engine, text: str) -> int:
    return len(engine.tokenize(text, bos=False)) if text else 0
