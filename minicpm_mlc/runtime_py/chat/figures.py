"""The figures of an answer, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm_mlc.runtime_py.speculative.report import speculation_note

if TYPE_CHECKING:
    from minicpm_mlc.runtime_py.engine import Engine
    from minicpm_mlc.runtime_py.request import Stats

ROW = 79  # characters: one row of a terminal of 80 columns


def stats_line(stats: Stats) -> str:
    """All figures: tokens and speed of prefill (cached tokens cost nothing) and decode, and how
    full the context is.
    """
    return (
        f"prompt {_read(stats)} ({stats.cached_tokens} cached), "
        f"{stats.prefill_rate:.1f} tok/s"
        f" | answer {stats.generated_tokens} tokens, {stats.decode_rate:.1f} tok/s"
        f" | context {stats.context_used}/{stats.context}, "
        f"{_gear(stats)}{speculation_note(stats.speculation)}"
    )


def roofline_lines(engine: Engine) -> list[str]:
    """How near its decode steps came to what the device allows: a line, or none."""
    found = engine.roofline()
    return [found.text()] if found else []


def stats_row(stats: Stats) -> str:
    """The same, in one row of 80 columns."""
    read = f"{_short(stats.computed_tokens)} read, {stats.prefill_rate:.0f} tok/s"
    said = f"{_short(stats.generated_tokens)} said, {stats.decode_rate:.1f} tok/s"
    context = f"{_short(stats.context_used)} of {_short(stats.context)} {stats.attention}"
    return " | ".join([read, said, context])[:ROW]


def _read(stats: Stats) -> str:
    wanted = stats.prompt_tokens - stats.cached_tokens
    if stats.computed_tokens < wanted:  # stopped before its end
        return f"{stats.cached_tokens + stats.computed_tokens} of {stats.prompt_tokens} tokens"
    return f"{stats.prompt_tokens} tokens"


def _gear(stats: Stats) -> str:
    return (
        "dense"
        if stats.attention == "dense"
        else f"sparse: {stats.blocks_read} of {stats.blocks} blocks read"
    )


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.1f}k"


class Reading:
    """How far a prompt has been read: tokens, tokens/s, and the time that is left."""

    def __init__(self, clock: float) -> None:
        """`clock`: seconds when it began."""
        self._began = clock

    def text(self, done: int, total: int, clock: float) -> str:
        """A line for a person, at this time."""
        if not done:
            return "reading the prompt"
        rate = done / max(clock - self._began, 1e-9)
        left = (total - done) / rate
        time = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        return f"reading {done} of {total} tokens, {rate:.0f} tok/s, {time} left"
