"""The demo model for the benchmarks of speculation: compiled when it is needed, and its held-out
prompts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from minicpm_mlc import Engine

DEMO = Path(__file__).parents[1] / "examples" / "demo_model"
HEAD = DEMO / "MiniCPM4.1-demo-Eagle3"
sys.path.insert(0, str(DEMO))
import data as data  # noqa: E402
import prompts as held_out  # noqa: E402
from evaluate import SKILLS as SKILLS  # noqa: E402
from evaluate import prompt_of as prompt_of  # noqa: E402


def compiled(bundle: Path, *options: str) -> Path:
    """The demo's bundle, compiled with these options unless it is there."""
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        print(f"compiling {bundle}", file=sys.stderr, flush=True)
        command = ["compile", str(DEMO / "MiniCPM4.1-demo"), *options, "--out", str(bundle)]
        if subprocess.run(
            [sys.executable, "-m", "minicpm_mlc", *command], stdout=subprocess.DEVNULL
        ).returncode:
            sys.exit(f"{bundle} was not compiled; the reason is printed above")
    return bundle


def prompts(engine: Engine, count: int) -> list[list[int]]:
    """Token ids of `count` held-out prompts of each skill."""
    return [
        engine.template.prompt(engine.tokenizer.raw, messages, None).ids
        for messages in held_out.prompts(count)
    ]
