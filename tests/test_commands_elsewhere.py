"""The commands on macOS with Apple silicon and on Windows with x86-64, as far as a Linux process
can stand in for one there (elsewhere.py). Nothing here ran on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from elsewhere import elsewhere

DEMO = str(Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo")
SYSTEMS = pytest.mark.parametrize(
    ("system", "processor"), [("Darwin", "arm64"), ("Windows", "AMD64")]
)


def homes(folder: Path) -> dict[str, str]:
    """The variables that tell where a user's files are."""
    return {"HOME": str(folder), "LOCALAPPDATA": str(folder / "AppData"), "XDG_STATE_HOME": ""}


@SYSTEMS
def test_commands_call_nothing_that_these_systems_lack(
    tmp_path: Path, tiny_bundle: Any, system: str, processor: str
) -> None:
    bundle = tiny_bundle("MiniCPM5-1B")
    out = str(tmp_path / "out")
    (tmp_path / "file").write_text("text")
    other = "windows-x64" if system == "Darwin" else "macos-arm64"
    commands = [  # arguments, status, a part of what is said
        (["devices"], 0, "memory             16.00 GiB"),
        (["inspect", str(bundle.checkpoint), "--no-speed"], 0, "memory"),
        (["inspect", str(bundle.path)], 0, "it was compiled for x86_64 linux"),
        (["verify", str(bundle.path), "--files-only"], 0, "as the manifest says"),
        (["list"], 0, "nothing"),
        (["package", str(bundle.path), "--for", "linux", "-o", f"{out}.tar"], 0, "wrote"),
        (["compile", DEMO, "--dry-run"], 0, "tokens of context need"),
        (["compile", DEMO, "--dry-run", "--device", other], 0, "tokens of context need"),
        (["compile", "nowhere"], 1, "nowhere is not a folder: there is nothing of that name"),
        (["compile", DEMO, "--device", "toaster"], 1, "--device toaster: not a device"),
        (["compile", DEMO, "--cpu", "z80"], 1, "--cpu z80"),
        (["compile", DEMO, "-o", str(tmp_path)], 1, "exists and isn't a bundle"),
        (["compile", DEMO, "-o", f"{tmp_path}/no/B"], 1, "doesn't exist: mkdir -p"),
        (["compile", DEMO, "-o", f"{tmp_path}/file/B"], 1, "file is a file; choose another"),
        (["chat", str(bundle.path), "--prompt", "Hi"], 1, "it was compiled for x86_64 linux"),
        (["rpc-server", "--folder", f"{tmp_path}/file/kept"], 1, ""),
        (["trace", str(bundle.path), "--prompt-file", f"{tmp_path}/no"], 1, "can't be read"),
    ]
    typed = [arguments for arguments, _, _ in commands]
    told = elsewhere(system, processor, typed, **homes(tmp_path))
    for (arguments, status, said), found in zip(commands, told, strict=True):
        shown = found.out + found.err
        assert found.status == status and said in shown, (arguments, shown)
        assert "this is a bug" not in shown, (arguments, shown)
        assert found.err.count("error: ") == status


@SYSTEMS
def test_an_answer_needs_nothing_that_these_systems_lack(
    tmp_path: Path, demo_bundle: Path, system: str, processor: str
) -> None:
    """The whole way of an answer, with this machine's library in the place of theirs."""
    asked = ["--prompt", "What is 4827 + 356?", "--temperature", "0", "--trust", "--stats"]
    command = ["chat", str(demo_bundle), *asked]
    (said,) = elsewhere(system, processor, [command], **homes(tmp_path), RUNS_HERE="1")
    assert said.status == 0 and "5183" in said.out, said.err
    assert "tok/s" in said.err and "Traceback" not in said.err


@SYSTEMS
def test_a_conversation_starts_and_keeps_its_files_where_these_systems_have_them(
    tmp_path: Path, demo_bundle: Path, system: str, processor: str
) -> None:
    keys = f"What is 1 + 2? /no_think\r/save {tmp_path}/said.json\r/model\r/quit\r"
    command = ["chat", str(demo_bundle), "--trust", "--max-tokens", "4"]
    env = homes(tmp_path) | {"RUNS_HERE": "1", "TYPED": keys}
    (said,) = elsewhere(system, processor, [command], **env)
    assert said.status == 0, said.err
    assert said.out.startswith("MiniCPM4.1-demo (w4a) on cpu, ") and "drafters" in said.out
    assert (tmp_path / "said.json").is_file() and "bug" not in said.out + said.err
    place = "AppData" if system == "Windows" else ".local/state"
    kept = {file.name for file in (tmp_path / place / "minicpm-mlc").iterdir()}
    assert {"history", "last-chat.json"} <= kept
