"""The page that shows which blocks an answer read."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from minicpm_mlc import Engine
from minicpm_mlc.cli import main
from minicpm_mlc.compile.config import SparseConfig
from minicpm_mlc.errors import EngineError
from minicpm_mlc.runtime_py.trace import NOTE, as_html, count_reads, trace

SPARSE = SparseConfig(init_blocks=1, window_size=128, topk=4, dense_len=384)
DOCUMENT = "<b>lamp & key</b> " * 60


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE).path


def test_reads_are_counted_per_layer_and_block():
    layers = [np.array([[0, 2, -1], [2, 3, -1]]), np.array([[1, -1, -1], [1, -1, -1]])]
    assert count_reads(layers, 4).tolist() == [[0.5, 0, 1, 0.5], [0, 1, 0, 0]]


def test_a_trace_holds_every_step_and_never_more_than_the_budget(bundle):
    with Engine(bundle, context=2048, attention="sparse") as engine:
        result = trace(engine, [{"role": "user", "content": DOCUMENT}], max_tokens=5)
        tokens = len(engine.template.prompt(engine.tokenizer.raw, [{"role": "user", "content": DOCUMENT}], None).ids)
    steps, layers, blocks = result.reads.shape
    assert (layers, blocks) == (2, -(-tokens // 64)) and 1 <= steps <= 5
    assert (result.reads.sum(-1) <= SPARSE.topk + SPARSE.window_size // 64).all()
    assert (result.reads[result.forced[:, None].repeat(layers, 1)] == 1).all(), "forced blocks are always read"


def test_the_page_is_whole_escaped_and_says_what_it_shows(bundle):
    with Engine(bundle, context=2048, attention="sparse") as engine:
        page = as_html(trace(engine, [{"role": "user", "content": DOCUMENT}], max_tokens=3))
    assert NOTE in page and "not attribution" in page
    assert "<b>" not in page and "&lt;b&gt;lamp &amp; key" in page
    assert page.count("<tr>") == 2 and "http" not in page


def test_a_prompt_that_ran_dense_is_refused(bundle):
    with Engine(bundle, context=2048) as engine, pytest.raises(EngineError, match="384 tokens or more"):
        trace(engine, [{"role": "user", "content": "hi"}], max_tokens=3)


def test_the_command_writes_the_page(bundle, tmp_path):
    (tmp_path / "question.txt").write_text(DOCUMENT)
    command = ["trace", str(bundle), "--prompt-file", str(tmp_path / "question.txt"), "--context", "2048"]
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, [*command, "--max-tokens", "3", "-o", str(out)])
    assert result.exit_code == 0 and f"wrote {out}" in result.output
    assert out.read_text().startswith("<!doctype html>")
    failed = CliRunner().invoke(main, [*command, "--max-tokens", "3", "-o", str(tmp_path / "no" / "page.html")])
    assert failed.exit_code == 1 and "can't be written" in failed.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "question.txt"]


def test_a_chat_shows_the_blocks_it_chose(bundle):
    command = ["chat", str(bundle), "--prompt", DOCUMENT, "--context", "2048", "--temperature", "0", "--max-tokens", "4"]
    shown = CliRunner().invoke(main, [*command, "--show-blocks"])
    assert shown.exit_code == 0 and "read" in shown.stderr and "times: " in shown.stderr
    short = CliRunner().invoke(main, ["chat", str(bundle), "--prompt", "hi", "--max-tokens", "4", "--show-blocks"])
    assert "dense attention: every block was read" in short.stderr
