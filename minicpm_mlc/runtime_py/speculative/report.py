"""The figures of speculation in words."""

from __future__ import annotations

from minicpm_mlc.runtime_py.speculative.stats import SpeculationStats


def speculation_note(stats: SpeculationStats) -> str:
    """The end of a line of figures; empty where nothing was drafted."""
    if not stats.rounds:
        return ""
    return f" | {'+'.join(stats.drafters)}: {stats.accept_length:.2f} tokens per pass"


def speculation_lines(stats: SpeculationStats) -> list[str]:
    """What was decided, what was accepted, and where the time went."""
    if not stats.rounds:
        return [f"speculation {stats.decision}"]
    shares = " ".join(f"{share:.2f}" for share in stats.accepted_shares)
    times = (stats.draft_seconds, stats.verify_seconds, stats.commit_seconds, stats.host_seconds)
    milliseconds = ", ".join(
        f"{name} {1e3 * seconds:.1f}"
        for name, seconds in zip(("draft", "verify", "commit", "host"), times, strict=True)
    )
    return [
        f"speculation {stats.decision}",
        f"{stats.rounds} trees of {stats.nodes / stats.rounds:.1f} nodes, "
        f"{stats.accept_length:.2f} tokens each, "
        f"{stats.plain_steps} plain steps; accepted by depth: {shares}",
        f"milliseconds: {milliseconds}",
    ]
