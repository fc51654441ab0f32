"""The operator grid on every device that is here, and the support table made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from grid_cases import FAMILIES, all_cases
from op_grid import DEVICES, allowed, calls_of, cases_of, devices_here

TABLE = Path(__file__).parents[1] / "docs" / "support.md"


@pytest.mark.usefixtures("vulkan_silent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_operators_equal_their_definitions(device: str, family: str):
    if device not in devices_here():
        pytest.skip(f"no {device} device with its runtime: make devices")
    for number, case in enumerate(cases_of(device, family)):
        error = case.error(calls_of(device)[case.kernel])
        assert error <= allowed(device, case), (
            number,
            case.kernel,
            [array.shape for array in case.arguments],
        )


def test_the_committed_table_names_every_operator_and_device_and_counts_a_thousand_cases():
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert lines[0] == ["operator", "dtype", *DEVICES]
    named = {(line[0], line[1]) for line in lines[2:]}
    assert named >= {
        (case.kernel.operator, case.kernel.dtype)
        for cases in all_cases().values()
        for case in cases
    }
    assert (
        sum(int(cell.split(":")[0]) for line in lines[2:] for cell in line[2:] if cell != "-")
        >= 1000
    )
