"""bench --attention-only: dense against sparse kernels, and what it refuses to run them on."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minicpm_mlc.bench import attention as module
from minicpm_mlc.bench.attention import bench_attention
from minicpm_mlc.bench.decode import BenchError
from minicpm_mlc.cli import main


def test_rows_of_both_phases_are_measured_and_work_is_counted():
    report = bench_attention([1, 256, 6208], [0, 5], repeats=1, threads=1)
    assert [(row.phase, row.context, row.rows) for row in report.rows] == [
        ("decode", 1, 1),
        ("decode", 256, 1),
        ("decode", 6208, 1),
        ("prefill", 6208, 5),
    ]
    assert all(row.dense_ms > 0 and min(row.parts_ms) > 0 for row in report.rows)
    assert [row.tokens_read for row in report.rows] == [
        1,
        1,
        6144 / 6208,
        6144 / 6208,
    ]  # 96 blocks of 64
    scored = [0, 2 * (15 + 3), 2 * (387 + 96)]  # windows of 32 and of 128 tokens
    assert [row.multiply_adds for row in report.rows[:3]] == pytest.approx(
        [(s + 4 * min(6144, n)) / (4 * n) for s, n in zip(scored, (1, 256, 6208), strict=True)]
    )
    assert "--depth 1,256,6208 --prompt-tokens 0,5 --repeats 1 --threads 1" in report.plain()


@pytest.mark.parametrize(
    ("kv", "token_bytes"),
    [
        ("f16", 1024),
        ("int8", 528),
        pytest.param("f32", 2048, marks=pytest.mark.campaign),  # five kernels of an 8B model each
        pytest.param("bf16", 1024, marks=pytest.mark.campaign),
    ],
)
def test_every_kind_of_cache_is_measured_by_its_own_bytes(kv, token_bytes):
    report = bench_attention([640], [0], repeats=1, threads=1, kv=kv)
    (row,) = report.rows
    assert row.dense_gb_per_second * row.dense_ms * 1e6 == pytest.approx(640 * token_bytes)
    assert f"{kv} keys and values" in report.head() and f"--kv {kv}" in report.command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [0, 1024]}, "--depth 0,1024: .* 1 to 131072 .* try --depth 32768,131072"),
        ({"depths": [-1]}, "--depth -1"),
        ({"depths": [131073]}, "--depth 131073"),
        ({"depths": []}, "--depth"),
        ({"depths": [256], "prompt_tokens": [512]}, "--prompt-tokens 512: .* give 0 .* to 256"),
        ({"prompt_tokens": [-1]}, "--prompt-tokens -1"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"threads": 0}, "--threads is 0"),
    ],
)
def test_what_no_kernel_can_run_on_is_refused_before_one_does(options, message, monkeypatch):
    monkeypatch.setattr(module, "memory_reader", None)
    with pytest.raises(BenchError, match=message):
        bench_attention(**options)


def test_the_bare_command_measures_the_published_depths(monkeypatch):
    seen = {}
    report = SimpleNamespace(plain=lambda: "measured")
    monkeypatch.setattr(module, "bench_attention", lambda **options: seen.update(options) or report)
    assert CliRunner().invoke(main, ["bench", "--attention-only"]).output == "measured\n"
    assert seen == {"prompt_tokens": [512], "repeats": 3, "threads": None, "kv": "f16"}
    assert inspect.signature(bench_attention).parameters["depths"].default == (32768, 131072)
