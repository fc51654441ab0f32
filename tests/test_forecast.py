"""`inspect` before a download: what is asked of the hub, and the forecast of sizes and speed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import forecast as script
import pytest
from checkpoints import tiny_config, write_checkpoint
from click.testing import CliRunner
from hub_server import Stand
from test_gguf import write_gguf
from test_hub import NAMES, name, pulled, stand, use_huggingface

from minicpm_mlc.base.errors import CheckpointError, ConfigError, HubError
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.cli import main
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.model.registry import sparse_settings
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.inspect import describe, forecast, machine_limits, remote
from minicpm_mlc.inspect.forecast import Forecast, needed_memory, speed_table
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES

__all__ = ["name", "stand"]  # fixtures
EPYC = Limits(2, 49.8e9, 592e9, 2049e9)  # docs/performance.md's machine


def inspected(*args: str) -> Any:
    result = CliRunner().invoke(main, ["inspect", *args], prog_name="minicpm-mlc")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in args else result.stdout


def checkpoint_files(folder: Path) -> dict[str, bytes]:
    write_checkpoint(folder, tiny_config("MiniCPM4-0.5B"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_is_described_by_its_config_alone(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    files = checkpoint_files(tmp_path / "model")
    stand.files = files
    report = inspected(name, "--json", "--no-speed")
    local = inspected(str(tmp_path / "model"), "--json", "--no-speed")
    assert report["download"] == sum(map(len, files.values()))
    assert [report[key] for key in ("model", "memory", "bundle")] == [
        local["model"] | {"name": "tiny"},
        local["memory"],
        local["bundle"],
    ]
    assert not any("safetensors" in path or "/cdn/" in path for path in stand.asked)


def test_a_gguf_file_is_described_by_its_header(
    stand: Stand, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_gguf(tmp_path / "tiny-Q8_0.gguf").read_bytes()
    monkeypatch.setattr(remote, "HEADERS", (2048, len(whole) // 2))
    stand.files = {"tiny-Q8_0.gguf": whole}
    report = inspected(name, "--json", "--no-speed")
    assert (report["download"], report["kind"]) == (len(whole), "GGUF file of a hub")
    local = inspected(str(tmp_path / "tiny-Q8_0.gguf"), "--json", "--no-speed")
    assert report["model"] == local["model"] and report["memory"] == local["memory"]
    asked = [path for path in stand.asked if "/cdn/" in path]
    assert [path.split("-")[0] for path in asked] == ["GET 0"] * len(asked) and asked
    stand.files = {"tiny-Q8_0.gguf": b"GGUF" + bytes(5000)}
    with pytest.raises(CheckpointError, match="GGUF version 0"):
        describe.describe(name)


def test_what_is_no_model_is_refused_before_a_download(stand: Stand, name: str) -> None:
    with pytest.raises(ConfigError, match="model_type"):
        describe.describe(name)
    stand.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"}
    with pytest.raises(HubError, match=r"has no config\.json, as adapters have none"):
        describe.describe(name)


def test_without_the_hub_what_was_pulled_is_described(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.files = checkpoint_files(tmp_path / "model")
    folder = pulled(NAMES["hf"]).path
    use_huggingface(monkeypatch, "http://127.0.0.1:9", folder.parents[2])
    assert describe.describe(NAMES["hf"])["kind"] == "checkpoint"
    with pytest.raises(HubError, match="can't be reached"):
        describe.describe("openbmb/other")


def test_limits_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = [Limits(2, 1e9, 2e9, None), Limits(2, 5e9, 6e9, 7e9)]
    import minicpm_mlc.bench.limits as bench_limits

    class Measured:
        def __init__(self, threads: int) -> None:
            self.limits = lambda: measured.pop(0)

        def sample(self) -> None:
            pass

    monkeypatch.setattr(bench_limits, "UsualLimits", Measured)
    first = machine_limits.machine_limits()
    assert machine_limits.machine_limits() == first == Limits(2, 1e9, 2e9, None)
    assert machine_limits.machine_limits(again=True) == Limits(2, 5e9, 6e9, 7e9)
    report = inspected("MiniCPM4.1-8B")
    assert "memory reads 5.0 GB/s" in report
    assert [line.split()[:3] for line in report.splitlines()[-2:]] == [
        ["decode", "131072", "dense"],
        ["decode", "131072", "sparse"],
    ]


def table(model: str, limits: Limits = EPYC, scheme: str = "w4") -> dict[tuple[Any, ...], float]:
    rows = speed_table(PRESETS[model], [scheme], limits)
    return {(row["phase"], row["depth"], row["attention"]): float(row[scheme]) for row in rows}


def test_the_forecast_is_near_what_was_measured_on_that_machine() -> None:
    """docs/performance.md: 94.07 ms a step of the 8B, 6.58 ms of the 0.5B with a 4-bit head."""
    assert table("MiniCPM4.1-8B")["decode", 0, "dense"] == pytest.approx(1 / 0.094, rel=0.2)
    assert table("MiniCPM4-0.5B")["decode", 0, "dense"] == pytest.approx(1 / 0.0066, rel=0.3)


def test_speeds_follow_their_limits() -> None:
    fast = table("MiniCPM4-0.5B", Limits(2, 10 * EPYC.bandwidth, 592e9, 2049e9))
    more = table("MiniCPM4-0.5B", Limits(2, EPYC.bandwidth, 592e9, 4098e9))
    now = table("MiniCPM4-0.5B")
    assert fast["prefill", 0, "dense"] == now["prefill", 0, "dense"]
    assert 1.3 < more["prefill", 0, "dense"] / now["prefill", 0, "dense"] < 2
    assert now["decode", 0, "dense"] < fast["decode", 0, "dense"] < 3 * now["decode", 0, "dense"]
    assert now["decode", 0, "dense"] > now["decode", 32768, "dense"] > 1
    without = table("MiniCPM4-0.5B", Limits(2, EPYC.bandwidth, 592e9, None))
    assert without["prefill", 0, "dense"] < now["prefill", 0, "dense"]


def test_gears_and_depths_are_those_that_the_model_has() -> None:
    assert {gear for _, _, gear in table("Qwen3-8B")} == {"dense"}
    assert {depth for _, depth, _ in table("Qwen3-8B")} == {0, 32768}
    config = PRESETS["MiniCPM4.1-8B"]
    precision = Precision(SCHEMES["w4"], SCHEMES["w8"], F16, "int8")
    config = replace(config, sparse=SparseConfig())
    sparse = Forecast(config, precision, EPYC).speeds([0, 131072])
    assert [(s.phase, s.depth, s.attention) for s in sparse][-2:] == [
        ("decode", 131072, "dense"),
        ("decode", 131072, "sparse"),
    ]
    assert sparse[-1].tokens_per_second > 2 * sparse[-2].tokens_per_second


def test_memory_is_what_a_chat_touches(tmp_path: Path) -> None:
    """The manifest's, but for an embedding of which few rows are read, with the program."""
    for preset, embedding in (("MiniCPM4-0.5B", 0), ("MiniCPM4.1-8B", 323)):
        config = tiny_config(preset)
        write_checkpoint(tmp_path / preset, config)
        result = compile_model(tmp_path / preset, dry_run=True)
        short, *_, long = result.memory
        config = replace(config, sparse=sparse_settings(config))
        need = needed_memory(config, "w4a")
        assert need(long["context"]) - need(short["context"]) == long["bytes"] - short["bytes"]
        stored = embedding * config.hidden_size * 17 // 16  # 8 bits, and a scale of 16 for 32
        fixed = need(0) - forecast.PROGRAM - (result.weights - stored)
        assert 0 < fixed < 512 * 4 * (3 * config.intermediate_size + 2 * config.hidden_size)


def test_the_command_shows_the_error_of_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--replay foretells again what an earlier run measured."""
    limits = {"threads": 2, "bandwidth": 49.8e9, "float32": 592e9, "int8": 2049e9}
    decode = {"preset": "MiniCPM4.1-8B", "what": "decode", "context": 0, "attention": "dense"}
    decode |= {"scheme": "w4a"}
    memory = decode | {"what": "memory", "context": 4096, "attention": "", "limits": None}
    record = tmp_path / "record.json"
    rows = [decode | {"rows": 1, "value": 10.6, "limits": limits}]
    record.write_text(json.dumps([*rows, memory | {"rows": 0, "value": 4.6e9}]))
    monkeypatch.setattr(sys, "argv", ["forecast.py", "--replay", str(record)])
    script.main()
    done = capsys.readouterr().out
    line = next(line for line in done.splitlines() if line.startswith("MiniCPM4.1-8B  decode"))
    error = float(line.split()[-1].rstrip("%"))
    foretold = table("MiniCPM4.1-8B", scheme="w4a")["decode", 0, "dense"]
    assert error == round(100 * (foretold / 10.6 - 1))
    assert f"largest error of speed: {abs(error):.0f}%" in done
    assert "largest error of memory: " in done


def test_a_row_of_the_command_is_the_repeat_of_median_error() -> None:
    rows = [
        script.Measured("MiniCPM4.1-8B", what, 0, "dense", 1, value, EPYC)
        for what in ("decode", "prefill")
        for value in (10.6, 40.0, 9.9)  # of one a neighbour took half
    ]
    assert [row.value for row in script.middle(rows)] == [10.6, 10.6]


def test_limits_are_those_before_and_after_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Limits(2, speed, 4 * speed, None) for speed in (1e9, 3e9, 3e9)]
    usual = Mock(limits=Mock(side_effect=found))
    around = script.Surroundings(usual)
    for _ in found:
        around.sample()
    assert usual.sample.call_count == script.SAMPLES * usual.forget.call_count == 9
    assert [around.around(repeat) for repeat in (0, 1)] == [Limits(2, 2e9, 8e9, None), found[1]]
