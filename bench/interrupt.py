"""How soon a chat gives up a prompt at Ctrl-C: the command runs on a pseudo-terminal, and the clock
from Ctrl-C to its "(stopped".

python bench/interrupt.py BUNDLE [--count 10] [--tokens 4000]
"""

from __future__ import annotations

import argparse
import os
import platform
import pty
import random
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minicpm_mlc.runtime_py.machine import cpu_name

PATIENCE = 120.0  # seconds to wait for anything
PROMPT, READING, STOPPED = b"\x1b[?2004h", b"tok/s,", b"(stopped;"


class Chat:
    """The chat command on a pseudo-terminal."""

    def __init__(self, bundle: str, state: str) -> None:
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "minicpm_mlc", "chat", bundle, "--trust", "--no-stats"]
        env = {**os.environ, "XDG_STATE_HOME": state}
        self._process = subprocess.Popen(
            command, env=env, start_new_session=True, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self._master = master
        self._shown = b""

    def until(self, text: bytes) -> None:
        """Waits until this was shown since the last wait."""
        deadline = time.perf_counter() + PATIENCE
        while text not in self._shown:
            if time.perf_counter() > deadline or self._process.poll() is not None:
                raise SystemExit(f"error: the chat did not say {text!r}: {self._shown[-500:]!r}")
            if select.select([self._master], [], [], 0.01)[0]:
                piece = os.read(self._master, 65536)
                self._shown += piece
                if b"\x1b[6n" in piece:  # where is the cursor?
                    os.write(self._master, b"\x1b[1;1R")
        self._shown = self._shown.partition(text)[2]

    def type(self, line: str) -> None:
        """Types a line."""
        os.write(self._master, line.encode() + b"\r")

    def interrupt(self) -> float:
        """Presses Ctrl-C; seconds until the chat says that it stopped."""
        began = time.perf_counter()
        os.killpg(self._process.pid, 2)  # what the terminal sends
        self.until(STOPPED)
        return time.perf_counter() - began

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def measure(bundle: str, count: int, tokens: int) -> list[float]:
    """Seconds from each Ctrl-C to its effect, at random moments of reading a new prompt."""
    chance = random.Random(1)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        chat = Chat(bundle, folder)
        chat.until(PROMPT)
        for number in range(count):
            text = Path(folder) / f"{number}.txt"
            text.write_text(" ".join(str(chance.randrange(10)) for _ in range(tokens // 2)))
            chat.type(f"/read {text}")
            chat.until(PROMPT)
            chat.type("What is this?")
            chat.until(READING)
            time.sleep(chance.random() * 0.5)
            seconds.append(chat.interrupt())
            chat.until(PROMPT)
            chat.type("/undo")  # the document, which waits for its question
            chat.until(PROMPT)
        chat.close()
    return sorted(seconds)


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4000)
    given = parser.parse_args()
    seconds = measure(given.bundle, given.count, given.tokens)
    print(
        f"Ctrl-C while a prompt is read, {given.count} times: median "
        f"{seconds[len(seconds) // 2]:.2f} s, longest {seconds[-1]:.2f} s ({cpu_name()}, "
        f"{platform.system()})"
    )


if __name__ == "__main__":
    main()
