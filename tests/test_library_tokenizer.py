"""What the tokenizers library ends the process on, or throws, is refused with the file's name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.inspect.frspec_build import build_list
from minicpm_mlc.prompt.tokenizer import Tokenizer

MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
    "vocab": {"a": 0, "\u2581": 1, "ab": 2},
    "merges": [],
}
ABORTS = {"continuing_subword_prefix": "\0", "merges": [["a", "\u2581"]]}


def write(folder: Path, changed: dict[str, Any], **parts: Any) -> Path:
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    spec = {"version": "1.0", "added_tokens": [], **dict.fromkeys(names)}
    spec |= {"model": MODEL | changed} | parts
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def use(folder: Path) -> list[int]:
    """Every way into the library."""
    tokenizer = Tokenizer.from_folder(folder, None, 100)
    ids = tokenizer.encode("aaa z")
    tokenizer.decode(ids or [0, 1])
    return ids + tokenizer.encode_middle("a z")


TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
REFUSED = {
    "prefix": ({"continuing_subword_prefix": "##"}, {}, "continuing_subword_prefix is '##'"),
    "suffix": ({"end_of_word_suffix": "</w>"}, {}, "end_of_word_suffix is '</w>'"),
    "growth": (
        {},
        {"normalizer": {"type": "Sequence", "normalizers": [TENFOLD] * 12}},
        r"normalizer can make a text 1e\+12 times as long",
    ),
    "growth by a pattern": (
        {},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}},
        "times as long",
    ),
    "growth when decoding": (
        {},
        {"decoder": TENFOLD | {"content": "a" * 1000}},
        "decoder can make",
    ),
    "charsmap": (
        {},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
        "the tokenizer can't be read or fails",
    ),
    "normalizer that is a list": ({}, {"normalizer": []}, "normalizer can't be read"),
    "unknown token": ({"unk_token": "<unk>"}, {}, "Unk token .<unk>. not found"),
    "range to 2^64 - 1": (
        {},
        {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1}},
        "the tokenizer can't be read or fails",
    ),
    "empty pieces": (
        {},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "chunk size must be non-zero",
    ),
    "dropout": ({"dropout": 5.0}, {}, "Dropout should be between 0 and 1"),
    "nested": (
        {},
        {"normalizer": json.loads('{"type": "Sequence", "normalizers": [' * 300 + "]}" * 300)},
        "tokenizer.json",
    ),
    "no model": ({}, {"model": 3}, "tokenizer.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rob_17_a_tokenizer_that_fails_is_a_bundle_error(tmp_path: Path, name: str) -> None:
    model, parts, message = REFUSED[name]
    with pytest.raises(BundleError, match=message):
        use(write(tmp_path, model, **parts))


def test_rob_17_the_library_does_not_abort_the_process(tmp_path: Path) -> None:
    write(tmp_path, ABORTS)
    code = (
        "import sys; from pathlib import Path; import test_library_tokenizer as t\n"
        "try: t.use(Path(sys.argv[1]))\nexcept t.BundleError as error: print(error)"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing_subword_prefix is" in done.stdout


def test_rob_17_a_frspec_list_refuses_such_a_tokenizer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("aaa")
    with pytest.raises(CompileError, match="continuing_subword_prefix"):
        build_list([text], 2, write(tmp_path, ABORTS), tmp_path / "list.json")


def test_rob_17_truncation_and_padding_of_the_file_are_left_out(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
    pad = {
        "strategy": {"Fixed": 2**40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    assert use(write(tmp_path, {}, truncation=cut, padding=pad)) == [0, 0, 0, 0]
