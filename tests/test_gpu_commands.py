"""chat, bench and tune with bundles for the GPU devices that are here, near and from afar, and when
a device fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import DEMO
from driver_cases import command, in_new_process, lost, needs_cc, small
from test_rpc import KEY, started

from minicpm_mlc import cli
from minicpm_mlc.bench import tune
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.runtime_py.memory import open_memory
from minicpm_mlc.targets import get_target
from minicpm_mlc.targets.tuning import Tuning

CHAT = (
    "--prompt",
    "What does minicpm-mlc do? /no_think",
    "--temperature",
    "0",
    "--max-tokens",
    "16",
)
FEW = ("--new-tokens", "2", "--repeats", "1", "--json")
BENCH = ("--depth", "0", "--prompt-tokens", "8", *FEW)


@pytest.fixture(scope="module")
def bundle(device: str, compiled: Callable[..., Path]) -> Path:
    return compiled(DEMO, device=device, kv="f16", attention="dense", prefill_chunk=64)


def shown(*arguments: str) -> str:
    """What a command prints that succeeds."""
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_chat_and_bench_run_from_afar_and_name_the_device(
    device: str, bundle: Path, tmp_path: Path
):
    address, _ = started(tmp_path)
    afar, named = ("--rpc", address, "--key", KEY), open_memory(device).name
    here = shown("chat", str(bundle), *CHAT)
    assert (
        here.startswith("minicpm-mlc compiles") and shown("chat", str(bundle), *CHAT, *afar) == here
    )
    report = json.loads(shown("bench", str(bundle), *BENCH, *afar))
    assert report["device"] == f"{named} at {address}" and len(report["rows"]) == 2
    for options in (BENCH, ("--speculate", "ngram", *FEW)):
        assert json.loads(shown("bench", str(bundle), *options))["device"] == named


def test_tune_sweeps_attention_and_its_table_is_for_that_device(
    device: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(GpuTraits, "choices", {"attend_decode": {"split_pages": (2, 8)}})
    monkeypatch.setattr(tune, "UNCACHED", 1 << 18)
    path = tmp_path / "table.json"
    options = ("-o", str(path), "--depth", "192", "--repeats", "1", "--json")
    found = json.loads(shown("tune", str(bundle), *options))
    made = Tuning.read(path)
    (kernel,) = made.kernels
    assert found["kernels"][0]["record"] == kernel.record
    assert kernel.record["operator"] == "attend_decode" and kernel.nmse < 1e-6
    assert kernel.parameters in ({}, {"split_pages": 2}) and 0 < kernel.microseconds
    assert made.suits(get_target(device)) and made.name == open_memory(device).name


@needs_cc
@pytest.mark.parametrize("verb", [("chat", *CHAT), ("bench", *BENCH)], ids=lambda verb: verb[0])
def test_a_lost_device_is_one_line_that_says_what_to_do(
    device: str, bundle: Path, verb: tuple[str, ...], tmp_path: Path
):
    done = command(verb[0], str(bundle), *verb[1:], **lost(device, tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {open_memory(device).name}: ")
    assert "the device was lost" in line and "start the program again" in line


@needs_cc
def test_a_context_is_held_against_the_memory_of_the_gpu_not_the_hosts(
    device: str, bundle: Path, tmp_path: Path
):
    need = Manifest.load(bundle).memory_need(640)
    code = f"""
from minicpm_mlc import Engine
from minicpm_mlc.base.errors import ContextError
print(open_memory({device!r}).free)
try: Engine({str(bundle)!r}, context=641)
except ContextError as e: print(e)
"""
    free, refusal = in_new_process(code, **small(device, tmp_path, need)).splitlines()
    assert free == str(need) and refusal.endswith("of memory is free; give --context 640 or less")
