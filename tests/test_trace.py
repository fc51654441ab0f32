"""What an answer read: recorded token by token, and said after a chat."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import SPARSE
from click.testing import CliRunner

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError, MiniCPMError
from minicpm_mlc.cli import main
from minicpm_mlc.inspect.trace import count_reads, trace
from minicpm_mlc.runtime_py.chat.block_lines import block_lines

DOCUMENT = "<b>lamp & key</b> of Dee " * 40
QUESTION = [{"role": "user", "content": DOCUMENT}]


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return tiny_bundle("MiniCPM4.1-8B", sparse=SPARSE).path


def prompt_of(engine: Engine, question: list[dict[str, str]]) -> list[int]:
    return engine.template.prompt(engine.tokenizer.raw, question, None).ids


def question_of(engine: Engine, tokens: int) -> list[dict[str, str]]:
    """One whose prompt has so many tokens."""
    lengths = [
        tokens - len(prompt_of(engine, [{"role": "user", "content": "a" * n}])) + n
        for n in (1, tokens)
    ]
    assert lengths[0] == lengths[1], "a token a letter"
    return [{"role": "user", "content": "a" * lengths[0]}]


def test_reads_are_counted_per_layer_and_block():
    layers = [np.array([[0, 2, 9], [2, 3, -1]]), np.array([[1, 4, -1], [1, -1, -1]])]
    assert count_reads(layers, 4).tolist() == [[0.5, 0, 1, 0.5], [0, 1, 0, 0]]
    assert layers[0].tolist() == [[0, 2, 9], [2, 3, -1]]


def test_every_token_of_the_answer_has_the_reads_of_the_row_that_chose_it(bundle):
    with Engine(bundle, context=2048, attention="sparse") as engine:
        result = trace(engine, QUESTION, max_tokens=5)
        prompt = prompt_of(engine, QUESTION)
        tokens = engine.cached_tokens[len(prompt) :]
        engine.truncate(0)
        engine.prefill(prompt[:-1])
        for row, token in enumerate([prompt[-1], *tokens]):
            engine.decode(token)
            np.testing.assert_array_equal(
                result.reads[row], count_reads(engine.selected, len(result.blocks))
            )
        assert "".join(result.answer) == engine.chat(
            QUESTION, max_tokens=5, temperature=0, speculate="off"
        )
    steps, layers, blocks = result.reads.shape
    assert result.dense == 0 and steps == len(result.answer) == 5
    assert (layers, blocks) == (2, -(-len(prompt) // 64))
    assert (result.reads.sum(-1) <= SPARSE.topk + SPARSE.window_size // 64).all()
    assert (result.reads[result.forced[:, None].repeat(layers, 1)] == 1).all(), (
        "forced blocks are always read"
    )
    assert not result.forced.all(), "a row must leave a block out"


def test_spaces_at_the_borders_of_blocks_survive(bundle):
    with Engine(bundle, context=2048) as engine:
        result = trace(engine, QUESTION, max_tokens=1)
    assert DOCUMENT.strip() in "".join(result.blocks) and len(result.blocks) > 10


def test_an_answer_that_shifts_gears_has_reads_from_there_on(bundle):
    with Engine(bundle, context=2048) as engine:
        result = trace(engine, question_of(engine, SPARSE.dense_len - 2), max_tokens=6)
    assert (result.dense, len(result.answer), len(result.reads)) == (2, 6, 4)


def test_what_can_not_be_traced_is_refused_for_what_it_is(bundle, tiny_bundle, monkeypatch):
    hi = [{"role": "user", "content": "hi"}]
    with Engine(bundle, context=2048) as engine:
        with pytest.raises(EngineError, match="384 tokens or more, or --attention sparse"):
            trace(engine, hi, max_tokens=3)
        with pytest.raises(MiniCPMError, match="max_tokens is 0"):
            trace(engine, QUESTION, max_tokens=0)
        engine.eos_token_ids = frozenset(range(engine.vocab_size))
        with pytest.raises(EngineError, match="ended before its first token"):
            trace(engine, QUESTION, max_tokens=3)
    with (
        Engine(bundle, context=2048, attention="dense") as engine,
        pytest.raises(EngineError, match="leave it out"),
    ):
        trace(engine, QUESTION, max_tokens=3)
    with (
        Engine(tiny_bundle("MiniCPM5-1B").path) as engine,
        pytest.raises(EngineError, match="no sparse attention"),
    ):
        trace(engine, QUESTION, max_tokens=3)


def test_a_trace_may_fill_the_context_to_its_last_token(bundle):
    with Engine(bundle, context=640, attention="sparse") as engine:
        assert len(trace(engine, question_of(engine, 639), max_tokens=9).answer) == 2
        assert len(engine.cached_tokens) == 640


def test_the_command_writes_the_page(bundle, tmp_path):
    (tmp_path / "question.txt").write_text(DOCUMENT)
    command = [
        "trace",
        str(bundle),
        "--prompt-file",
        str(tmp_path / "question.txt"),
        "--context",
        "2048",
    ]
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, [*command, "--max-tokens", "3", "-o", str(out)])
    assert result.exit_code == 0 and f"wrote {out}: 3 answer tokens" in result.output
    assert out.read_text().startswith("<!doctype html>")
    failed = CliRunner().invoke(
        main, [*command, "--max-tokens", "3", "-o", str(tmp_path / "no" / "page.html")]
    )
    assert failed.exit_code == 1 and "can't be written" in failed.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "question.txt"]


def test_a_page_without_a_place_and_a_text_in_another_encoding_are_told(tmp_path):
    (tmp_path / "question.txt").write_bytes(b"caf\xe9")
    command = ["trace", str(tmp_path / "B"), "--prompt-file", str(tmp_path / "question.txt"), "-o"]
    nowhere = CliRunner().invoke(main, [*command, str(tmp_path / "no" / "page.html")])
    assert nowhere.exit_code == 1 and "its folder is not there" in nowhere.output
    told = CliRunner().invoke(main, [*command, str(tmp_path / "page.html")])
    assert "is not UTF-8 text: 1 characters could not be read" in told.output
    assert "B is not there; give a bundle's folder" in told.output


def test_reads_by_score_are_counted_and_forced_ones_are_not(bundle):
    """Blocks that slid out of the local window while the answer grew were read, and not chosen."""
    ids = np.random.default_rng(0).integers(3, 320, 500).tolist()
    with Engine(bundle, context=1024, attention="sparse") as engine:
        engine.generate(ids, max_tokens=140, temperature=0, speculate="off")
        tokens, counted = engine.cached_tokens, engine.block_reads.copy()
        expected = np.zeros_like(counted)
        engine.truncate(len(ids))
        for position in range(len(ids), len(tokens)):
            engine.decode(tokens[position])
            free = ~engine.gears.forced(position, len(expected))
            for block in np.concatenate(engine.selected).ravel():
                expected[block] += free[block]
        engine.generate(ids, max_tokens=140, temperature=0, speculate="ngram")
        speculated = engine.block_reads.copy()
    np.testing.assert_array_equal(counted, expected)
    assert (
        counted.sum() == (len(tokens) - len(ids)) * 2 * 2 * 2
    )  # layers, KV heads, blocks left to the scores
    np.testing.assert_array_equal(speculated, expected)


def test_a_chat_shows_the_blocks_it_chose(bundle):
    command = [
        "chat",
        str(bundle),
        "--prompt",
        DOCUMENT,
        "--context",
        "2048",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    ]
    shown = CliRunner().invoke(main, [*command, "--show-blocks"])
    assert shown.exit_code == 0 and "read" in shown.stderr and "times: " in shown.stderr
    short = CliRunner().invoke(
        main, ["chat", str(bundle), "--prompt", "hi", "--max-tokens", "4", "--show-blocks"]
    )
    assert "dense attention: every block was read" in short.stderr


def test_a_full_context_shows_its_blocks(bundle):
    with Engine(bundle, context=640, attention="sparse") as engine:
        engine.chat(question_of(engine, 630), temperature=0)
        assert engine.stats.finish_reason == "context" and engine.stats.context_used == 640
        assert all("times: " in line for line in block_lines(engine))


def test_a_sparse_answer_that_chose_nothing_says_why(bundle):
    with Engine(bundle, context=1024, attention="sparse") as engine:
        engine.chat(question_of(engine, 630), max_tokens=1)
        assert block_lines(engine) == [
            "sparse attention: an answer's first token comes from the prompt's pass, whose "
            "choices are not kept"
        ]
        engine.chat(question_of(engine, 300), max_tokens=3)
        assert block_lines(engine) == [
            "sparse attention: nothing was left to the scores; 5 of 5 blocks were read"
        ]
