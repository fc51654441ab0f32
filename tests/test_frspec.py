"""FR-Spec lists: read without running a pickle, refused by name, built from text."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint, write_tokenizer
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from minicpm_mlc.base.errors import CheckpointError, CompileError, MiniCPMError
from minicpm_mlc.bench import draft_speed
from minicpm_mlc.cli import main
from minicpm_mlc.compile.frspec import read_list, write_list
from minicpm_mlc.inspect.frspec_build import (
    BATCH,
    Frequencies,
    as_text,
    build_list,
    count_tokens,
    read_lines,
)

VOCAB = 1000
IDS = [7, 3, 999, 0, 42]


def torch_save(path: Path, pickled: bytes, numbers: bytes | None = None) -> Path:
    """A file as torch.save writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("freq/data.pkl", pickled)
        if numbers is not None:
            archive.writestr("freq/data/0", numbers)
        archive.writestr("freq/version", "3\n")
    return path


class Evil:
    """A pickle of it makes a folder."""

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    write_list(tmp_path / f"freq{suffix}", np.array(IDS))
    got = read_list(tmp_path / f"freq{suffix}", VOCAB)
    assert got.dtype == np.int32 and got.tolist() == IDS


def test_a_published_list_is_read(tmp_path):
    path = torch_save(tmp_path / "freq_5.pt", pickle.dumps(IDS, protocol=2))
    assert read_list(path, VOCAB).tolist() == IDS


def test_lists_and_tensors_that_torch_saved_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(IDS, tmp_path / "list.pt")
    torch.save(torch.tensor([1, *IDS])[1:], tmp_path / "tensor.pt")
    assert read_list(tmp_path / "list.pt", VOCAB).tolist() == IDS
    assert read_list(tmp_path / "tensor.pt", VOCAB).tolist() == IDS


@pytest.mark.parametrize("value", [Evil(), [Evil()], {"a": Evil()}, [1, eval], Path("x")])
def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    path = torch_save(tmp_path / "freq.pt", pickle.dumps(value, protocol=2))
    with pytest.raises(
        CheckpointError, match=r"freq\.pt holds .*, not just numbers; it was not loaded"
    ):
        read_list(path, VOCAB)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ([5, 5], "token 5 is listed 2 times"),
        ([1, VOCAB], "entry 1 is 1000, expected a token id below 1000"),
        ([-1], "entry 0 is -1"),
        ([1.0], "entry 0 is 1.0"),
        ([True], "entry 0 is True"),
        (["1"], "entry 0 is '1'"),
        ([10**30], "entry 0 is 1000"),
        ([], "the list is empty"),
        ({"1": 2}, "no list"),
    ],
)
def test_lists_of_other_things_are_refused_by_name(tmp_path, values, message):
    (tmp_path / "freq.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        read_list(tmp_path / "freq.json", VOCAB)


@pytest.mark.parametrize(
    "name, data",
    [("a.json", b"{"), ("a.npy", b"x"), ("a.pt", b"x"), ("a.txt", b"1"), ("b.json", None)],
)
def test_damaged_and_missing_files_are_refused(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        read_list(tmp_path / name, VOCAB)


def test_an_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"a\.npy"):
        read_list(tmp_path / "a.npy", VOCAB)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise_anything_but_an_error_to_read(tmp_path_factory, data, zipped):
    path = tmp_path_factory.mktemp("any") / "freq.pt"
    if zipped:
        torch_save(path, data, b"")
    else:
        path.write_bytes(data)
    try:
        read_list(path, VOCAB)
    except MiniCPMError as error:
        assert "freq.pt" in str(error)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_damaged_list_is_read_or_refused(tmp_path_factory, place, value):
    path = torch_save(tmp_path_factory.mktemp("any") / "freq.pt", pickle.dumps(IDS, protocol=2))
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        read_list(path, VOCAB)
    except MiniCPMError as error:
        assert "freq.pt" in str(error)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, tiny_config("MiniCPM5-1B", num_layers=1))
    return folder


def test_every_line_is_counted_once_however_many_there_are(model):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    lines = [(f"line {'ab' * (i % 7)} {i}", i % 2 == 1) for i in range(2 * (2 * BATCH + 5))]
    found = count_tokens(tokenizer, 323, iter(lines))
    for counts, kind in ((found.counted, False), (found.held_out, True)):
        ids = [
            i
            for text, held_out in lines
            if held_out is kind
            for i in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        assert dict(Counter(ids)) == {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def test_a_list_has_the_commonest_tokens_and_the_ends(tmp_path, model):
    (tmp_path / "text.txt").write_text("aaaa bbb cc d\n" * 30)
    report = build_list([tmp_path], 6, model, tmp_path / "freq.json")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    commonest = {tokenizer.token_to_id(piece) for piece in ("▁", "a", "b", "c")}
    ids = read_list(tmp_path / "freq.json", tiny_config("MiniCPM5-1B").vocab_size).tolist()
    assert set(ids[:4]) == commonest and ids[4:] == [2, 321]
    # each line: 4 word marks, 4 a, 3 b, 2 c and a d, of which only d is not in the list
    assert report["coverage"] == [{"size": 6, "coverage": pytest.approx(13 / 14), "head": 6 / 323}]
    assert (report["tokens"], report["held_out_tokens"]) == (27 * 14, 3 * 14)


def test_whole_files_are_held_out_where_there_are_enough(tmp_path, model):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("zzz\n" if i == 9 else "aaa\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    report = build_list([tmp_path], 4, model, tmp_path / "freq.npy")
    assert (
        report["held_out_tokens"] == 4 and report["coverage"][0]["coverage"] == 0.25
    )  # the word mark


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ("aaa \xe9 aaaaaaaaaaaaa\n".encode("latin-1"), True),
        (("你好" * 9).encode("gbk"), False),
        ("a\n".encode("utf-16"), True),
        (b"a\0b", False),
    ],
)
def test_text_in_another_encoding_counts_where_most_of_it_can_be_read(
    tmp_path: Path, data: bytes, tokens: bool
) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    assert bool(list(read_lines([tmp_path]))) == tokens


def build(tmp_path: Path, text: str, source: Path, *more: str) -> Result:
    (tmp_path / "text.txt").write_text(text)
    options = [
        "--text",
        str(tmp_path / "text.txt"),
        "--size",
        "6",
        "--tokenizer",
        str(source),
        "-o",
        str(tmp_path / "f.json"),
    ]
    return CliRunner().invoke(main, ["frspec", "build", *options, *more])


def test_the_command_prints_coverage_and_the_speed_measured_here(tmp_path, model):
    printed = build(tmp_path, "aaaa bbb cc d\n" * 30, model)
    assert (
        printed.exit_code == 0
        and "6 tokens cover  92.86%" in printed.stdout
        and "never" not in printed.stdout
    )
    assert re.search(
        r"the draft head takes \S+ ms instead of \S+ \(\S+x\), a whole draft level \S+ ms",
        printed.stdout,
    )
    assert "timing..." in printed.stderr


def test_the_json_holds_times_and_ratios(tmp_path, model, monkeypatch):
    monkeypatch.setattr(draft_speed, "compiled", lambda kernel: lambda *_: None)
    monkeypatch.setattr(draft_speed, "medians", lambda calls, repeats: [0.008, 0.002, 0.010, 0.004])
    report = json.loads(build(tmp_path, "aaaa bbb cc d\n" * 30, model, "--json").stdout)
    assert report["coverage"][0]["size"] == 6
    assert report["speed"]["head"] == {"whole_ms": 8.0, "list_ms": 2.0, "ratio": 4.0}
    assert report["speed"]["level"] == {"whole_ms": 10.0, "list_ms": 4.0, "ratio": 2.5}
    assert report["speed"]["scheme"] == "w4a" and report["speed"]["threads"] >= 1


def test_text_too_short_to_hold_any_out_and_tokens_it_lacks_are_said(tmp_path, model):
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    printed = build(tmp_path, "ab\n", tmp_path)
    assert "nothing was held out" in printed.stdout and "cover " not in printed.stdout
    report = build_list([tmp_path / "text.txt"], 7, model, tmp_path / "f.json")
    assert report["coverage"] == [{"size": 7, "coverage": None, "head": 7 / 323}]
    assert report["never_seen"] == 2  # of five places beside the two ends, for three tokens
    assert "2 of the 7 tokens are never in this text" in as_text(report | {"speed": None})


def test_ends_that_were_counted_are_kept_beside_those_that_were_not():
    counts = np.array([5, 4, 0, 0, 3, 0])
    assert Frequencies(counts, counts).ranked(4, [1, 5]).tolist() == [0, 4, 1, 5]
    assert Frequencies(counts, counts).ranked(4, [3, 5]).tolist() == [
        0,
        1,
        3,
        5,
    ]  # 3 is among the first six by its id


def test_a_tokenizer_alone_gives_a_list_without_a_speed(tmp_path, model):
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    printed = build(tmp_path, "ab\n" * 10, tmp_path)
    assert (
        printed.exit_code == 0
        and "was not measured" in printed.stdout
        and "checkpoint or a bundle" in printed.stdout
    )
    assert {2, 321} <= set(
        read_list(tmp_path / "f.json", VOCAB).tolist()
    )  # the ends are special tokens
    assert json.loads(build(tmp_path, "ab\n" * 10, tmp_path, "--json").stdout)["speed"] is None


def test_a_missing_tokenizer_is_told_with_what_to_give(tmp_path):
    refused = CliRunner().invoke(main, ["frspec", "build", "--text", str(tmp_path)])
    assert refused.exit_code == 2 and "Give the checkpoint or bundle" in refused.stderr


@pytest.mark.parametrize(
    "damage, message", [(b"{", r"tokenizer\.json is not JSON"), (None, "ids beyond vocab_size 323")]
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, model, damage, message):
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B", num_layers=1))
    if damage is None:
        write_tokenizer(tmp_path / "model", 400)
    else:
        (tmp_path / "model" / "tokenizer.json").write_bytes(damage)
    with pytest.raises(CompileError, match=message):
        build_list([tmp_path], 6, tmp_path / "model", tmp_path / "f.json")


@pytest.mark.parametrize(
    "text, size, out, message",
    [
        ("text.txt", 2, "f.json", "--size 2"),
        ("text.txt", 400, "f.json", "--size 400"),
        ("text.txt", 9, "f.txt", "json or .npy"),
        ("nowhere", 9, "f.json", "nowhere is not there"),
        ("empty", 9, "f.json", "no text"),
    ],
)
def test_lists_that_can_not_be_made_are_refused(tmp_path, model, text, size, out, message):
    (tmp_path / "text.txt").write_text("abc\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompileError, match=message):
        build_list([tmp_path / text], size, model, tmp_path / out)
