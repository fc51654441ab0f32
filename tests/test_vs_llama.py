from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapes
import sides
import vs_llama

from minicpm_mlc.bench.decode import Stopwatch
from minicpm_mlc.bench.roofline import Limits
from minicpm_mlc.bench.speed_report import SpeedRow
from minicpm_mlc.compile.model.registry import read_config_folder

COMPARISON = vs_llama.Comparison(
    "M",
    "some cpu",
    Limits(2, 40e9, 500e9, 2000e9),
    0.98,
    3.25,
    "python bench/vs_llama.py",
    {
        "minicpm-mlc": [
            SpeedRow("prefill", 0, 8, (50.0,)),
            SpeedRow("decode", 0, 8, (10.0, 30.0, 20.0), 20.0),
        ],
        "llama.cpp": [
            SpeedRow("prefill", 0, 8, (100.0,)),
            SpeedRow("decode", 0, 8, (10.0, 40.0, 90.0), 10.0),
        ],
    },
)


class CountsCalls:
    """A model that notes the process it runs in and how it was called."""

    def __init__(self, note: str):
        self.note = Path(note)

    def prefill(self, token_ids):
        self.note.write_text(f"{os.getpid()} {len(token_ids)}")

    def decode(self, token_id):
        pass

    def truncate(self, length):
        pass


def counting(note: str) -> Stopwatch:
    return Stopwatch(CountsCalls(note), 100)


def test_a_remote_side_runs_and_times_itself_in_another_process(tmp_path):
    side = sides.Remote(counting, str(tmp_path / "note"))
    side.fill(5)
    pid, tokens = (tmp_path / "note").read_text().split()
    assert int(pid) != os.getpid() and tokens == "5"
    assert 0 < side.prefill_seconds(7) < 60
    assert (tmp_path / "note").read_text().split()[1] == "7"
    assert 0 < side.decode_seconds(3) < 60


def test_a_side_that_fails_ends_the_run_with_a_sentence():
    side = sides.Remote(counting)  # its argument is missing
    with pytest.raises(SystemExit, match="one side ended early"):
        side.fill(1)


class Said:
    """A side whose logits are known."""

    def __init__(self, logits):
        self.said = logits

    def logits(self, tokens):
        return self.said


def test_sides_that_compute_different_models_are_not_compared():
    assert sides.agreement(Said([1.0, 2.0, 4.0]), Said([1.1, 2.0, 3.9])) > 0.99
    with pytest.raises(SystemExit, match="don't compute the same model"):
        sides.agreement(Said([1.0, 2.0, 4.0]), Said([4.0, 1.0, 2.0]))


def test_comparison_shows_medians_their_ratio_and_both_bandwidths():
    prefill, decode = (line.split() for line in COMPARISON.plain().splitlines()[3:])
    assert prefill == ["prefill", "0", "8", "50.0", "100.0", "0.50x"]
    assert decode == [
        "decode",
        "0",
        "8",
        "20.0",
        "40.0",
        "0.50x",
        "20.0",
        "=",
        "50%",
        "10.0",
        "=",
        "25%",
    ]


def test_comparison_says_what_was_run():
    markdown = COMPARISON.markdown()
    assert (
        "some cpu, 2 threads: memory reads 40.0 GB/s, 500 GFLOP/s float32, 2000 GOP/s int8"
        in markdown
    )
    assert "correlate 0.980" in markdown and "Load average before the run: 3.2" in markdown
    assert "`python bench/vs_llama.py`" in markdown
    assert json.loads(COMPARISON.json())["sides"]["llama.cpp"][1]["samples"] == [10.0, 40.0, 90.0]


def test_a_files_comparison_tells_both_perplexities():
    told = {"minicpm-mlc": 12.3456, "llama.cpp": 12.4}
    head = replace(COMPARISON, weights="weights of m.gguf", perplexity=told).head()
    assert head.startswith("M, weights of m.gguf; some cpu")
    assert "Perplexity: minicpm-mlc 12.346, llama.cpp 12.400. " in head
    assert "random weights" in COMPARISON.head() and "Perplexity" not in COMPARISON.head()


SHAPES = [("MiniCPM4-0.5B", None, True), ("MiniCPM4.1-8B", 4, False), ("MiniCPM5-1B", 1, False)]


@pytest.mark.parametrize(("preset", "layers", "sparse"), SHAPES)
def test_a_shape_reads_back_from_its_config(tmp_path, preset, layers, sparse):
    config = shapes.shape(preset, layers, sparse)
    source = shapes.write_source(config, tmp_path)
    assert read_config_folder(source) == config
    assert layers is None or config.num_layers == layers
    assert (config.sparse is not None) == (sparse or "8B" in preset)


def test_a_shapes_tokenizer_has_the_models_vocabulary_and_takes_any_text():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(shapes.tokenizer_json(2000)))
    assert tokenizer.get_vocab_size() == 2000
    assert (
        tokenizer.decode(tokenizer.encode("abc é").ids, skip_special_tokens=False).replace(" ", "")
        == "abcé"
    )


def one_token(layers: int, row_bytes: int, kind: int = 1) -> bytes:
    """llama.cpp's saved state of a sequence of one token."""
    head = np.array([0xAF143CD8, 0, 1, 1, 0, 1, 0, 0, layers], "<u4").tobytes()
    pool = np.array([(kind, row_bytes)], sides.STATE_POOL).tobytes() + bytes(row_bytes)
    return head + 2 * layers * pool


def test_random_state_keeps_the_form_and_has_a_position_for_every_cell():
    state = bytes(sides.random_state(one_token(2, 8), 3))
    assert np.frombuffer(state, "<u4", 13).tolist() == [
        0xAF143CD8,
        0,
        1,
        3,
        0,
        1,
        0,
        1,
        1,
        0,
        2,
        1,
        0,
    ]
    assert len(state) == 4 * 13 + 8 + 4 * (12 + 3 * 8)
    assert np.frombuffer(state, sides.STATE_POOL, 1, len(state) - 36)[0].tolist() == (1, 8)


def test_random_q8_0_numbers_are_numbers():
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    state = bytes(sides.random_state(one_token(1, 34, sides.Q8_0), 5))
    keys = np.frombuffer(state, np.uint8, 5 * 34, len(state) - 5 * 34).reshape(5, 34)
    numbers = dequantize(keys, GGMLQuantizationType.Q8_0)
    assert numbers.shape == (5, 32) and 0.5 < numbers.std() < 1.5


def test_every_other_side_has_to_agree():
    near, far = Said([1.1, 2.0, 3.9]), Said([4.0, 1.0, 2.0])
    with pytest.raises(SystemExit, match="correlate"):
        sides.agreement(Said([1.0, 2.0, 4.0]), near, far)


def test_a_state_of_another_form_is_refused():
    with pytest.raises(SystemExit, match="without --random-cache"):
        sides.random_state(one_token(2, 8) + b"more", 3)
