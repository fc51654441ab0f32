"""The chat command in processes of its own, with an engine without a model: on pipes, closed
streams and a pseudo-terminal.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
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
        assert (done.returncode, done.stdout.decode()) == (0, "你好 😀\n")
        note = b"note: standard input is not UTF-8 text: 1 characters could not be read; "
        assert done.stderr.startswith(note) and done.stderr.endswith(b"iconv\nhm\n")


def test_a_question_joins_the_last_conversation(tmp_path: Path) -> None:
    from minicpm_mlc.runtime_py.chat.saved import Saved

    last = tmp_path / "minicpm-mlc" / "last-chat.json"
    last.parent.mkdir()
    Saved([{"role": "user", "content": "Hi"}], {}).write(last)
    done = shell("--continue --prompt more < /dev/null", "Yes", XDG_STATE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, b"Yes\n")
    assert [m["content"] for m in Saved.read(last).messages] == ["Hi", "more", "Yes"]


def on_terminal(arguments: list[str], answer: str, *lines: bytes, **env: str) -> tuple[int, bytes]:
    """Status and output of a chat on a pseudo-terminal; a line is typed when a prompt has come."""
    given = environment(answer, **env)
    master, slave = pty.openpty()
    command = [sys.executable, "-c", given["CODE"], *arguments]
    chat = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=given)
    os.close(slave)
    shown = b""
    waiting = list(lines)
    deadline = time.monotonic() + 120
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
    return chat.wait(60), shown


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


SLOW = """
import os, time
class Slow(list):
    def __iter__(self):
        yield "answer", "Once "
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.02)
        yield "answer", "upon"
"""


class Conversation:
    """A chat on a pseudo-terminal of a shell that knows jobs, whose state lies in a folder; its
    engine begins an answer, and waits for `go`.
    """

    def __init__(self, folder: Path, *command: str, **env: str) -> None:
        self._go = folder / "go"
        given = environment("", XDG_STATE_HOME=str(folder), GO=str(self._go), **env)
        given["CODE"] = SLOW + given["CODE"].replace("FakeEngine(events)", "FakeEngine(Slow())")
        self.master, slave = pty.openpty()
        self.shown = b""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=given,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def until(self, text: bytes, count: int = 1) -> None:
        """Waits for what is shown."""
        deadline = time.monotonic() + 120
        while self.shown.count(text) < count:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                piece = os.read(self.master, 65536)
                self.shown += piece
                if b"\x1b[6n" in piece:
                    os.write(self.master, b"\x1b[1;1R")

    def type(self, keys: bytes) -> None:
        """Presses keys."""
        os.write(self.master, keys)

    def go(self) -> None:
        """Lets the answer end."""
        self._go.touch()

    def close(self) -> int:
        """Ends it; its status."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            os.close(self.master)


PROMPT = b"\x1b[?2004h"


def test_keys_pressed_during_an_answer_begin_the_next_prompt(tmp_path: Path) -> None:
    chat = Conversation(tmp_path, sys.executable, "-c", "import os; exec(os.environ['CODE'])")
    chat.until(PROMPT)
    chat.type(b"Hi\r")
    chat.until(b"Once")
    chat.type(b"/mod\x7f\x7f\x7fquit")
    chat.go()
    chat.until(PROMPT, 2)
    chat.until(b"/quit")
    assert b"/mod" not in chat.shown
    chat.type(b"\r")
    assert chat.close() == 0


def test_ctrl_z_pauses_a_chat_and_fg_goes_on(tmp_path: Path) -> None:
    chat = Conversation(tmp_path, "bash", "--norc", "-i", PS1="shell> ")
    chat.until(b"shell>")
    chat.type(b'"$PYTHON" -c "$CODE"\r')
    chat.until(b"Ctrl-D leaves")
    chat.type(b"Hi\r")
    chat.until(b"Once")
    chat.type(b"\x1a")
    chat.until(b"Stopped")
    chat.go()
    chat.type(b"fg\r")
    chat.until(b"upon")
    chat.type(b"/quit")
    chat.until(b"/quit")
    chat.type(b"\r")
    chat.until(b"shell>", 3)
    chat.type(b"exit\r")
    assert chat.close() == 0
