from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.runtime_py.chat import repl
from minicpm_mlc.runtime_py.chat.repl import (
    Screen,
    answer_once,
    given_options,
    history_path,
    read_question,
    talk,
)
from minicpm_mlc.runtime_py.chat.session import SessionError


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
    assert show(hide_thinking=False) == "1 + 1\n\nTwo.\nnumbers\n"


def test_thinking_is_dimmed_on_a_terminal() -> None:
    assert "\x1b[2m1 + \x1b[0m" in show(hide_thinking=False, terminal=True)


def test_hidden_thinking_never_reaches_the_screen() -> None:
    assert show(hide_thinking=True) == "Two.\nnumbers\n"
    assert "1 + " not in show(hide_thinking=True, terminal=True)
    assert "thinking..." in show(hide_thinking=True, terminal=True)


def test_reading_a_long_prompt_is_shown() -> None:
    write, out = screen(terminal=True)
    write.on_prefill(64, 128)
    write("Hi", "answer")
    assert "reading 64 of 128 tokens" in out.getvalue()


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
    assert once(capsys, hide_thinking=True) == ("Hello\n", "")


def test_stats_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = once(capsys, hide_thinking=True, with_stats=True)
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


def test_question_comes_from_the_option_or_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
    assert read_question(None) == "piped"
    assert read_question("given") == "given"
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(SessionError, match="needs a terminal"):
        read_question(None)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert read_question(None) is None


def type_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: str, engine: FakeEngine
) -> str:
    out = io.StringIO()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(repl, "Console", lambda: Console(file=out, width=200))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
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
