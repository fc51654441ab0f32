"""CUDA's kernels at sizes that the operator grid doesn't reach, through the shim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_cases import compiled_together
from grid_cases import record_case
from op_cases import nmse
from shim_cases import SHIM
from test_ops_attend import make_case

from minicpm_mlc.ops.attend import AttendDecode
from minicpm_mlc.ops.build import build
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.gpu import int8_products
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.operator import Operator
from minicpm_mlc.ops.samples import Draw
from minicpm_mlc.ops.select_blocks import SelectBlocks, select_blocks_definition
from minicpm_mlc.targets import cuda, get_target
from minicpm_mlc.targets.cuda_compiler import without_head

TARGET = get_target("cuda", arch="sm_90")

pytestmark = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="CUDA itself is here")


@pytest.fixture(autouse=True)
def source_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries get the source in place of machine code, for the shim."""
    assert SHIM.is_dir()
    monkeypatch.setattr(cuda, "fat_binary", lambda source, _: without_head(source).encode())


def through_the_shim(**records: Operator) -> dict[str, Any]:
    kernels = {name: build(record, TARGET.traits) for name, record in records.items()}
    return compiled_together(kernels, "cuda", TARGET)


def test_the_last_workgroup_merges_a_rows_splits_whichever_it_is():
    """One library runs workgroups in order, the next one backwards; each call leaves the counts of
    who came as it found them. 40 pages are merged in two rounds, 9 in one.
    """
    family, record = (3, 1, 32, F16, 0), AttendDecode(3, 1, 32, F16)
    for _ in range(2):
        call = through_the_shim(attend=record)["attend"]
        for n, context in [(1, 40 * 64 - 3), (2, 9 * 64), (1, 17 * 64), (1, 40 * 64 - 3)]:
            case = make_case("decode", family, n, context)
            out = np.full((n, 3 * 32), np.nan, np.float32)
            call(*case, out)
            assert nmse(out, record.define(*case)) < 1e-6, (n, context)


@pytest.mark.parametrize("scheme", ["w4", "w4a", "w8"])
def test_hundreds_of_rows_meet_the_weights_in_shared_memory(
    scheme: str, monkeypatch: pytest.MonkeyPatch
):
    """Groups of columns in steps of two, the last of which may be half a turn; 96 columns are three
    groups, which go another way. Of 272 rows of W the last are taken by smaller workgroups, as
    those that four, a GPU here, leave are few. 20 rows of x are two workgroups of such.
    """
    monkeypatch.setattr(int8_products, "WORKGROUPS", 4)
    monkeypatch.setattr(int8_products, "SLACK", 2)
    weights = SCHEMES[scheme].beside("int8")
    factor = TARGET.traits.sum_factor(weights)
    assert factor is not None
    records = {
        f"k{k}": LinearInt8(n, k, weights, sum_factor=factor, residual=True)
        for n, k in ((144, 192), (272, 256), (144, 96))
    }
    calls = through_the_shim(**records)
    for name, record in records.items():
        for rows in (20, 150):
            check_rows(record, calls[name], rows)


def check_rows(record: LinearInt8, call: Any, rows: int) -> None:
    draw = Draw(whole=True)
    draw.random = np.random.default_rng(1)
    draw.rows = lambda *few, most=6: [rows]  # type: ignore[method-assign]
    *_, sample = record.samples(draw)
    case = record_case(record, sample)
    assert case.error(call) <= case.allowed, (record, rows)


@pytest.mark.parametrize("head_dim", [80, 96])
def test_heads_whose_components_are_no_power_of_two(head_dim: int):
    family, record = (3, 1, head_dim, F16, 0), AttendDecode(3, 1, head_dim, F16)
    call = through_the_shim(attend=record)["attend"]
    for n, context in [(1, 5 * 64 - 3), (2, 70)]:
        case = make_case("decode", family, n, context)
        out = np.full((n, 3 * head_dim), np.nan, np.float32)
        call(*case, out)
        assert nmse(out, record.define(*case)) < 1e-6, (n, context)


@pytest.mark.parametrize("values", [None, [0.0], [0.25, 0.25000003, 0.0, 1e-45, np.inf]])
def test_selection_of_thousands_of_blocks(values: list[float] | None):
    """Random scores leave few behind the coarse threshold, equal ones all; the last row is longer
    than what registers hold.
    """
    select, rng = SelectBlocks(1, 64, 32, 1), np.random.default_rng(2)
    call = through_the_shim(select=select)["select"]
    for pages in (700, 2048, 4097):
        pooled = rng.gamma(0.5, size=(2, 1, pages)).astype(np.float32)
        if values is not None:
            pooled = rng.choice(np.array(values, np.float32), pooled.shape)
        positions = np.array([64 * pages - 1, 64 * (pages - 40)], np.int32)
        selected = np.full((2, 1, select.budget), -9, np.int32)
        call(pooled, positions, selected)
        expected = select_blocks_definition(pooled, positions, 64, 32, 1)
        np.testing.assert_array_equal(selected, expected)
