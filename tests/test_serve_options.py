"""What serve refuses before it opens a bundle, each in one sentence that names the option."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from minicpm_mlc.cli import main
from minicpm_mlc.serve.options import Serving, given_keys


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of files that options may name, where the command is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINICPM_MLC_API_KEY", raising=False)
    (tmp_path / "file").write_text("one\n")
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "port").write_text(str(taken.getsockname()[1]))
        yield tmp_path


REFUSED = [  # options, status, what is said
    ("--port 70000", 2, "70000 is not in the range 0<=x<=65535"),
    ("--max-waiting -1", 2, "-1 is not in the range"),
    ("--grace -1", 2, "-1"),
    ("--tool-format mine", 2, "'mine' is not one of 'auto'"),
    ("--reasoning-field thoughts", 2, "'thoughts' is not one of 'reasoning_content'"),
    ("--attention full", 2, "'full' is not one of"),
    ("--replicas 2", 2, "--replicas is for --ray"),
    ("--port TAKEN", 1, "can't be listened at .*; give another --port"),
    ("--host no.such.host.invalid", 1, "no.such.host.invalid:8080 can't be listened at"),
    ("--api-key-file none", 1, r"--api-key-file none can't be read \(No such file or directory\)"),
    ("--api-key-file .", 1, r"--api-key-file \. can't be read \(Is a directory\)"),
    ("--api-key-file blank", 1, "--api-key-file blank has no key; write one on a line"),
    ("--api-key-file latin", 1, "--api-key-file latin is not UTF-8 text"),
    ("--api-key=", 1, "--api-key is empty"),
    ("--cors-origin a.b", 1, r"--cors-origin a\.b: expected \*, or .* such as https://a\.b"),
    ("--cors-origin https://a.b/page", 1, "--cors-origin https://a.b/page: expected"),
    ("--allowed-host http://a.b", 1, "--allowed-host http://a.b: expected a name"),
    ("--allowed-host a.b:80", 1, "--allowed-host a.b:80: expected a name"),
    ("--port 0 --state file", 1, "--state file: .*File exists"),
    ("--port 0", 1, "none is not there; give a bundle's folder"),
]


@pytest.mark.parametrize(("options", "status", "said"), REFUSED)
def test_an_option_that_can_not_be_is_named(
    here: Path, options: str, status: int, said: str
) -> None:
    words = options.replace("TAKEN", (here / "port").read_text()).split()
    result = CliRunner().invoke(main, ["serve", "none", *words])
    assert result.exit_code == status and re.search(said, result.output), result.output
    assert len(re.findall("^(?:error|Error): ", result.output, re.MULTILINE)) == 1
    assert "Traceback" not in result.output


def test_pages_and_names_that_requests_have_are_taken() -> None:
    origins = ("*", "null", "https://a.b", "http://localhost:3000", "app://obsidian.md")
    Serving(origins=origins, hosts=("box", "a.b", "192.168.0.2", "[::1]"))


def test_keys_come_from_options_a_file_or_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given_keys((), None) == []
    monkeypatch.setenv("MINICPM_MLC_API_KEY", "told")
    assert given_keys((), None) == ["told"]
    assert given_keys(("a",), here / "file") == ["a", "one"]
