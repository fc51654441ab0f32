"""native/engine beside the Python runtime, on one bundle: prompt ids, greedy tokens, seeded texts,
stop strings, thinking, refusals.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_process import ANSWER, THINKING, EngineProcess, Refused, built

from minicpm_mlc import Engine
from minicpm_mlc.runtime_py.chat.repl import answer_once

QUESTIONS = [
    "What is 4827 + 356?",
    "What does minicpm-mlc do? /no_think",
    "Remember: the code of the red door is 7.",
    "你好 😀 <|im_end|> ",
    "  spaces \n around  ",
]
CONTEXT = 1024


@pytest.fixture(scope="module")
def native(demo_bundle: Path) -> Iterator[EngineProcess]:
    with EngineProcess(demo_bundle, context=CONTEXT) as process:
        yield process


@pytest.fixture(scope="module")
def python(demo_bundle: Path) -> Iterator[Engine]:
    with Engine(demo_bundle, context=CONTEXT) as engine:
        yield engine


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts(pieces: list[tuple[int, str]]) -> dict[int, str]:
    said = {THINKING: "", ANSWER: ""}
    for kind, text in pieces:
        said[kind] += text
    return said


def python_texts(engine: Engine, messages: list[dict[str, str]], **options: Any) -> dict[int, str]:
    kinds = {"thinking": THINKING, "answer": ANSWER}
    events = engine.chat_events(messages, speculate="off", **options)
    return texts([(kinds[kind], text) for kind, text in events])


CONVERSATIONS = [
    *map(user, QUESTIONS),
    [{"role": "system", "content": "Be brief."}, *user("Hello")],
    [*user("Hi"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHo"}, *user("And?")],
    [*user("Hi"), {"role": "assistant", "content": "hm\n</think>\n\nHo"}, *user("And? /think")],
    [*user("1"), {"role": "tool", "content": "</think> is a tag"}, *user("")],
]


@pytest.mark.parametrize("think", [None, True, False])
def test_the_same_prompt_ids(native: EngineProcess, python: Engine, think: bool | None) -> None:
    options = {} if think is None else {"think": think}
    for messages in CONVERSATIONS:
        expected = python.template.prompt(python.tokenizer.raw, messages, think).ids
        assert native.prompt(messages, **options) == expected, messages
    for text in QUESTIONS:
        assert native.tokenize(text) == python.tokenize(text)


def test_the_same_greedy_answers(native: EngineProcess, python: Engine) -> None:
    for messages in CONVERSATIONS:
        options = {"temperature": 0, "max_tokens": 48}
        expected = python_texts(python, messages, **options)
        assert texts(native.chat(messages, **options)) == expected, messages
        stats = native.stats()
        assert stats["finish_reason"] == python.stats.finish_reason
        assert stats["prompt_tokens"] == python.stats.prompt_tokens
        assert stats["generated_tokens"] == python.stats.generated_tokens


def test_dense_sparse_and_shifting(native: EngineProcess, python: Engine) -> None:
    dense_len = python.manifest.dense_len
    assert dense_len
    for length in (20, dense_len - 5, dense_len + 70):
        ids = [4 + i % 1000 for i in range(length)]
        expected = list(_python_tokens(python, ids, 24))
        assert native.tokens(ids, temperature=0, max_tokens=24) == expected, length
        gear = "sparse" if python.gears.sparse(length + len(expected) - 1) else "dense"
        assert native.stats()["attention"] == gear


def _python_tokens(engine: Engine, ids: list[int], most: int) -> Iterator[int]:
    with engine.steps(ids, speculate="off") as (steps, logits):
        for _ in range(most):
            token = int(logits.argmax())
            if token in engine.eos_token_ids:
                return
            yield token
            logits = steps.next(token)


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "top_p": 1.0},
    {"temperature": 0.9, "top_k": 20},
    {"temperature": 1.2, "min_p": 0.05},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_same_text_for_a_seed(
    native: EngineProcess, python: Engine, sampling: dict[str, Any]
) -> None:
    for seed in (0, 7, 2**40 + 1):
        options = {"max_tokens": 40, "seed": seed, **sampling}
        expected = python_texts(python, user("Tell me about pages."), **options)
        assert texts(native.chat(user("Tell me about pages."), **options)) == expected, seed


def test_stop_strings_and_think_budgets(native: EngineProcess, python: Engine) -> None:
    asked = user("What is 4827 + 356?")
    for options in (
        {"stop": "5"},
        {"stop": ["<|im_end|>", "zzz"]},
        {"max_think_tokens": 5},
        {"max_think_tokens": 0, "think": True},
        {"stop": "e", "think": False},
    ):
        both = {"temperature": 0, "max_tokens": 64, **options}
        assert texts(native.chat(asked, **both)) == python_texts(python, asked, **both), options
    text = python.generate("Pages are", temperature=0, max_tokens=30, stop="s", speculate="off")
    assert native.generate("Pages are", temperature=0, max_tokens=30, stop="s") == text


def test_what_was_computed_is_kept(native: EngineProcess) -> None:
    ids = list(range(10, 210))
    first = native.tokens(ids, temperature=0, max_tokens=4)
    again = native.tokens(ids, temperature=0, max_tokens=4)
    assert first == again
    assert native.stats()["cached_tokens"] == len(ids) - 1
    native.truncate(100)
    assert native.tokens(ids, temperature=0, max_tokens=4) == first
    assert native.stats()["cached_tokens"] == 100


def test_an_answer_can_be_ended(native: EngineProcess) -> None:
    whole = native.chat(user("Tell me about pages."), temperature=0, max_tokens=40)
    for cancel in (False, True):
        pieces = native.chat(
            user("Tell me about pages."), most=2, cancel=cancel, temperature=0, max_tokens=40
        )
        assert pieces == whole[: len(pieces)] and 2 <= len(pieces) < len(whole)
        assert native.stats()["finish_reason"] == "cancelled"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperatur": 1}, "no option"),
        ({"temperature": -1}, r"expected a number in \[0, 100\]"),
        ({"top_p": 0}, r"\(0, 1\]"),
        ({"max_tokens": 0}, "1 or more"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"seed": 1.5}, "whole number"),
    ],
)
def test_options_that_are_refused(
    native: EngineProcess, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(Refused, match=says):
        native.chat(user("Hi"), **options)


def test_prompts_that_are_refused(native: EngineProcess) -> None:
    for ids, says in (([], "empty"), ([1 << 20], "vocabulary"), ([5] * 1025, "context holds 1024")):
        with pytest.raises(Refused, match=says):
            native.tokens(ids)
    for messages in ([], [{"role": "user"}], [{"role": "robot", "content": "x"}]):
        with pytest.raises(Refused):
            native.chat(messages)
    assert native.tokens([5], max_tokens=1, temperature=0)  # it goes on


def test_a_session_goes_on_in_another_process_and_in_python(
    demo_bundle: Path, native: EngineProcess, python: Engine, tmp_path: Path
) -> None:
    ids = list(range(10, 700))  # sparse, and the last page not full
    first = native.tokens(ids, temperature=0, max_tokens=9)
    native.save(tmp_path / "state")
    cached = native.stats()["context_used"]
    longer = [*ids, *first, 77]
    expected = native.tokens(longer, temperature=0, max_tokens=9)
    options = {"temperature": 0, "max_tokens": 9}
    with EngineProcess(demo_bundle, context=CONTEXT, resume=str(tmp_path / "state")) as other:
        assert other.tokens(longer, **options) == expected
        assert other.stats()["cached_tokens"] == cached
    with Engine(demo_bundle, context=CONTEXT, resume=tmp_path / "state") as engine:
        assert engine.cached_tokens == longer[:cached]
        assert list(_python_tokens(engine, longer, 9)) == expected
        engine.save(tmp_path / "python")
    with EngineProcess(demo_bundle, context=CONTEXT, resume=str(tmp_path / "python")) as other:
        assert other.tokens(longer, **options) == expected
        assert other.stats()["cached_tokens"] >= cached


def test_damaged_and_foreign_sessions_are_refused(
    demo_bundle: Path, native: EngineProcess, tmp_path: Path
) -> None:
    native.tokens(list(range(10, 150)), temperature=0, max_tokens=2)
    path = tmp_path / "state"
    native.save(path)
    whole = path.read_bytes()
    for at in (3, 40, len(whole) // 2, len(whole) - 60, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Refused, match=r"without .resume"):
            EngineProcess(demo_bundle, context=256, resume=str(path))
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Refused):
            EngineProcess(demo_bundle, context=256, resume=str(path))
    path.write_bytes(whole)
    with pytest.raises(Refused, match=r"larger .context"):
        EngineProcess(demo_bundle, context=64, resume=str(path))
    with pytest.raises(Refused, match="can't be written"):
        native.save(tmp_path / "missing" / "state")
    assert not list(tmp_path.glob("*.partial*"))


def damaged(bundle: Path, folder: Path, name: str) -> Path:
    copy = Path(shutil.copytree(bundle, folder / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    return copy


@pytest.mark.parametrize("name", ["params_shard_0.bin", "model.so", "tokenizer.json"])
def test_damaged_bundles_are_refused(demo_bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=r"SHA-256.*minicpm-mlc compile"):
        EngineProcess(damaged(demo_bundle, tmp_path, name))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tvm": "0.26.0"}, "compiled with apache-tvm 0.26.0"),
        ({"abi": 1}, "ABI 1"),
        ({"max_context": 1 << 30}, "not what .*model.so was compiled for"),
        ({"target": {"device": "vulkan"}}, "lacks triple"),
    ],
)
def test_misfits_are_refused(
    demo_bundle: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(Refused, match=says):
        EngineProcess(copy, context=64)
    with pytest.raises(Refused, match="expected 0000"):
        EngineProcess(demo_bundle, sha256="0" * 64)


def test_minicpm_run_prints_what_chat_prints(
    demo_bundle: Path, python: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {"temperature": 0, "max_tokens": 64}
    answer_once(python, "What is 4827 + 356?", system="Be brief.", options=asked)
    expected = capfd.readouterr()
    command = [str(built()), str(demo_bundle), "--system=Be brief.", "--temperature", "0"]
    command += ["--max-tokens", "64", "--context", "512"]
    result = run([*command, "--prompt", "356?"], "What is 4827 +")
    piped = run([*command], "What is 4827 + 356?")
    assert (piped.returncode, piped.stdout) == (0, expected.out)
    assert piped.stderr.strip() == expected.err.strip()
    assert result.returncode == 0 and result.stdout
    wrong = run([*command, "--nonsense"], "")
    assert wrong.returncode == 1 and wrong.stderr == (
        "Error: there is no option --nonsense; --help lists them\n"
    )


def run(command: list[str], typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False)
