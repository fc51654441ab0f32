from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import BundleError, SamplingError
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream

SENTENCEPIECE = Tokenizer(tiny_tokenizers.sentencepiece(), 1, add_bos=True)
BYTE_LEVEL = Tokenizer(tiny_tokenizers.byte_level(), None, add_bos=False)
FIRST_BYTE = 5  # of sentencepiece()


def stream(tokenizer: Tokenizer, ids: list[int], after: list[int] | None = None) -> list[str]:
    text = TextStream(tokenizer, after or [])
    return [*map(text.feed, ids), text.finish()]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    size = tokenizer.raw.get_vocab_size()
    return st.lists(st.integers(0, size + 1), max_size=24)  # some ids no token has


def byte_runs_are_text(ids: list[int]) -> bool:
    """Whether every run of byte tokens is UTF-8 (special tokens do not show, so they don't end a
    run).
    """
    shown = [i for i in ids if SENTENCEPIECE.token_bytes(i)]
    marks = "".join("b" if FIRST_BYTE <= i < FIRST_BYTE + 256 else "." for i in shown)
    runs = [
        bytes(i - FIRST_BYTE for i in shown[m.start() : m.end()]) for m in re.finditer("b+", marks)
    ]
    return all("\ufffd" not in run.decode("utf-8", "replace") for run in runs)


words = st.sampled_from(range(FIRST_BYTE + 256, SENTENCEPIECE.raw.get_vocab_size())).map(
    lambda i: [i]
)
characters = st.characters(codec="utf-8", exclude_characters="\ufffd").map(
    lambda char: [FIRST_BYTE + byte for byte in char.encode()]
)
specials = st.sampled_from([[1], [2], [4]])


@given(
    st.lists(words | characters | specials, max_size=16).map(
        lambda parts: [i for part in parts for i in part]
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_sentencepiece_pieces_join_to_the_library_decode(ids: list[int]) -> None:
    assert byte_runs_are_text(ids)
    assert "".join(stream(SENTENCEPIECE, ids)) == SENTENCEPIECE.decode(ids)


@given(ids_of(SENTENCEPIECE), st.integers(0, 24))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_sentencepiece_bytes_that_are_no_text_join_to_their_utf8_reading(
    ids: list[int], cut: int
) -> None:
    text = b"".join(map(SENTENCEPIECE.token_bytes, ids)).decode("utf-8", "replace")
    assert "".join(stream(SENTENCEPIECE, ids)) == text.removeprefix(" ")
    if byte_runs_are_text(ids):
        assert text.removeprefix(" ") == SENTENCEPIECE.decode(ids)


@given(ids_of(BYTE_LEVEL))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_byte_level_pieces_join_to_the_library_decode(ids: list[int]) -> None:
    assert "".join(stream(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(st.text(max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_character_is_never_split(text: str) -> None:
    for tokenizer in (SENTENCEPIECE, BYTE_LEVEL):
        pieces = stream(tokenizer, tokenizer.encode(text, bos=False))
        assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text, bos=False))
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_characters_of_one_byte_run_stream_one_by_one() -> None:
    pieces = stream(SENTENCEPIECE, [FIRST_BYTE + b for b in "🙂🙃".encode()])
    assert pieces == ["", "", "", "🙂", "", "", "", "🙃", ""]


def test_half_a_character_at_the_end_shows_as_a_replacement() -> None:
    text = TextStream(SENTENCEPIECE)
    assert text.feed(FIRST_BYTE + 0xE4) == "" and not text.at_border
    assert text.finish() == "\ufffd"


def test_the_first_space_is_dropped_at_the_beginning_of_a_text_alone() -> None:
    hello = SENTENCEPIECE.raw.token_to_id("▁hello")
    assert hello is not None
    assert "".join(stream(SENTENCEPIECE, [hello, hello])) == "hello hello"
    assert "".join(stream(SENTENCEPIECE, [hello, hello], after=[1])) == "hello hello"
    assert "".join(stream(SENTENCEPIECE, [hello, hello], after=[1, hello])) == " hello hello"


def test_bos_comes_exactly_once() -> None:
    assert SENTENCEPIECE.encode("hello")[0] == 1
    assert SENTENCEPIECE.encode("<s>hello").count(1) == 1
    assert 1 not in SENTENCEPIECE.encode("hello", bos=False)
    assert SENTENCEPIECE.encode("") == [1]
    tokenizer = Tokenizer(tiny_tokenizers.sentencepiece(), 1, add_bos=False)
    assert 1 not in tokenizer.encode("hello")


@given(st.text("\n abhelo你</>tink", min_size=1, max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_text_in_the_middle_gets_no_space_before_it(text: str) -> None:
    ids = SENTENCEPIECE.encode_middle(text)
    assert b"".join(map(SENTENCEPIECE.token_bytes, ids)).decode() == text


def test_a_decoder_of_another_kind_is_refused() -> None:
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models

    raw = Raw(models.BPE({"a": 0}, []))
    raw.decoder = decoders.WordPiece()
    with pytest.raises(BundleError, match="WordPiece"):
        Tokenizer(raw, None, add_bos=False)


def test_a_damaged_tokenizer_or_one_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="can't be read"):
        Tokenizer.from_folder(tmp_path, 1, 10)
    tiny_tokenizers.sentencepiece().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match=r"has token id \d+, but the model has 10 tokens"):
        Tokenizer.from_folder(tmp_path, 1, 10)
    assert Tokenizer.from_folder(tmp_path, 1, 1000).add_bos is False


def cut(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What StopStrings lets through."""
    stop = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += stop.feed(piece)
        if stop.stopped:
            return shown, True
    return shown + stop.finish(), False


def slow_cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: reads one more character until the text ends with a stop string; of several,
    the longest.
    """
    for end in range(len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))], True
    return text, False


letters = st.text("ab", max_size=6)


@given(st.lists(letters, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_stop_strings_cut_the_same_wherever_the_pieces_are_split(
    pieces: list[str], stops: list[str]
) -> None:
    assert cut(pieces, stops) == slow_cut("".join(pieces), stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stops = StopStrings("END")
    shown = [stops.feed(piece) for piece in ("one E", "N", "X", " two E", "ND three")]
    assert shown == ["one ", "", "ENX", " two ", ""]
    assert stops.stopped


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [3]])
def test_an_empty_stop_string_is_refused(stop: object) -> None:
    with pytest.raises(SamplingError, match="none of them empty"):
        StopStrings(stop)  # type: ignore[arg-type]
