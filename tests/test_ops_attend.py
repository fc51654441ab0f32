"""Paged attention of prefill and decode against its float64 definition."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from op_cases import compiled, cpu_kernel, nmse

from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, attend_definition
from minicpm_mlc.ops.formats.kv import F16, F32

OPERATORS = {"prefill": AttendPrefill, "decode": AttendDecode}
FAMILIES = [  # heads, kv heads, head_dim, KV format, register tile: groups of 1, 3, 4, 8 and 16
    (2, 2, 96, F32, 4),
    (3, 1, 64, F16, 8),
    (8, 2, 128, F16, 8),
    (16, 2, 64, F16, 4),
    (16, 1, 128, F32, 4),
]
SIZES = [
    (1, 1),
    (2, 15),
    (1, 63),
    (1, 64),
    (7, 64),
    (1, 65),
    (65, 65),
    (2, 200),
    (9, 200),
    (64, 200),
    (1, 1000),
    (8, 1000),
]


@cache
def kernel(kind: str, family: tuple):
    return compiled(cpu_kernel(OPERATORS[kind](*family[:4]), family[4]))


def make_case(kind: str, family: tuple, n: int, context: int, seed: int = 0) -> list[np.ndarray]:
    """q, k_pages, v_pages, page_tables, slots: pages shuffled, NaN in the slots past the last one
    in use.
    """
    num_heads, num_kv_heads, head_dim, kv, _ = family
    rng = np.random.default_rng([n, context, seed])
    pages = -(-context // 64)
    tables = (
        rng.permutation(pages * (n if kind == "decode" else 1)).astype(np.int32).reshape(-1, pages)
    )
    slots = np.arange(context - n, context).astype(np.int32)
    if kind == "decode":
        slots[: n - 1] = 40 * np.arange(
            n - 1
        )  # short sequences beside a long one: some splits have no page
    q = 2 * rng.standard_normal((n, num_heads, head_dim)).astype(np.float32)
    k_pages = rng.standard_normal((tables.size, num_kv_heads, head_dim, 64)).astype(kv.storage)
    v_pages = rng.standard_normal((tables.size, num_kv_heads, 64, head_dim)).astype(kv.storage)
    for row, table in enumerate(tables):
        last = slots[row] if kind == "decode" else slots.max()
        k_pages[table[last // 64], :, :, last % 64 + 1 :] = np.nan
        v_pages[table[last // 64], :, last % 64 + 1 :] = np.nan
    return [q, k_pages, v_pages, tables, slots]


def attend(kind: str, family: tuple, case: list[np.ndarray]) -> np.ndarray:
    out = np.full((len(case[0]), family[0] * family[2]), np.nan, np.float32)
    kernel(kind, family)(*case, out)
    return out


@pytest.mark.parametrize("n,context", SIZES)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("kind", OPERATORS)
def test_matches_definition_and_never_reads_unwritten_slots(
    kind: str, family: tuple, n: int, context: int
):
    case = make_case(kind, family, min(n, 3) if kind == "decode" else n, context)
    assert nmse(attend(kind, family, case), attend_definition(*case)) < 1e-11


@pytest.mark.parametrize("kind", OPERATORS)
def test_scores_far_apart_stay_finite(kind: str):
    case = make_case(kind, FAMILIES[3], 2, 200)
    case[0] *= 100
    assert nmse(attend(kind, FAMILIES[3], case), attend_definition(*case)) < 1e-8


def test_prefill_takes_rows_in_any_order():
    case = make_case("prefill", FAMILIES[3], 65, 200)
    case[4] = np.random.default_rng(0).permutation(200)[:65].astype(np.int32)
    case[4][0] = 199
    assert nmse(attend("prefill", FAMILIES[3], case), attend_definition(*case)) < 1e-11


def test_decode_equals_prefill_of_the_same_row():
    case = make_case("prefill", FAMILIES[2], 1, 1000)
    difference = attend("decode", FAMILIES[2], case) - attend("prefill", FAMILIES[2], case)
    assert np.abs(difference).max() < 1e-6
