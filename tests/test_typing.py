"""A user's script passes the strict modes of both type checkers: what the package exports is typed.

mypy and basedpyright come with the [dev] extra.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = '''# pyright: strict
"""What programs do with the package."""

from __future__ import annotations

import asyncio

from minicpm_mlc import ChatOptions, Choice, Engine, Message, MiniCPMError, Options, Stats, errors


def ask(engine: Engine, question: str) -> str:
    messages: list[Message] = [{"role": "user", "content": question}]
    options: ChatOptions = {"temperature": 0.0, "think": False, "overflow": "drop_oldest"}
    said = ""
    for piece in engine.chat(messages, stream=True, **options):
        said += piece
    for kind, text in engine.chat_events(messages, max_tokens=engine.count(messages)):
        said += f"{kind}: {text}"
    count = engine.count(messages, think=False)
    said += f"{count}"
    return said + engine.chat(messages, stop=["END"], pinned=[0])


def complete(engine: Engine) -> tuple[list[Choice], Stats]:
    options: Options = {"max_tokens": 8, "on_prefill": lambda done, total: None}
    text: str = engine.generate("The capital of France is", **options)
    choices = engine.choices(text, n=2, logprobs=1, max_tokens=4)
    return choices, engine.stats


async def later(engine: Engine) -> str:
    whole = await engine.achat([{"role": "user", "content": "Hi"}])
    async for piece in engine.agenerate("Once upon a time", max_tokens=4):
        whole += piece
    return whole


def main() -> int:
    try:
        with Engine("bundle", context=4096, threads=2) as engine:
            print(ask(engine, "Why?"), complete(engine)[1].decode_rate, asyncio.run(later(engine)))
            logits = engine.logits(engine.tokenize("some text"))
            return int(logits.argmax())
    except errors.ContextError as error:
        print(error)
    except MiniCPMError as error:
        print(error)
    return 1
'''
WRONG = SCRIPT + "\n\nNUMBER: int = Engine('bundle').generate('Hi')\n"
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir"],
    "basedpyright": ["-m", "basedpyright", "--pythonpath"],
}


def checked(checker: str, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip(checker)
    file = folder / "script.py"
    file.write_text(script)
    last = str(folder / "cache") if checker == "mypy" else sys.executable
    command = [sys.executable, *CHECKERS[checker], last, str(file)]
    env = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_script_passes_and_a_wrong_one_does_not(checker: str, tmp_path: Path) -> None:
    done = checked(checker, SCRIPT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checked(checker, WRONG, tmp_path).returncode != 0
