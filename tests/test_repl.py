from __future__ import annotations

import io
import json
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeStats
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from minicpm_mlc.base import streams
from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.streams import InputError
from minicpm_mlc.runtime_py.chat import repl
from minicpm_mlc.runtime_py.chat.line_editor import history_path
from minicpm_mlc.runtime_py.chat.repl import (
    Look,
    answer_once,
    conversation_of,
    given_options,
    read_question,
    talk,
    text_or_file,
)
from minicpm_mlc.runtime_py.chat.saved import Saved
from minicpm_mlc.runtime_py.chat.screen import Screen
from minicpm_mlc.runtime_py.chat.settings import SessionError
from minicpm_mlc.runtime_py.chat.typed_ahead import edited


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(hide_thinking: bool = False, terminal: bool = False) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, force_terminal=terminal, width=200), hide_thinking), out


def show(hide_thinking: bool, terminal: bool = False) -> str:
    write, out = screen(hide_thinking, terminal)
    for text, kind in [
        ("1 + ", "thinking"),
        ("1", "thinking"),
        ("Tw", "answer"),
        ("o.", "answer"),
        ("", "end"),
    ]:
        write(text, kind)
    write("numbers", "note")
    return out.getvalue()


def test_thinking_and_answer_are_apart() -> None:
    assert show(hide_thinking=False) == "| 1 + 1\n\nTwo.\nnumbers\n"


def test_thinking_is_dimmed_on_a_terminal() -> None:
    assert "\x1b[2m| 1 +\x1b[0m" in show(hide_thinking=False, terminal=True)


def test_hidden_thinking_never_reaches_the_screen() -> None:
    assert show(hide_thinking=True) == "Two.\nnumbers\n"
    assert "1 + " not in show(hide_thinking=True, terminal=True)
    assert "thinking..." in show(hide_thinking=True, terminal=True)


def test_reading_a_long_prompt_is_shown() -> None:
    write, out = screen(terminal=True)
    write.on_prefill(64, 128)
    write("Hi", "answer")
    assert "reading 64 of 128 tokens" in out.getvalue()


def test_reading_is_shown_before_the_first_token() -> None:
    write, out = screen(terminal=True)
    write.on_prefill(0, 0)
    write.pause()
    assert "reading the prompt" in out.getvalue()


def test_words_are_wrapped_and_code_is_not() -> None:
    out = io.StringIO()
    write = Screen(Console(file=out, width=20))
    for piece in ("hm, what a ques", "tion this is"):
        write(piece, "thinking")
    for piece in ("several words that ", "don't fit\n```\na line of code ", "longer\n```\n你好"):
        write(piece, "answer")
    write("世界" * 6, "answer")
    write("", "end")
    assert out.getvalue() == (
        "| hm, what a\n| question this is\n\nseveral words that\ndon't fit\n"
        "```\na line of code longer\n```\n你好世界世界世界世界\n世界世界\n"
    )


def test_no_text_is_lost_by_wrapping() -> None:
    text = "a  b\n\n  indented\tand " + "x" * 50 + "\n"
    out = io.StringIO()
    write = Screen(Console(file=out, width=20))
    for character in text:
        write(character, "answer")
    write("", "end")
    assert out.getvalue().split() == text.split()


def test_markdown_is_rendered_block_by_block() -> None:
    out = io.StringIO()
    write = Screen(Console(file=out, force_terminal=True, width=30), markdown=True)
    for piece in ("some **bo", "ld** words\n", "\n```\na = 1\n\nb = 2\n```\n"):
        write(piece, "answer")
    assert "\x1b[1mbold\x1b[0m" in out.getvalue() and "b = 2" not in out.getvalue()
    write("", "end")
    assert "b = 2" in out.getvalue() and "```" not in out.getvalue()


def test_a_model_can_not_drive_the_terminal() -> None:
    write, out = screen()
    write("a\x1b[2Jb\x07\r\x9bc\nd\n", "answer")
    assert out.getvalue() == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\nd\n"


def once(
    capsys: pytest.CaptureFixture[str], question: str = "Hi", **options: Any
) -> tuple[str, str]:
    answer_once(FakeEngine(), question, options={}, **options)
    return capsys.readouterr()


def test_a_pipe_gets_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert once(capsys) == ("Hello\n", "hm\n")
    assert once(capsys, look=Look(hide_thinking=True)) == ("Hello\n", "")


def test_stats_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = once(capsys, look=Look(hide_thinking=True, stats=True))
    assert out == "Hello\n" and "100.0 tok/s" in err


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = once(capsys, as_json=True)
    said = json.loads(out)
    assert (said["answer"], said["thinking"], err) == ("Hello", "hm", "")
    assert said["stats"]["prompt_tokens"] == 12


def test_system_prompt_and_options_reach_the_engine() -> None:
    engine = FakeEngine()
    answer_once(engine, "Hi", options={"seed": 1}, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert engine.calls == [(messages, {"seed": 1})]


def test_a_cut_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stats = FakeStats(finish_reason="length", generated_tokens=256)
    answer_once(FakeEngine([("answer", "Hello")], stats=stats), "Hi", options={})
    assert capsys.readouterr() == ("Hello\n", "(cut at 256 tokens)\n")


def test_a_question_goes_on_with_a_saved_conversation(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    before = [{"role": "system", "content": "Old"}, {"role": "user", "content": "Hi"}]
    Saved(before, {"seed": 1, "top_k": 2}).write(file)
    engine = FakeEngine()
    saved = conversation_of(str(file), False)
    answer_once(engine, "Q", options={"seed": 3}, system="New", saved=saved)
    messages, options = engine.calls[0]
    assert [m["content"] for m in messages] == ["New", "Hi", "Q"]
    assert options == {"seed": 3, "top_k": 2}


def test_the_last_conversation_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(SessionError, match="there is no last conversation"):
        conversation_of(None, True)
    type_keys(monkeypatch, tmp_path, "Hi\r/quit\r", FakeEngine())
    saved = conversation_of(None, True)
    assert saved and [m["content"] for m in saved.messages] == ["Hi", "Hello"]
    with pytest.raises(SessionError, match="name two conversations"):
        conversation_of("file", True)


def test_a_question_that_goes_on_with_the_last_conversation_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.json"
    before = [{"role": "user", "content": "a document"}, {"role": "assistant", "content": "A"}]
    saved = Saved(before, {"seed": 1}, [0])
    answer_once(FakeEngine(), "Q", options={}, system="S", saved=saved, kept_in=file)
    kept = Saved.read(file)
    assert [m["content"] for m in kept.messages] == ["S", "a document", "A", "Q", "Hello"]
    assert (kept.pinned, kept.options) == ([1], {"seed": 1})
    nowhere = tmp_path / "no" / "last.json"
    answer_once(FakeEngine(), "Q", options={}, saved=saved, kept_in=nowhere)
    assert f"note: {nowhere} can't be written" in capsys.readouterr().err


def test_what_a_full_context_leaves_out_of_one_question_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    turns = [{"role": role, "content": t * 9} for t in "abc" for role in ("user", "assistant")]
    saved = Saved(turns, {}, [0])
    engine = FakeEngine()
    answer_once(engine, "Q", options={"overflow": "drop_oldest"}, saved=saved)
    sent = [m["content"][0] for m in engine.calls[0][0]]
    assert sent == ["a", "a", "c", "c", "Q"]
    assert "note: the context is full: the oldest 2 messages are left out" in (
        capsys.readouterr().err
    )


def test_texts_come_from_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "system.txt"
    file.write_bytes(b"Be brief, caf\xe9.")
    assert text_or_file(None, str(file), "--system") == "Be brief, caf\ufffd."
    assert f"note: {file} is not UTF-8 text" in capsys.readouterr().err
    with pytest.raises(SessionError, match="--system and --system-file say the same thing"):
        text_or_file("a", str(file), "--system")


def test_empty_question_is_refused() -> None:
    with pytest.raises(SessionError, match="the prompt is empty"):
        answer_once(FakeEngine(), " \n", options={})


def test_only_given_options_count_and_they_are_checked() -> None:
    assert given_options({"seed": 0, "top_p": None, "stop": (), "think": False}) == {
        "seed": 0,
        "think": False,
    }
    assert given_options({"stop": ("a", "b")}) == {"stop": ["a", "b"]}
    with pytest.raises(SamplingError, match="min_p"):
        given_options({"min_p": 3.0})


def piped(data: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding)


def test_question_comes_from_the_option_or_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"piped"))
    assert read_question(None) == "piped"
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert read_question("given") == "given"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SessionError, match="needs a terminal"):
        read_question(None)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert read_question(None) is None


@pytest.mark.parametrize(
    ("data", "prompt", "message"),
    [
        (b"the document\n", "What is it?", "the document\n\nWhat is it?"),
        (b"\n\n  indented", "Why? /no_think", "\n\n  indented\n\nWhy? /no_think"),
        (b"", "What is it?", "What is it?"),
        (b" \n", "What is it?", "What is it?"),
        (b"the document", " ", "the document"),
        (b"", None, ""),
    ],
)
def test_piped_text_and_question_are_one_message(
    monkeypatch: pytest.MonkeyPatch, data: bytes, prompt: str | None, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(data))
    assert read_question(prompt) == message


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"caf\xe9?", "utf-8", "caf\ufffd?"),
        (b"caf\xe9?", "latin-1", "caf\xe9?"),
        ("你好".encode("gbk"), "gbk", "你好"),
        (b"\xff\xfeh\x00i\x00", "utf-8", "hi"),
        (b"\xef\xbb\xbfhi\r\n", "utf-8", "hi\n"),
    ],
)
def test_case_01_piped_text_in_any_encoding_is_text(
    monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(data, encoding))
    assert read_question(None) == text
    assert read_question("caf\udce9") == "caf\ufffd"


def test_text_that_no_context_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST_INPUT", 1 << 20)
    monkeypatch.setattr(sys, "stdin", piped(b"x" * ((1 << 20) + 1)))
    with pytest.raises(InputError, match="more than 1 MiB"):
        read_question("What is it?")


def test_a_pipe_that_nobody_closes_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            told.wait(10)
            return b"late"

    told = threading.Event()
    monkeypatch.setattr(streams, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(streams, "say", lambda text, stream: (print(text, file=stream), told.set()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slow()))
    assert read_question("Q") == "late\n\nQ"
    assert "start with < /dev/null if there is none" in capsys.readouterr().err


def test_case_07_closed_streams_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_question("given") == "given"
    with pytest.raises(SessionError, match="no terminal and no pipe; give --prompt TEXT"):
        read_question(None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SessionError, match="standard output is closed"):
        read_question("given")


ESCAPES = "\x1b]0;pwn\x07"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_case_08_a_terminal_gets_no_control_characters_and_a_pipe_all(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    out, err = (Terminal(), io.StringIO()) if stream == "stdout" else (io.StringIO(), Terminal())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    answer_once(FakeEngine([("thinking", ESCAPES), ("answer", ESCAPES)]), "Hi", options={})
    for file, end in ((out, "\n"), (err, "\n")):
        marked = ESCAPES.replace("\x1b", "\ufffd").replace("\x07", "\ufffd")
        shown = file.getvalue().rpartition("\x1b[2K")[2]  # behind the spinner, which is gone
        assert shown == (marked if file.isatty() else ESCAPES) + end


def test_case_08_json_escapes_what_drives_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    answer_once(FakeEngine([("answer", "\x9b2J\x7f\x1b")]), "Hi", options={}, as_json=True)
    shown = capsys.readouterr().out
    assert json.loads(shown)["answer"] == "\x9b2J\x7f\x1b"
    assert not any(code in shown for code in "\x9b\x7f\x1b")


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_case_06_what_an_encoding_lacks_is_a_mark(
    monkeypatch: pytest.MonkeyPatch, encoding: str, as_json: bool
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    streams.prepare_streams()
    answer_once(FakeEngine([("answer", "你好 😀")]), "Hi", options={}, as_json=as_json)
    text = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    if as_json:
        assert json.loads(text)["answer"] == "你好 😀"
    else:
        assert text == "你好 😀\n".encode(encoding, "replace").decode(encoding)


def type_keys(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    keys: str,
    engine: FakeEngine,
    state: str | None = None,
) -> str:
    out = io.StringIO()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path) if state is None else state)
    monkeypatch.setattr(repl, "Console", lambda: Console(file=out, width=200))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_bytes(keys.encode("utf-8", "surrogateescape"))
        talk(engine, options={})
    return out.getvalue()


def test_typing_at_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = FakeEngine()
    shown = type_keys(
        monkeypatch, tmp_path, 'one\r"""two\rlines"""\rback\\\rslash\ra\x1b\rb\r\x04', engine
    )
    assert [call[0][-1]["content"] for call in engine.calls] == [
        "one",
        "two\nlines",
        "back\nslash",
        "a\nb",
    ]
    assert shown.count("Hello") == 4 and "Ctrl-D" in shown


def test_the_banner_says_what_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = type_keys(monkeypatch, tmp_path, "/quit\r", FakeEngine())
    assert shown.startswith("fake (w4) on cpu, 2 threads, context 64, dense\n")


def test_tab_completes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conversation.json").write_text("{}")
    engine = FakeEngine()
    keys = f"/set thi\t off\r/load {tmp_path}/conv\t\r/qu\t\r\x04"
    shown = type_keys(monkeypatch, tmp_path, keys, engine)
    assert "think = off" in shown and "conversation.json is not a saved session" in shown


def test_an_edited_question_is_in_the_editor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = FakeEngine()
    type_keys(monkeypatch, tmp_path, "one\r/edit\r more\r/quit\r", engine)
    assert [call[0][-1]["content"] for call in engine.calls] == ["one", "one more"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("next question\r", "next question"),
        ("a\x7fb\x1b[A\x1b[1;5Cc\x01", "bc"),
        ("two\rlines", "two\nlines"),
        ("caf\u00e9\t\x1bOP!", "caf\u00e9\t!"),
    ],
)
def test_keys_that_were_pressed_meanwhile_are_text(keys: str, text: str) -> None:
    assert edited(keys) == text


def test_bad_command_and_ctrl_c_at_the_prompt_keep_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = FakeEngine()
    shown = type_keys(monkeypatch, tmp_path, "/oops\rhalf a line\x03whole\r/quit\r", engine)
    assert "there is no command /oops" in shown
    assert [call[0][-1]["content"] for call in engine.calls] == ["whole"]


def test_history_is_kept_for_its_owner_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    type_keys(monkeypatch, tmp_path, "remember me\r/quit\r", FakeEngine())
    assert "remember me" in history_path().read_text()
    assert stat.S_IMODE(history_path().stat().st_mode) == 0o600


def test_no_writable_history_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "minicpm-mlc").write_text("a file where the folder should be")
    engine = FakeEngine()
    type_keys(monkeypatch, tmp_path, "Hi\r/quit\r", engine)
    assert len(engine.calls) == 1


def test_case_17_a_paste_arrives_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = FakeEngine()
    pasted = "    a \\\\\r\ngcc \\\r\n -o x", "gcc \\"
    keys = "".join(f"\x1b[200~{text}\x1b[201~\r" for text in pasted)
    shown = type_keys(monkeypatch, tmp_path, keys + "gcc \\\r -o x\r/quit\r", engine)
    assert [call[0][-1]["content"] for call in engine.calls] == [
        "    a \\\\\ngcc \\\n -o x",
        "gcc \\",
        "gcc \n -o x",
    ]
    assert shown.count("Hello") == 3


def test_case_03_a_typed_byte_that_is_not_utf8_keeps_the_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = FakeEngine()
    type_keys(monkeypatch, tmp_path, "caf\udce9\rand on\r/quit\r", engine)
    assert [call[0][-1]["content"] for call in engine.calls] == ["caf\ufffd", "and on"]
    assert "caf" in history_path().read_text()


def test_case_100_without_a_home_the_history_is_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    engine = FakeEngine()
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("HOME", "")
    type_keys(monkeypatch, tmp_path, "one\rtwo\r/quit\r", engine, state="")
    assert [call[0][-1]["content"] for call in engine.calls] == ["one", "two"]


@pytest.mark.parametrize("failing", ["ab", "rb"])
def test_case_102_a_history_that_can_not_be_kept_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    real = open

    def full(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if str(file).endswith("history") and mode == failing:
            raise OSError(28, "No space left on device")
        return real(file, mode, *rest, **named)

    engine = FakeEngine()
    monkeypatch.setattr("builtins.open", full)
    shown = type_keys(monkeypatch, tmp_path, "one\rtwo\r/quit\r", engine)
    assert [call[0][-1]["content"] for call in engine.calls] == ["one", "two"]
    assert "No space" not in shown
