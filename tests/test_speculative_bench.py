"""bench --speculate: its rows and decisions, prompts from a file, records written and replayed, and
what it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import NARROW
from fake_library import EOS, FIRST_WORD, TOKENIZER, FakeLibrary, use_fake_library

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bench import watch
from minicpm_mlc.bench.decode import BenchError
from minicpm_mlc.bench.replay import Record
from minicpm_mlc.bench.speculation import SpeculationReport, bench_speculation
from minicpm_mlc.bench.tasks import OWN, read_prompts
from minicpm_mlc.bench.watch import Watch
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.speculative.draft_bundle import ModelDrafter
from minicpm_mlc.runtime_py.speculative.ngram import NgramDrafter

ROWS = ["copied", "copied with changes", "nothing to guess"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose model says five words in turn, which prompt lookup guesses."""
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "add_bos_token": True})
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, EOS], "do_sample": False})
    )
    library = FakeLibrary(lambda history: FIRST_WORD + len(history) % 5)
    use_fake_library(monkeypatch, lambda: library, max_context=800)
    return tmp_path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("hello world\n\nhello hello hello\n")
    return tmp_path / "prompts.txt"


def bench(bundle: Path, speculate: str = "ngram", **options: Any) -> SpeculationReport:
    return bench_speculation(
        bundle, speculate, **{"new_tokens": 40, "repeats": 1, "threads": 1} | options
    )


def test_every_kind_of_prompt_is_a_row_with_its_own_decision(bundle: Path, prompts: Path) -> None:
    report = bench(bundle, "auto", prompt_file=prompts, repeats=2)
    assert [row.prompts for row in report.rows] == [*ROWS, OWN]
    assert [(row.count, row.tokens, row.changed) for row in report.rows] == [(1, 40, 0)] * 3 + [
        (2, 80, 0)
    ]
    assert all(len(row.plain) == len(row.speculated) == 2 for row in report.rows)
    for text, mark in ((report.plain(), ""), (report.markdown(), "- ")):
        lines = text.splitlines()[-4:]
        assert [line.partition(": speculation ")[0] for line in lines] == [
            mark + name for name in (*ROWS, OWN)
        ]
        decisions = [line.partition(": speculation ")[2] for line in lines]
        assert decisions == [row.stats.decision for row in report.rows] and all(decisions)


def test_what_is_copied_is_accepted_and_what_nothing_can_guess_is_not(bundle: Path) -> None:
    copied, _, unknown = bench(bundle, tree_size=9).rows
    assert copied.stats.accept_length > 3 > 1.1 > unknown.stats.accept_length
    assert copied.stats.rounds and not bench(bundle, "off").rows[0].stats.rounds


def test_the_json_repeats_the_run_and_has_what_the_table_has(bundle: Path, prompts: Path) -> None:
    report = bench(bundle, prompt_file=prompts, draft_depth=3)
    read = json.loads(report.json())
    assert (
        read["command"] == report.command
        and report.command in report.plain()
        and report.command in report.markdown()
    )
    assert report.command.startswith(
        f"minicpm-mlc bench {bundle} --speculate ngram --prompt-file {prompts} --new-tokens 40"
    )
    assert report.command.endswith("--draft-depth 3")
    for row, stored in zip(report.rows, read["rows"], strict=True):
        assert (
            stored["speed_up"] == row.speed_up and stored["stats"]["decision"] == row.stats.decision
        )
        assert stored["accepted_shares"] == row.stats.accepted_shares


def test_a_record_of_own_answers_is_replayed_with_what_was_accepted(
    bundle: Path, prompts: Path
) -> None:
    path = bundle / "accepted.json"
    recording = bench(bundle, prompt_file=prompts, tree_size=5, record=path)
    record = Record.read(path)
    assert (record.drafter, record.source) == ("ngram", recording.head())
    assert f"{path}: {len(record.trees)} trees recorded" in recording.plain()
    lengths = [len(chain) for chain in record.paths]
    replayed = bench(bundle, replay=path, new_tokens=sum(lengths))
    assert [row.prompts for row in replayed.rows] == ["replayed"]
    assert replayed.rows[0].stats.accept_length == pytest.approx(np.mean(lengths), abs=0.1)
    assert (
        f"acceptance replayed from {path}: {len(record.trees)} trees of {recording.head()}"
        in replayed.plain()
    )


def test_a_record_of_nothing_is_not_written(
    bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NgramDrafter, "draft", lambda *_: None)
    report = bench(bundle, prompt_file=prompts, record=bundle / "r.json")
    assert (
        "r.json was not written: no tree was verified" in report.plain()
        and not (bundle / "r.json").exists()
    )


def test_empty_answers_are_said_to_be_that(
    bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_library(monkeypatch, lambda: FakeLibrary(lambda history: EOS), max_context=800)
    with pytest.raises(BenchError, match="the model's own answers: every answer is empty"):
        bench(bundle, prompt_file=prompts)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"record": "no/r.json", "prompt_file": "p"},
        r"--record no.r\.json: no file can be written there",
    ),
    ({"record": ".", "prompt_file": "p"}, "--record .: no file can be written there"),
    ({"record": "r.json"}, "give their prompts with --prompt-file"),
    (
        {"record": "r.json", "prompt_file": "p", "speculate": "auto"},
        "--record is of one drafter, not of auto",
    ),
    (
        {"replay": "r", "prompt_file": "p", "tree_size": 3},
        "--replay decides .* leave out --prompt-file, --tree-size",
    ),
    ({"replay": "r", "record": "x"}, "leave out --record"),
    ({"replay": "r", "speculate": "eagle"}, "the record is of ngram; give --speculate ngram"),
    ({"speculate": "ngram", "draft_model": "d"}, "--speculate ngram does not use --draft-model"),
    ({"speculate": "off", "tree_size": 4}, "--speculate off does not use --tree-size"),
    ({"new_tokens": 700}, "--new-tokens 700 behind a prompt of 256 tokens: the context holds 800"),
    ({"new_tokens": 0}, "--new-tokens is 0"),
    ({"tree_size": 900}, "tree_size is 900"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_what_can_not_be_measured_is_refused_before_it_is(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(bundle)
    Record("ngram", [[-1, 0]], [[0, 1]]).write("r")
    monkeypatch.setattr(Engine, "steps", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(MiniCPMError, match=message):
        bench(bundle, **options)


def test_a_line_is_a_message_a_text_or_a_conversation(bundle: Path) -> None:
    (bundle / "p.txt").write_text("hello\n5\n")
    (bundle / "p.jsonl").write_text('"hello"\n[{"role": "user", "content": "hello"}]\n')
    with Engine(bundle) as engine:
        plain, five = read_prompts(engine, bundle / "p.txt")
        assert read_prompts(engine, bundle / "p.jsonl") == [plain, plain] and five != plain


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("p.jsonl", b'"hello"\n5\n', "line 2: found 5; expected a text or a list of messages"),
        ("p.jsonl", b'{"role": "user", "content": "x"}\n', "line 1: found {'role'"),
        ("p.jsonl", b"[5]\n", "line 1: message 0: expected a dict"),
        ("p.jsonl", b"[]\n", "line 1: no messages"),
        ("p.jsonl", b"hello\n", "line 1: Expecting value"),
        ("p.jsonl", b"[" * 100_000, "line 1: "),
        ("p.txt", b"\xff\xfe\n", "is not UTF-8 text"),
        ("p.txt", b"\n \n", "has no prompts; give one a line"),
        ("p.txt", None, r"--prompt-file .*p\.txt can't be read: No such file"),
    ],
)
def test_a_file_without_prompts_is_refused_by_its_line(
    bundle: Path, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (bundle / name).write_bytes(data)
    with Engine(bundle) as engine, pytest.raises(BenchError, match=message):
        read_prompts(engine, bundle / name)


def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[..., str]]:
    """Functions that take as many seconds as are asked for, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
    return lambda seconds: lambda *args: (now.__setitem__(0, now[0] + seconds), f"{args}")[1]


def test_only_compiled_functions_are_timed_by_gear_and_in_the_draft_bundle_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taking = ticking(monkeypatch)
    decode, commit, prefill = [taking(1), taking(10)], [taking(100)], [taking(1000)]
    base = watched({"decode": decode, "commit": commit}, decode=taking(5))
    small = watched({"prefill": prefill}, prefill=taking(5))
    model = SimpleNamespace(cache=SimpleNamespace(library=small))
    drafters = {"draft": ModelDrafter(model, 8), "ngram": object()}  # type: ignore[arg-type]
    seen = Watch(SimpleNamespace(library=base, drafters=drafters))  # type: ignore[arg-type]
    assert decode[0](7) == "(7,)" and decode[1]() == commit[0]() == prefill[0]() == "()"
    base.decode()
    small.prefill()
    assert seen.seconds == 1111


def watched(functions: dict[str, Any], **methods: Any) -> Any:
    """A library in this process."""
    return SimpleNamespace(local=SimpleNamespace(functions=functions), **methods)


def test_a_bundles_compiled_functions_are_found(tiny_bundle: Callable[..., Any]) -> None:
    """On the crossing from dense to sparse; on a real library, so that Python's share is neither
    all nor nothing.
    """
    path = tiny_bundle("MiniCPM4.1-8B", "w4", sparse=NARROW).path
    with Engine(path, threads=1) as engine:
        assert engine.library.local
        names = list(engine.library.local.functions)
    assert names == ["prefill", "decode", "verify", "commit"]
    report = bench_speculation(path, "ngram", new_tokens=24, repeats=1, threads=1, tree_size=9)
    assert all(row.python is not None and 0 < row.python < 1 for row in report.rows)
    assert report.rows[0].stats.accept_length > 2


def test_where_functions_do_not_wait_pythons_share_is_left_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary(lambda history: FIRST_WORD + len(history) % 5)
    use_fake_library(monkeypatch, lambda: library, max_context=800, target={"device": "cuda"})
    monkeypatch.setattr(LocalMachine, "free_memory", lambda machine, device: 1 << 30)
    report = bench(bundle)
    assert [row.python for row in report.rows] == [None] * 3
    assert "%  " in report.plain() and not any(
        "None" in line for line in report.plain().splitlines()
    )
