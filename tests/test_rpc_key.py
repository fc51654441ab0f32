"""rob-27: the key of an RPC server and its clients comes from where others don't see it, and is
never shown.
"""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_rpc import started

from minicpm_mlc import cli
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py.rpc import client, server
from minicpm_mlc.runtime_py.rpc.client import RemoteMachine
from minicpm_mlc.runtime_py.rpc.key import LONGEST, VARIABLE, given_key
from minicpm_mlc.runtime_py.rpc.server import run_server

SECRET = "tuna-sandwich"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_rob_27_a_key_comes_from_the_environment_a_file_or_the_command_line(
    tmp_path: Path, monkeypatch
) -> None:
    assert given_key(None, None) is None
    monkeypatch.setenv(VARIABLE, "")
    assert given_key(None, None) is None
    monkeypatch.setenv(VARIABLE, SECRET)
    assert given_key(None, None) == SECRET
    (tmp_path / "key").write_bytes("\ufeffschlüssel mit rand \r\nmore\n".encode())
    assert given_key(None, tmp_path / "key") == "schlüssel mit rand "
    assert given_key("given", None) == "given"  # the nearest counts


@pytest.mark.parametrize("key", ["", "x" * (LONGEST + 1), "half \udc80"])
def test_rob_27_what_can_be_no_key_is_refused_without_showing_it(tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_bytes(key.encode(errors="surrogateescape") + b"\n")
    for given in ((key, None), (None, tmp_path / "key")):
        with pytest.raises(EngineError, match=r"--key.*: the key (has|is not)") as caught:
            given_key(*given)
        assert not key or key not in str(caught.value)
    with pytest.raises(EngineError, match=r"the key (has|is not)"):
        run_server(key=key, folder=tmp_path)


def test_rob_27_a_key_file_that_is_not_there_or_beside_a_key(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"--key-file .*none can't be read \(No such file"):
        given_key(None, tmp_path / "none")
    with pytest.raises(EngineError, match="--key and --key-file both give a key"):
        given_key(SECRET, tmp_path / "none")


def test_rob_27_the_commands_take_a_key_from_each_place(tmp_path: Path, monkeypatch) -> None:
    seen: list[tuple[str, str | None]] = []

    def connect(rpc: str, key: str | None, *_: object) -> None:
        seen.append((rpc, key))
        raise EngineError("seen")

    monkeypatch.setattr(client, "connect", connect)
    (tmp_path / "key").write_text("of the file\n")
    for command in ("chat", "bench", "verify"):
        for more in (["--key-file", str(tmp_path / "key")], ["--key", "written"], []):
            CliRunner(env={VARIABLE: "of the environment"}).invoke(
                cli.main, [command, "B", "--rpc", "h:1", *more]
            )
    assert (
        seen
        == [("h:1", f"{where}") for where in ("of the file", "written", "of the environment")] * 3
    )
    seen.clear()
    monkeypatch.setattr(cli.rpc.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", lambda text, **how: f"{text} {how['hide_input']}")
    with pytest.raises(EngineError, match="seen"):
        cli.rpc.remote_machine("h:1", None, None)
    assert seen == [("h:1", "Key of h:1 True")]


def test_rob_27_the_server_takes_a_key_from_each_place_and_does_not_print_it(
    tmp_path: Path, monkeypatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(server, "run_server", lambda key, **_: seen.append(key))
    (tmp_path / "key").write_text("of the file\n")
    for more in (["--key-file", str(tmp_path / "key")], ["--key", "written"], []):
        CliRunner(env={VARIABLE: "of the environment"}).invoke(cli.main, ["rpc-server", *more])
    assert seen == ["of the file", "written", "of the environment"]
    address, said = started(tmp_path)
    assert address and said.empty()


def test_rob_27_only_a_random_key_is_said(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []

    class Shut(Exception):
        pass

    def shut(*_: object) -> None:
        raise Shut

    monkeypatch.setattr(server, "Door", shut)
    for key in (None, SECRET):
        with pytest.raises(Shut):
            run_server(port=0, key=key, folder=tmp_path, say=said.append)
    assert [line.split()[0] for line in said] == ["listening", "the", "listening"]
    assert said[1].startswith("the key that it asks for: ") and SECRET not in "".join(said)


@pytest.mark.parametrize("command", ["chat", "bench", "verify", "rpc-server"])
def test_rob_27_the_help_puts_no_key_on_the_command_line(command: str) -> None:
    text = CliRunner().invoke(cli.main, [command, "--help"]).output
    assert "--key-file" in text and VARIABLE in text
    assert "--key " not in text.partition("Example:")[2]


def test_rob_27_an_error_of_the_client_never_shows_its_key(tmp_path: Path) -> None:
    address, _ = started(tmp_path)
    for place in (address, "127.0.0.1:9"):
        with pytest.raises(EngineError, match="no connection") as caught:
            RemoteMachine(place, SECRET)
        assert SECRET not in str(caught.value) and caught.value.__cause__ is None
