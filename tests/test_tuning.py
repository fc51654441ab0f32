"""Parameters of kernels: the table, which of its rows a compilation takes, and how one is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bench import tune
from minicpm_mlc.cli import main
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.kernels import Kernels
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.rms_norm import RmsNorm
from minicpm_mlc.targets import get_target
from minicpm_mlc.targets.cpu import CpuTarget
from minicpm_mlc.targets.tuning import TunedKernel, Tuning

EXAMPLES = Path(__file__).parents[1] / "examples" / "demo_model"
HERE = CpuTarget.of("native")
TRAITS = HERE.traits
needs_int8 = pytest.mark.skipif(TRAITS.int8_dot is None, reason="no int8 dot products here")


def linear(n: int, k: int) -> LinearInt8:
    scheme = SCHEMES["w4"].beside("int8")
    return LinearInt8(n, k, scheme, sum_factor=TRAITS.sum_factor(scheme) or 1)


def table(*rows: tuple[LinearInt8, dict[str, int]], device: str = "cpu") -> Tuning:
    kernels = [TunedKernel(each.to_json(), chosen, 9.0, 10.0, 0.5, 0.0) for each, chosen in rows]
    return Tuning(device, "some processor", TRAITS.int8_dot, 4e10, kernels)


@needs_int8
def test_an_operator_takes_the_parameters_of_the_nearest_measured_shape():
    made = table((linear(64, 64), {"streams": 1}), (linear(4096, 4096), {"ahead": 4096}))
    assert made.applied(linear(64, 96), TRAITS) == replace(TRAITS, streams=1)
    assert made.applied(linear(2048, 8192), TRAITS) == replace(TRAITS, ahead=4096)
    assert made.applied(RmsNorm(64, 1e-6), TRAITS) == TRAITS


@needs_int8
def test_a_library_is_built_with_them():
    operator = linear(64, 64)
    usual, tuned = build(operator, TRAITS), table((operator, {"streams": 1}))
    kernels = Kernels(TRAITS, tuned)
    assert not build(operator, tuned.applied(operator, TRAITS)).same_as(usual)
    assert kernels.traits == TRAITS


@needs_int8
def test_the_nearest_device_is_one_of_the_same_kind_with_the_same_products(tmp_path: Path):
    (tmp_path / "a.json").write_text(table(device="cuda").json())
    assert Tuning.nearest(HERE, tmp_path) is None
    (tmp_path / "b.json").write_text(table((linear(64, 64), {"streams": 1})).json())
    found = Tuning.nearest(HERE, tmp_path)
    assert found and found.name == "some processor"
    assert Tuning.nearest(get_target("cuda"), tmp_path) is None, "its products are others"


def test_shipped_tables_are_read():
    for target in (HERE, get_target("cuda"), get_target("opencl")):
        found = Tuning.nearest(target)
        assert found is None or found.suits(target)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "is no table of minicpm-mlc tune"),
        ("[]", "make a table: minicpm-mlc tune BUNDLE"),
        (
            '{"device": "cpu", "name":"", "int8_dot": null, "bandwidth": 1, "kernels":[3]}',
            "table",
        ),
        (
            table((linear(64, 64), {"streams": 7})).json(),
            "linear_int8 has no streams of 7",
        ),
    ],
)
def test_what_is_no_table_is_refused(text: str, says: str, tmp_path: Path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(CompileError, match=says):
        Tuning.read(path)


def test_another_devices_table_is_refused(tmp_path: Path):
    path = tmp_path / "table.json"
    path.write_text(table(device="cuda").json())
    source = EXAMPLES / "MiniCPM4.1-demo"
    with pytest.raises(CompileError, match="measured on cuda, and this is compiled for cpu"):
        compile_model(source, tmp_path / "out", tuning=path, dry_run=True)


@needs_int8
def test_tune_sweeps_a_bundle_and_its_table_is_taken(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = tune.first_cases
    monkeypatch.setattr(tune, "first_cases", lambda *given: dict(list(first(*given).items())[:1]))
    monkeypatch.setattr(CpuTraits, "choices", {"linear_int8": {"streams": (1, 2)}})
    monkeypatch.setattr(tune, "UNCACHED", 1 << 20)
    path = tmp_path / "table.json"
    command = ["tune", str(demo_bundle), "-o", str(path), "--repeats", "2", "--json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    made = Tuning.read(path)
    (kernel,) = made.kernels
    assert json.loads(done.stdout)["kernels"][0]["record"] == kernel.record
    assert 0 < kernel.microseconds and kernel.nmse < 1e-6 and 0 < kernel.of_ceiling
    assert kernel.parameters in ({}, {"streams": 1, "ahead": 8192}, {"streams": 1})
    report = tune.TuneReport(made, str(path), "minicpm-mlc compile").plain()
    assert "linear_int8" in report and "memory reads" in report


def test_choices_are_fields_and_hold_what_is_usual():
    for traits in (TRAITS, GpuTraits()):
        for choices in traits.choices.values():
            for name, values in choices.items():
                assert getattr(traits, name) in values
