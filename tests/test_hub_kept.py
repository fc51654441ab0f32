"""`run`, `list` and `rm`: what is compiled once, what is shown, and what is taken away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine
from hub_server import Stand
from test_hub import FILES, NAMES, NEEDED, name, stand

import minicpm_mlc.compile
import minicpm_mlc.runtime_py.device_check
import minicpm_mlc.runtime_py.engine
from minicpm_mlc.cli import main
from minicpm_mlc.hub.kept import kept

__all__ = ["name", "stand"]  # fixtures


class Compiler:
    """In compile_model's place: writes a bundle of one file, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, source: str, out: Path, **options: Any) -> None:
        assert options.pop("progress") and options.pop("say")
        self.calls.append((str(source), options))
        out.mkdir(exist_ok=True)
        (out / "manifest.json").write_text("{}")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """What `run` compiles with, and an engine that opens whatever it is given."""
    fake = Compiler()
    monkeypatch.setattr(minicpm_mlc.compile, "compile_model", fake)
    engine = FakeEngine()
    monkeypatch.setattr(minicpm_mlc.runtime_py.engine, "Engine", lambda bundle, **_: engine)
    monkeypatch.setattr(minicpm_mlc.runtime_py.device_check, "check_device", lambda engine: None)
    return fake


def run(*args: str, typed: str | None = None) -> Result:
    result = CliRunner().invoke(main, list(args), input=typed, prog_name="minicpm-mlc")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def chat(source: str, *options: str) -> None:
    result = run("run", source, "--prompt", "Hi", *options)
    assert (result.exit_code, result.stdout) == (0, "Hello\n"), result.output


def test_run_compiles_once_for_each_source_and_its_options(
    stand: Stand, compiler: Compiler
) -> None:
    chat(NAMES["hf"])
    assert len(compiler.calls) == 1
    path, options = compiler.calls[0]
    commit = "c0ffee" + "0" * 34
    assert path.endswith(commit) and options["device"] == "cpu"
    assert options["origin"] == f"{NAMES['hf']}@{commit}"
    stand.asked.clear()
    chat(NAMES["hf"])
    assert len(compiler.calls) == 1 and stand.asked == []  # no hub is asked
    chat(NAMES["hf"], "--quant", "w8")
    assert compiler.calls[1][1]["scheme"] == "w8" and stand.asked == []
    chat(NAMES["hf"], "--force")
    assert compiler.calls[2][1]["overwrite"] is True
    stand.files["config.json"] = b"{}"
    chat(NAMES["hf"])
    assert len(compiler.calls) == 3


def test_run_of_a_path_compiles_again_when_its_files_change(
    stand: Stand, compiler: Compiler, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    for _ in range(2):
        chat(str(file))
    file.write_bytes(b"GGUF2")
    chat(str(file))
    assert [path for path, _ in compiler.calls] == [str(file)] * 2
    assert run("run", str(next(iter(kept())).path)).exit_code == 1


def test_run_downloads_again_what_was_removed(stand: Stand, compiler: Compiler) -> None:
    chat(NAMES["hf"])
    assert run("rm", NAMES["hf"], "--downloads", "--yes").exit_code == 0
    chat(NAMES["hf"])  # the bundle alone is enough
    assert len(compiler.calls) == 1
    chat(NAMES["hf"], "--quant", "f16")
    assert len(compiler.calls) == 2 and Path(compiler.calls[1][0], "config.json").exists()


def test_list_shows_bundles_and_downloads(stand: Stand, name: str, compiler: Compiler) -> None:
    assert "nothing is kept" in run("list").stdout
    chat(name, "--quant", "w8")
    table = run("list").stdout.splitlines()
    assert [line.split()[:2] for line in table[1:3]] in (
        [[name, "bundle"], [name, "download"]],
        [[name, "download"], [name, "bundle"]],
    )
    assert "--quant w8" in "".join(table) and "just now" in table[1]
    told = {one["kind"]: one for one in json.loads(run("list", "--json").stdout)}
    assert told["bundle"]["revision"] == told["download"]["revision"] != ""
    assert told["download"]["bytes"] == sum(len(FILES[path]) for path in NEEDED)
    assert table[-1].endswith("in all")


def test_rm_asks_and_takes_all_that_came_by_us(
    stand: Stand, name: str, compiler: Compiler, tmp_path: Path
) -> None:
    chat(name)
    place = Path(next(one.path for one in kept() if one.kind == "download"))
    refused = run("rm", name, typed="n\n")
    assert refused.exit_code == 1 and len(kept()) == 2 and "Remove? [y/N]" in refused.stderr
    done = run("rm", name, typed="y\n")
    assert done.exit_code == 0 and "are free again" in done.stdout
    assert kept() == [] and not place.exists()
    left = [path for folder in ("hf", "modelscope") for path in (tmp_path / folder).rglob("*")]
    names = [path.name for path in left if path.is_file()]
    assert [each for each in names if not each.endswith(".lock") and each != "CACHEDIR.TAG"] == []
    unknown = run("rm", name)
    assert unknown.exit_code == 1 and "is not kept here; nothing is" in unknown.stderr


def test_rm_leaves_what_others_brought(stand: Stand, compiler: Compiler) -> None:
    import huggingface_hub

    other = Path(huggingface_hub.hf_hub_download(NAMES["hf"], "tokenizer.json"))
    chat(NAMES["hf"])
    run("rm", NAMES["hf"], "--yes")
    assert other.exists() and not (other.parent / "model.safetensors").exists()


def test_rm_leaves_files_that_another_name_has(stand: Stand, compiler: Compiler) -> None:
    stand.files = {f"m-{q}.gguf": q.encode() * 5000 for q in ("Q4_K_M", "Q8_0")}
    for choice in (":Q4_K_M", "", ":Q8_0"):
        run("pull", NAMES["hf"] + choice)
    run("rm", f"{NAMES['hf']}:Q8_0", "--yes")
    run("rm", f"{NAMES['hf']}:Q4_K_M", "--yes")
    (left,) = kept()
    assert left.name == NAMES["hf"] and left.bytes == 30000
    run("rm", NAMES["hf"], "--yes")
    assert kept() == [] and not Path(left.path).exists()


def test_bundles_go_alone_by_their_folder(stand: Stand, compiler: Compiler) -> None:
    chat(NAMES["hf"])
    chat(NAMES["hf"], "--quant", "w8")
    folder = next(one for one in kept() if one.kind == "bundle")
    assert run("rm", Path(folder.path).name, "--yes").exit_code == 0
    assert sorted(one.kind for one in kept()) == ["bundle", "download"]


def test_a_bundle_of_a_folder_goes_by_the_folders_name(
    stand: Stand, compiler: Compiler, tmp_path: Path
) -> None:
    source = tmp_path / "MyModel"
    source.mkdir()
    (source / "config.json").write_text("{}")
    chat(str(source))
    assert [one.kind for one in kept()] == ["bundle"]
    assert run("rm", "MyModel", "--yes").exit_code == 0 and not kept()
