"""Commands in a process that believes to run on macOS or Windows: `platform`, `os`, `signal` and
the modules that only some systems have answer as there.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import types
from typing import Any, NamedTuple

NO_MODULES = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty")  # on Windows
ABSENT = {  # of os; signal's are below
    "Darwin": {"sched_getaffinity", "ST_NOEXEC", "posix_fadvise", "memfd_create"},
    "Windows": {
        *("sysconf", "fork", "register_at_fork", "sched_getaffinity", "statvfs", "ST_NOEXEC"),
        *("geteuid", "getuid", "getpgid", "killpg", "setsid", "O_NOFOLLOW", "O_NONBLOCK"),
        *("umask", "uname", "kill", "mkfifo", "chown", "fchmod", "fchown", "pread", "pwrite"),
        *("posix_fadvise", "posix_fallocate", "openpty", "wait", "waitid", "getloadavg", "sync"),
    },
}
NO_SIGNALS = ("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP")
NO_SIGNALS += ("SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pause")
NO_SIGNALS += ("pthread_kill", "pthread_sigmask", "setitimer", "sigwait")
GIB = 1 << 30


class Said(NamedTuple):
    """Status, output and errors of a command."""

    status: int
    out: str
    err: str


def elsewhere(system: str, machine: str, commands: list[list[str]], **env: str) -> list[Said]:
    """Runs commands one after the other. `typed` in the environment: what a person types."""
    done = subprocess.run(
        [sys.executable, __file__, system, machine],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(commands), done.stderr
    return [Said(*json.loads(line)) for line in lines]


def _answer_as(system: str, machine: str) -> None:
    """From now on `platform`, `os` and `signal` answer as on that system."""
    if system == "Windows":
        sys.modules.update(dict.fromkeys(NO_MODULES))  # pyright: ignore[reportCallIssue]
        pathlib.WindowsPath = pathlib.PosixPath  # type: ignore[misc]
        for name in set(NO_SIGNALS) & set(dir(signal)):
            delattr(signal, name)
        os.name = "nt"
        _load_as_windows()
    for name in ABSENT[system] & set(dir(os)):
        delattr(os, name)
    platform.system, platform.machine = (lambda: system), (lambda: machine)
    sys.modules["psutil"] = types.SimpleNamespace(  # type: ignore[assignment]
        virtual_memory=lambda: types.SimpleNamespace(total=16 * GIB, available=8 * GIB),
        cpu_count=lambda logical: 4,
        pid_exists=lambda number: False,
    )


def _load_as_windows() -> None:
    load = ctypes.CDLL

    def on_windows(*given: Any, **named: Any) -> Any:
        if given[0] == "kernel32":
            return types.SimpleNamespace(FreeLibrary=lambda handle: None)
        os.name = "posix"
        try:
            return load(*given, **named)
        finally:
            os.name = "nt"

    ctypes.CDLL = on_windows  # type: ignore[misc, assignment]


def _patch_package(system: str) -> None:
    from minicpm_mlc.runtime_py import machine

    machine.PROC = machine.CPUS = machine.CGROUP = pathlib.Path("/no/such/folder")
    if system == "Darwin":
        from minicpm_mlc.targets import cpu

        cpu.host_cpu = lambda: "apple-m1"
    if "RUNS_HERE" in os.environ:
        from minicpm_mlc.bundle import manifest

        manifest.mismatch = lambda *_: None


def _typed(arguments: list[str], keys: str) -> list[Any]:
    """A command in a terminal, where these keys are typed."""
    import contextlib
    import io

    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from minicpm_mlc.cli import main
    from minicpm_mlc.runtime_py.chat import repl

    repl.is_terminal = lambda stream: True
    out, err = io.StringIO(), io.StringIO()
    with (
        create_pipe_input() as pipe,
        create_app_session(input=pipe, output=DummyOutput()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        pipe.send_text(keys)
        status = main(arguments, standalone_mode=False) or 0
    return [status, out.getvalue(), err.getvalue()]


def _main() -> None:
    # what these import of the system is the system's own
    import asyncio
    import importlib.metadata
    import multiprocessing
    import shutil
    import socket
    import tempfile

    import click.testing
    import numpy
    import prompt_toolkit.input.posix_pipe
    import rich.console
    import rich.progress
    import tokenizers
    import tvm_ffi

    del asyncio, importlib, multiprocessing, shutil, socket, tempfile
    del numpy, prompt_toolkit, rich, tokenizers, tvm_ffi
    system, machine = sys.argv[1:]
    _answer_as(system, machine)
    _patch_package(system)
    from minicpm_mlc.cli import main

    for arguments in json.load(sys.stdin):
        if keys := os.environ.get("TYPED"):
            print(json.dumps(_typed(arguments, keys)), flush=True)
            continue
        done = click.testing.CliRunner().invoke(main, arguments)
        print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)


if __name__ == "__main__":
    _main()
