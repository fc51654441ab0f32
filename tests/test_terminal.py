"""The chat command in processes of its own, with an engine without a model: on pipes, closed
streams and a pseudo-terminal.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

FAKE_CHAT = """
import sys
sys.path.insert(0, {tests!r})
from fake_engine import FakeEngine
import minicpm_mlc.runtime_py.admission, minicpm_mlc.runtime_py.device_check
import minicpm_mlc.runtime_py.engine
minicpm_mlc.runtime_py.admission.admit = lambda *_: None
events = [("thinking", "hm"), ("answer", {answer!r})]
minicpm_mlc.runtime_py.engine.Engine = lambda *_, **__: FakeEngine(events)
minicpm_mlc.runtime_py.device_check.check_device = lambda engine: None
from minicpm_mlc.cli import main
main(["chat", "B", *sys.argv[1:]])
"""


def environment(answer: str, **env: str) -> dict[str, str]:
    code = FAKE_CHAT.format(tests=str(Path(__file__).parent), answer=answer)
    return {**os.environ, "PYTHON": sys.executable, "CODE": code, **env}


def shell(arguments: str, answer: str = "你好 😀", **env: str) -> subprocess.CompletedProcess:
    """A chat with a fake engine in a process of its own, started by a shell."""
    command = f'"$PYTHON" -c "$CODE" {arguments}'
    given = environment(answer, **env)
    return subprocess.run(["bash", "-c", command], capture_output=True, env=given, check=False)


def test_case_07_closed_streams_are_one_line() -> None:
    done = shell("<&-")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"no terminal and no pipe; give --prompt TEXT" in done.stderr
    done = shell("--prompt hi >&-")
    assert done.returncode == 1 and done.stderr.startswith(b"error: standard output is closed")
    done = shell("--prompt hi <&- 2>&-")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "你好 😀\n", b"")


def test_case_06_in_a_process(tmp_path: Path) -> None:
    done = shell("--prompt hi", PYTHONIOENCODING="gbk")
    assert (done.returncode, done.stdout) == (0, "你好 ?\n".encode("gbk"))
    done = shell("--prompt hi --json", PYTHONIOENCODING="latin-1")
    assert json.loads(done.stdout)["answer"] == "你好 😀"


def test_case_01_in_a_process() -> None:
    for locale in ("C", "C.UTF-8"):
        done = shell("< <(printf 'caf\\xe9?')", LC_ALL=locale, PYTHONIOENCODING="utf-8:strict")
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "你好 😀\n", b"hm\n")


def on_terminal(arguments: list[str], answer: str, *lines: bytes, **env: str) -> tuple[int, bytes]:
    """Status and output of a chat on a pseudo-terminal; a line is typed when a prompt has come."""
    given = environment(answer, **env)
    master, slave = pty.openpty()
    command = [sys.executable, "-c", given["CODE"], *arguments]
    chat = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=given)
    os.close(slave)
    shown = b""
    waiting = list(lines)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.1)[0]:
            continue
        try:
            piece = os.read(master, 65536)
        except OSError:  # the chat has ended
            break
        shown += piece
        if b"\x1b[6n" in piece:  # where is the cursor?
            os.write(master, b"\x1b[1;1R")
        if waiting and shown.count(b"\x1b[?2004h") > len(lines) - len(waiting):  # a prompt
            os.write(master, waiting.pop(0))
    os.close(master)
    return chat.wait(10), shown


def test_case_08_on_a_terminal() -> None:
    status, shown = on_terminal(["--prompt", "hi"], "\x1b]0;pwn\x07")
    assert status == 0 and "\ufffd]0;pwn\ufffd" in shown.decode() and b"\x1b]0" not in shown
    piped = shell("--prompt hi", "\x1b]0;pwn\x07")
    assert piped.stdout == b"\x1b]0;pwn\x07\n"


def test_nothing_typed_and_nothing_said_ends_a_chat(tmp_path: Path) -> None:
    """Cases 03, 06, 103 on one terminal."""
    saved = b"/save " + bytes(tmp_path / "s") + b"\r"
    lines = (b"caf\xe9\r", b"/load ~nosuchuser/x\r", saved, b"/quit\r")
    state = str(tmp_path / "state")
    status, shown = on_terminal(
        [], "你好 😀", *lines, PYTHONIOENCODING="latin-1", XDG_STATE_HOME=state
    )
    assert status == 0 and b"?? ?" in shown and b"home is not known" in shown
    assert json.loads((tmp_path / "s").read_text())["messages"] == [
        {"role": "user", "content": "caf\xe9"},  # the terminal's encoding
        {"role": "assistant", "content": "你好 😀"},
    ]
