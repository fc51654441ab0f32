"""Kernel cases in bundles: what they find, and what a chat makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from checkpoints import NARROW, tiny_config
from click.testing import CliRunner
from odd_bundles import copy_of, rewrite_allowed

from minicpm_mlc import cli
from minicpm_mlc.base.errors import BundleError, EngineError
from minicpm_mlc.bundle.kernel_cases import KERNEL_CASES, Case, load_cases, to_bytes
from minicpm_mlc.bundle.manifest import Bundle, read_bundle
from minicpm_mlc.compile.kernel_cases import kernel_cases
from minicpm_mlc.compile.kernels import Kernels
from minicpm_mlc.compile.model.registry import build_model
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.pipeline import export
from minicpm_mlc.ops.build import has_kernel
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.operator import all_records
from minicpm_mlc.runtime_py import device_check, verify
from minicpm_mlc.runtime_py.device_check import check_device
from minicpm_mlc.runtime_py.kernel_check import Checked, check
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.verify import VerifyReport, verify_library
from minicpm_mlc.targets import get_target


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Bundle:
    return read_bundle(tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path)


@pytest.fixture(scope="module")
def library(bundle: Bundle) -> LocalLibrary:
    return LocalLibrary(bundle, 1)


class Wrong:
    """A library one of whose kernels writes a wrong number at one place, seeded, of each output."""

    def __init__(self, library: LocalLibrary, case: Case, seed: int = 0) -> None:
        self.memory, self.device_name = library.memory, library.device_name
        self.device_identity = library.device_identity
        self._library, self._case, self._rng = library, case, np.random.default_rng(seed)

    def kernel(self, name: str) -> Any:
        kernel = self._library.kernel(name)

        def run(*tensors: Any) -> None:
            kernel(*tensors)
            for expected in self._case.expected:
                flat = self.memory.array(tensors[expected.argument]).reshape(-1)
                place = self._rng.integers(flat.size)
                flat[place] = 37 if flat.dtype.kind in "iu" else flat[place] + 37

        return run if name == self._case.kernel else kernel

    def check(self, case: Case, timed: bool = True) -> Checked:
        return check(self, case, timed)


def test_a_sound_bundle_passes_and_every_operator_is_listed(bundle, library):
    report = verify_library(library, bundle)
    assert report.failed == []
    operators = {row.operator for row in report.rows}
    assert operators > {
        "linear_int8",
        "attend_decode",
        "attend_tree_blocks",
        "rope_append",
        "select_blocks",
        "embed",
    }
    assert {"generation, dense", "generation, sparse"} < operators
    assert [len(ids) for ids in report.tokens.values()] == [16, 16]
    assert max(row.nmse for row in report.rows if row.cases > 1) < 1e-9


def test_one_wrong_number_anywhere_is_found(bundle, library):
    for case in load_cases(bundle.path):
        assert check(library, case, timed=False).passed, case.operator
        assert not check(Wrong(library, case), case, timed=False).passed, case.operator


@pytest.mark.parametrize("device", ["cpu", "opencl"])
@pytest.mark.parametrize("scheme", ["w4", "f16"])
def test_every_kernel_of_a_library_has_cases(device, scheme):
    target = get_target(device)
    activations = "int8" if target.int8_dot and scheme == "w4" else "f32"
    kernels = Kernels(target.traits)
    precision = Precision(SCHEMES[scheme], SCHEMES[scheme], F16, activations)
    config = tiny_config("MiniCPM4.1-8B", sparse=NARROW)
    module, _ = export(build_model(config, precision, kernels=kernels))
    cases = kernel_cases(kernels, module)
    named = {
        variable.name_hint
        for variable, function in module.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    assert {case.kernel for case in cases} == named
    assert to_bytes(cases) == to_bytes(kernel_cases(kernels, module))
    assert len(to_bytes(cases)) < 800_000


# what a kind of device does by other operators
ABSENT = {
    "cpu": {
        "candidates",
        "likeliest",
        "norm_linear_int8",
        "norm_linear_swiglu_int8",
        "rope_append_means",
    },
    "opencl": {
        "linear_int8",
        "linear_swiglu_int8",
        "norm_linear_int8",
        "norm_linear_swiglu_int8",
        "quantize_rows",
        "rms_norm_int8",
    },
}


@pytest.mark.parametrize("device", ABSENT)
def test_every_operator_has_a_kernel_on_every_kind_of_device_that_it_is_for(device: str):
    traits, absent = get_target(device).traits, set()
    for name, kind in all_records().items():
        if any(record.fits(traits) for record in kind.variants()):
            assert has_kernel(kind, traits), name
        else:
            absent.add(name)
    assert absent == ABSENT[device]


def test_a_bundle_without_cases_says_so(tmp_path):
    with pytest.raises(BundleError, match="compile it again"):
        load_cases(tmp_path)
    (tmp_path / KERNEL_CASES).write_bytes(b"PK damaged")
    with pytest.raises(BundleError, match=KERNEL_CASES):
        load_cases(tmp_path)


def test_tokens_of_another_device_are_held_against_these(bundle, library, tmp_path):
    report = verify_library(library, bundle)
    (tmp_path / "there.json").write_text(report.json())
    expected = verify._expected_tokens(tmp_path / "there.json")
    assert verify_library(library, bundle, expected).failed == []
    expected["sparse"][3] += 1
    wrong = verify_library(library, bundle, expected)
    assert wrong.failed == ["tokens, sparse"]
    assert "tokens as expected: NO" in wrong.plain()
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(EngineError, match="verify BUNDLE --json"):
        verify._expected_tokens(tmp_path / "other.json")


def test_the_command_names_what_is_wrong_and_ends_with_status_1(monkeypatch):
    row = verify.OperatorResult("attend_decode", 1, float("nan"), 1e-5, 0.0, False)
    report = VerifyReport(
        "MiniCPM", "a phone", [row, replace(row, operator="embed", nmse=0.0, passed=True)], {}
    )
    monkeypatch.setattr(verify, "verify_bundle", lambda *_, **__: report)
    result = CliRunner().invoke(cli.main, ["verify", "bundle"])
    assert result.exit_code == 1
    assert "computes wrong on a phone: attend_decode;" in result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()[3:]] == ["WRONG", "ok"]
    result = CliRunner().invoke(cli.main, ["verify", "bundle", "--json"])
    assert json.loads(result.stdout)["failed"] == ["attend_decode"]


def engine_of(library: Any, bundle: Bundle) -> Any:
    return SimpleNamespace(library=library, path=bundle.path, manifest=bundle.manifest)


def test_a_device_is_tried_once_per_library_and_driver(bundle, library, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried: list[str] = []

    def count(library: Any, case: Case, timed: bool = True) -> Checked:
        tried.append(case.operator)
        return check(library, case, timed)

    monkeypatch.setattr(LocalLibrary, "check", count)
    monkeypatch.setattr(device_check, "BUDGET", 60.0)
    check_device(engine_of(library, bundle))
    once = len(tried)
    assert once == len(set(tried)) > 10
    check_device(engine_of(library, bundle))
    assert len(tried) == once
    renewed = {"device_name": "cpu", "device_identity": "another driver"}
    again = SimpleNamespace(check=library.check, **renewed)
    check_device(engine_of(again, bundle))
    assert len(tried) == 2 * once


def test_a_device_that_computes_wrong_is_refused_each_time(bundle, library, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(device_check, "BUDGET", 60.0)
    case = next(
        case
        for case in device_check.smallest(load_cases(bundle.path))
        if case.operator == "attend_decode"
    )
    for _ in range(2):
        with pytest.raises(BundleError, match=r"computes attend_decode wrong .*minicpm-mlc verify"):
            check_device(engine_of(Wrong(library, case), bundle))
    check_device(engine_of(library, bundle))


@pytest.mark.parametrize(
    ("factor", "saw"),
    [
        (0.0, "logits that are all 0"),
        (1e30, "logits that are all 0"),  # what an infinite residual stream is normalised to
        (float("nan"), r"logits that are not numbers \(NaN or infinite\)"),
    ],
)
def test_weights_that_are_no_model_are_not_the_drivers_fault(tiny_bundle, tmp_path, factor, saw):
    folder = copy_of(tiny_bundle("MiniCPM4-0.5B").path, tmp_path / "odd")
    weights = np.fromfile(folder / "params_shard_0.bin", np.float32)
    with np.errstate(over="ignore"):
        weights = weights * np.float32(factor)
    weights.tofile(folder / "params_shard_0.bin")
    made = read_bundle(rewrite_allowed(folder))
    report = verify_library(LocalLibrary(made, 1), made)
    assert report.failed == ["generation, dense"]
    with pytest.raises(BundleError, match=f"every kernel is right .*{saw}.*, so its weights are"):
        report.raise_if_failed()


def test_a_wrong_kernel_is_the_devices_fault_whatever_the_logits() -> None:
    row = verify.OperatorResult("embed", 1, 1.0, 1e-5, 0.0, False)
    rows = [row, replace(row, operator="generation, dense")]
    report = VerifyReport("M", "a phone", rows, {}, None, {"dense": "logits that are all 0"})
    with pytest.raises(BundleError, match="computes wrong on a phone: embed, generation, dense;"):
        report.raise_if_failed()
