from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeStats
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import ContextError, PromptTooLongError, SamplingError
from minicpm_mlc.runtime_py.chat.commands import ALIASES, COMMANDS, QUIT
from minicpm_mlc.runtime_py.chat.figures import ROW, Reading, stats_line, stats_row
from minicpm_mlc.runtime_py.chat.session import ChatSession, join_lines, open_quotes
from minicpm_mlc.runtime_py.chat.settings import SETTINGS, SessionError, parse_setting


class Recorder:
    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = []

    def __call__(self, text: str, kind: str) -> None:
        self.pieces.append((text, kind))

    def of(self, kind: str) -> str:
        return "\n".join(text for text, k in self.pieces if k == kind)


def session(**engine_fields: Any) -> tuple[ChatSession, Recorder]:
    recorder = Recorder()
    return ChatSession(FakeEngine(**engine_fields), recorder), recorder


def test_an_answer_joins_the_conversation_without_its_thinking() -> None:
    chat, recorder = session()
    assert chat.handle("Hi")
    assert chat.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert recorder.pieces[:3] == [("hm", "thinking"), ("He", "answer"), ("llo", "answer")]
    chat.handle("More")
    assert [m["content"] for m in chat.engine.calls[1][0]] == ["Hi", "Hello", "More"]


def test_numbers_follow_every_answer_in_a_row_unless_switched_off() -> None:
    chat, recorder = session()
    chat.handle("Hi")
    row = "8 read, 100 tok/s | 3 said, 20.0 tok/s | 15 of 64 dense"
    assert recorder.of("note") == row == stats_row(chat.engine.stats)
    recorder.pieces.clear()
    for line in ("/stats off", "Hi"):
        chat.handle(line)
    assert recorder.of("note") == "figures after each answer: off"
    chat.handle("/stats maybe")
    assert "/stats takes on, off or nothing" in recorder.of("error")


def test_all_numbers_are_told_when_asked_for() -> None:
    chat, recorder = session()
    chat.handle("/stats")
    parts = [
        "prompt 12 tokens (4 cached), 100.0 tok/s",
        "answer 3 tokens, 20.0 tok/s",
        "context 15/64, dense",
    ]
    assert recorder.of("note").startswith(" | ".join(parts))


def test_numbers_count_what_was_computed() -> None:
    stats = FakeStats(prompt_tokens=900, cached_tokens=100, computed_tokens=256)
    assert stats_line(stats).startswith("prompt 356 of 900 tokens (100 cached), 100.0 tok/s")
    assert stats_row(stats).startswith("256 read, 100 tok/s")


def test_the_row_fits_eighty_columns() -> None:
    long = FakeStats(
        computed_tokens=131072,
        generated_tokens=131072,
        context_used=131072,
        context=131072,
        attention="sparse",
        prefill_rate=12345.6,
        decode_rate=1234.5,
    )
    assert "131.1k of 131.1k sparse" in stats_row(long) and len(stats_row(long)) <= ROW


def test_a_prompt_that_is_read_tells_speed_and_time_left() -> None:
    reading = Reading(10.0)
    assert reading.text(0, 0, 10.0) == "reading the prompt"
    assert reading.text(512, 4096, 12.0) == "reading 512 of 4096 tokens, 256 tok/s, 14 s left"
    assert reading.text(10, 10_000, 20.0).endswith("1 tok/s, 166 min left")


def test_ctrl_c_keeps_the_partial_answer_and_the_session() -> None:
    chat, recorder = session(events=[("answer", "Once upon"), KeyboardInterrupt()])
    assert chat.handle("Tell a story")
    assert chat.messages[-1] == {"role": "assistant", "content": "Once upon"}
    assert "(stopped; what was said is kept)" in recorder.of("note")
    assert ("", "end") in recorder.pieces and chat.engine.closed == 1


def test_ctrl_c_before_any_answer_drops_the_question() -> None:
    chat, recorder = session(events=[("thinking", "hm"), KeyboardInterrupt()])
    assert chat.handle("Hard question")
    assert chat.messages == [] and "not kept" in recorder.of("note")


def test_ctrl_c_while_writing_closes_the_stream() -> None:
    chat, _ = session()

    def interrupted(text: str, kind: str) -> None:
        if kind == "answer":
            raise KeyboardInterrupt

    chat.write = interrupted
    assert chat.handle("Hi")
    assert chat.engine.closed == 1


def test_an_engine_error_leaves_the_conversation_as_it_was() -> None:
    chat, recorder = session(events=[ContextError("the prompt has 99 tokens")])
    assert chat.handle("Hi")
    assert chat.messages == [] and recorder.of("error") == "the prompt has 99 tokens"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [("length", "(cut at 256 tokens; /set max_tokens"), ("context", "(cut: the context is full")],
)
def test_a_cut_off_answer_says_why(reason: str, hint: str) -> None:
    chat, recorder = session(stats=FakeStats(finish_reason=reason, generated_tokens=256))
    chat.handle("Hi")
    assert hint in recorder.of("note")


def test_an_answer_cut_off_inside_its_thinking_says_both() -> None:
    chat, recorder = session(events=[("thinking", "hm")], stats=FakeStats(finish_reason="length"))
    chat.handle("Hi")
    assert (
        chat.messages == []
        and "max_tokens" in recorder.of("note")
        and "not kept" in recorder.of("note")
    )


def test_reset_keeps_the_system_prompt() -> None:
    chat = ChatSession(FakeEngine(), Recorder(), system="Be brief.")
    chat.handle("Hi")
    chat.handle("/reset")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_only_quit_ends_the_session() -> None:
    chat, _ = session()
    assert chat.handle("/help") and chat.handle("") and chat.handle("/nonsense")
    assert not any(chat.handle(f"/{name}") for name in QUIT)


def test_other_names_of_commands() -> None:
    chat, recorder = session()
    for line in ("Hi", "/clear", "/?"):
        chat.handle(line)
    assert chat.messages == [] and "/undo" in recorder.of("note") and set(ALIASES) == {"clear", "?"}


def test_help_names_every_command() -> None:
    chat, recorder = session()
    chat.handle("/help")
    assert all(f"/{name}" in recorder.of("note") for name in [*COMMANDS, "quit"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "there is no command /nonsense"),
        ("/no_think", "end of a message"),
        ("/set colour red", "there is no setting 'colour'"),
        ("/set temperature warm", "temperature takes a number (0 is greedy), not 'warm'"),
        ("/set temperature", "temperature takes a number (0 is greedy): /set temperature VALUE"),
        ("/set temperature -1", "temperature"),
        ("/set temperature nan", "temperature"),
        ("/set top_k 1.5", "top_k takes a whole number"),
        ("/set max_tokens 0", "max_tokens is 0"),
        ("/set think maybe", "think takes on, off or auto"),
        ("/set stop", "stop is ['']"),
        ("/set stop [1]", "stop is [1]"),
        ("/set stop [", "stop takes text"),
        ("/save", "which file?"),
        ("/load", "which file?"),
        ("/load /no/such/file", "there is no file"),
        (
            "/save /no/such/folder/file",
            "/no/such/folder/file can't be written (No such file or directory); name another file",
        ),
        ("/set overflow maybe", "choose error, drop_oldest"),
        ("/undo", "nothing was asked yet"),
        ("/regen", "nothing was asked yet"),
        ("/read", "which file? /read FILE"),
        ("/read /no/such/file", "/no/such/file can't be read (No such file or directory)"),
        ("/read /dev/zero", "/dev/zero is not a file"),
        ("/save a\0b", "can't be a file's name"),
    ],
)
def test_a_bad_command_is_one_line_and_changes_nothing(line: str, message: str) -> None:
    chat, recorder = session()
    assert chat.handle(line)
    assert message in recorder.of("error") and "\n" not in recorder.of("error")
    assert chat.options == {} and chat.messages == []


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.sampled_from([*SETTINGS, "x"]),
    st.text(max_size=6) | st.integers().map(str) | st.floats().map(str),
)
def test_no_setting_can_raise_anything_but_an_error_for_users(name: str, value: str) -> None:
    chat, recorder = session()
    chat.handle(f"/set {name} {value}")
    assert len(recorder.pieces) == 1 or "\n" in value
    assert set(chat.options) <= {name}


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.sampled_from(["", "/load ", "/set ", "/set stop ", "/", "/think ", '"""']),
    st.text(st.characters(exclude_categories=()), max_size=20),
)
def test_no_text_can_end_the_session(command: str, text: str) -> None:
    chat, recorder = session()
    typed = command + text
    line = typed.startswith("/") and "\n" not in typed.strip() and typed.strip()[1:]
    assert chat.handle(typed) == (not line or line.partition(" ")[0] not in QUIT)
    assert "report it" not in recorder.of("error")
    "".join(message["content"] for message in chat.messages).encode()


def test_settings_reach_the_engine() -> None:
    chat, _ = session()
    for line in (
        "/set temperature 0.7",
        "/set think off",
        '/set stop ["\\n", "END"]',
        "/set max_think_tokens 0",
        "Hi",
    ):
        chat.handle(line)
    options = {"temperature": 0.7, "think": False, "stop": ["\n", "END"], "max_think_tokens": 0}
    assert chat.engine.calls[0][1] == options


def test_a_setting_goes_back_to_the_model_s_default() -> None:
    chat, recorder = session()
    for line in ("/set temperature 0.1", "/set temperature default", "/set"):
        chat.handle(line)
    assert chat.options == {} and "temperature = 0.6" in recorder.of("note")
    assert all(name in recorder.of("note") for name in SETTINGS)


def test_stop_is_one_text_unless_it_is_a_list() -> None:
    assert parse_setting("stop", "the end") == ["the end"]


def test_bad_options_are_refused_before_the_first_question() -> None:
    with pytest.raises(SamplingError, match="top_p"):
        ChatSession(FakeEngine(), Recorder(), {"top_p": 2.0})
    with pytest.raises(SessionError, match="no setting"):
        ChatSession(FakeEngine(), Recorder(), {"topp": 1.0})


def test_saved_session_comes_back(tmp_path: Path) -> None:
    chat, _ = session()
    for line in ("Hi", "/set seed 7", f"/save {tmp_path / 'a b.json'}"):
        chat.handle(line)
    other, recorder = session()
    other.handle(f"/load {tmp_path / 'a b.json'}")
    assert (other.messages, other.options) == (
        chat.messages,
        {"seed": 7},
    ) and "loaded 2" in recorder.of("note")
    assert [path.name for path in tmp_path.iterdir()] == ["a b.json"]


def test_save_replaces_a_saved_session_and_nothing_else(tmp_path: Path) -> None:
    chat, recorder = session()
    mine, other = tmp_path / "mine.json", tmp_path / "thesis.txt"
    other.write_text("years of work")
    for line in (f"/save {mine}", "Hi", f"/save {mine}", f"/save {other}"):
        chat.handle(line)
    assert len(json.loads(mine.read_text())["messages"]) == 2
    assert other.read_text() == "years of work" and "is not a saved session" in recorder.of("error")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something else"},
        {"format": 99},
        {"messages": "no"},
        {"messages": [{"role": "robot", "content": ""}]},
        {"messages": [{"role": "user"}]},
        {"options": []},
        {"options": {"temperature": "hot"}},
        {"options": {"unknown": 1}},
        {"options": {"stop": "END"}},
        {"pinned": [0]},
        {"pinned": 1},
    ],
)
def test_a_damaged_session_file_is_refused_whole(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "saved.json"
    file.write_text(
        json.dumps(
            {"kind": "minicpm-mlc chat", "format": 1, "messages": [], "options": {}} | change
        )
    )
    chat, recorder = session()
    chat.handle("Hi")
    before = list(chat.messages)
    assert chat.handle(f"/load {file}")
    assert recorder.of("error") and chat.messages == before


def test_quotes_and_what_surrounds_a_message_go() -> None:
    assert join_lines('"""\ndef f():\n    pass\\\n"""') == "def f():\n    pass\\"
    assert join_lines("  plain  ") == "plain"
    assert join_lines("\n    indented\n    code\n") == "    indented\n    code"


def test_case_17_no_backslash_of_a_message_is_taken_out() -> None:
    for text in ("gcc \\\n -o x", "a \\\\\ngcc \\\n -o x", "C:\\"):
        assert join_lines(text) == text


def test_unfinished_input_goes_on() -> None:
    assert open_quotes('"""a') and open_quotes('"""\na\n')
    assert not open_quotes("a") and not open_quotes('"""a"""') and not open_quotes('say """')


@pytest.mark.parametrize("typed", ["caf\udce9", "half \ud83d", "\udce9"])
def test_case_03_a_byte_that_is_not_utf8_becomes_a_mark(typed: str) -> None:
    chat, recorder = session()
    assert chat.handle(typed)
    said = chat.messages[0]["content"]
    assert "\ufffd" in said and said == said.encode().decode() and recorder.of("error") == ""


def test_case_03_no_text_that_comes_in_can_spoil_a_saved_session(tmp_path: Path) -> None:
    chat = ChatSession(FakeEngine(), Recorder(), system="caf\udce9")
    chat.handle("\ud83d")
    chat.handle(f"/save {tmp_path / 'caf'}\udce9")
    (file,) = tmp_path.iterdir()
    assert file.name == "caf\udce9"
    text = file.read_text().replace("\ufffd", "\\udce9")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as an editor might
    other, recorder = session()
    other.handle(f"/load {file}")
    assert recorder.of("error") == "" and other.messages == chat.messages


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "."])
def test_a_device_or_folder_is_no_saved_session(name: str) -> None:
    chat, recorder = session()
    assert chat.handle(f"/load {name}") and chat.handle(f"/save {name}")
    assert len(recorder.of("error").splitlines()) == 2 == len(recorder.pieces)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        RecursionError("maximum recursion depth exceeded"),
        UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"),
        TypeError("a bug"),
        type("PanicException", (BaseException,), {})("from Rust"),
    ],
)
def test_no_error_of_a_call_ends_the_session(error: BaseException) -> None:
    chat, recorder = session(events=[error])
    assert chat.handle("Hi")
    assert chat.messages == [] and len(recorder.of("error").splitlines()) == 1
    is_bug = not isinstance(error, MemoryError | RecursionError | UnicodeError)
    assert ("please report it" in recorder.of("error")) == is_bug


def test_a_bug_shows_its_traceback_with_debug_and_the_session_goes_on() -> None:
    chat, recorder = session(events=[TypeError("a bug")])
    chat.debug = True
    assert chat.handle("Hi")
    assert "Traceback" in recorder.of("error") and "TypeError: a bug" in recorder.of("error")


@pytest.mark.parametrize("command", ["/save", "/load"])
def test_case_103_an_unknown_home_is_one_line(command: str) -> None:
    chat, recorder = session()
    assert chat.handle(f"{command} ~nosuchuser/x")
    assert recorder.of("error") == "~nosuchuser/x: that user's home is not known; give the folder"


def test_case_43_a_full_conversation_says_how_to_go_on() -> None:
    for largest, more in ((64, ""), (128, ", chat --context 128 holds more")):
        chat, recorder = session()
        chat.handle("Hi")
        chat.engine.events = [PromptTooLongError(65, 64, largest)]
        chat.handle("Hi")
        assert recorder.of("error") == (
            "the conversation is full (the prompt has 65 tokens and the context holds 64): "
            "/context shows by what, /set overflow drop_oldest leaves out the oldest, /undo takes "
            f"back the last turn, /reset begins anew{more}"
        )
        assert len(chat.messages) == 2


def test_case_43_a_first_message_that_is_too_long_is_to_be_shortened() -> None:
    chat = ChatSession(FakeEngine(), Recorder(), system="Be brief.")
    chat.engine.events = [PromptTooLongError(65, 64, 64)]
    chat.handle("Hi")
    assert chat.write.of("error").endswith("the context holds 64; shorten the prompt")


def test_text_that_looks_like_a_command_can_be_sent() -> None:
    chat, _ = session()
    chat.handle(" /etc/hosts is what?")
    chat.handle("/usr\n/bin")
    assert [call[0][-1]["content"] for call in chat.engine.calls] == [
        "/etc/hosts is what?",
        "/usr\n/bin",
    ]


def asked(chat: ChatSession) -> list[str]:
    """The messages of the last call."""
    return [message["content"] for message in chat.engine.calls[-1][0]]


def test_the_last_turn_is_taken_back_asked_again_or_edited() -> None:
    chat, recorder = session()
    for line in ("one", "two", "/undo"):
        chat.handle(line)
    assert [m["content"] for m in chat.messages] == ["one", "Hello"]
    assert "taken back: two" in recorder.of("note")
    chat.engine.events = [("answer", "Again")]
    chat.handle("/regen")
    assert asked(chat) == ["one"] and [m["content"] for m in chat.messages] == ["one", "Again"]
    chat.handle("/edit")
    assert (chat.messages, chat.draft) == ([], "one")


def test_a_question_that_gets_no_second_answer_keeps_its_first() -> None:
    chat, _ = session()
    chat.handle("one")
    before = list(chat.messages)
    chat.engine.events = [KeyboardInterrupt()]
    chat.handle("/regen")
    assert chat.messages == before


def test_a_file_goes_before_the_next_message_and_is_pinned(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"the notes caf\xe9")
    chat, recorder = session()
    chat.handle(f"/read {file}")
    assert "is not UTF-8 text: 1 characters" in recorder.of("note")
    assert f"{file}: 14 tokens" in recorder.of("note")
    chat.handle("What is open?")
    assert asked(chat) == ["the notes caf\ufffd\n\nWhat is open?"]
    chat.handle("More")
    assert asked(chat)[-1] == "More" and chat.pinned == chat.messages[:1]


def test_a_document_that_does_not_fit_is_refused_and_one_that_waits_taken_back(
    tmp_path: Path,
) -> None:
    (tmp_path / "long").write_text("x" * 64)
    (tmp_path / "short").write_text("x" * 63)
    chat, recorder = session()
    for line in (f"/read {tmp_path / 'long'}", f"/read {tmp_path / 'short'}", "/undo", "Hi"):
        chat.handle(line)
    assert "has 64 tokens and the context holds 64" in recorder.of("error")
    assert asked(chat) == ["Hi"] and "taken back" in recorder.of("note")


def test_help_fits_eighty_columns() -> None:
    chat, recorder = session()
    chat.handle("/help")
    assert max(map(len, recorder.of("note").splitlines())) <= ROW


def test_a_full_context_drops_the_oldest_turns_when_told_to(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("pinned")
    chat = ChatSession(FakeEngine(), Recorder(), {"overflow": "drop_oldest"}, system="Be brief.")
    lines = (f"/read {file}", "first", "second", "third", "fourth " + "x" * 9, "fifth")
    for line in lines:
        chat.handle(line)
    assert asked(chat)[:2] == ["Be brief.", "pinned\n\nfirst"]
    assert "second" not in asked(chat) and asked(chat)[-1] == "fifth"
    assert "the oldest" in chat.write.of("note")
    assert chat.engine.count(chat.engine.calls[-1][0]) <= chat.engine.context
    assert all("overflow" not in options for _, options in chat.engine.calls)


def test_what_fills_the_context_is_told() -> None:
    chat, recorder = session()
    chat.handle("/context")
    assert recorder.of("note").endswith("0  of 64 tokens; 64 are free")
    for line in ("Hi", "/context"):
        chat.handle(line)
    for part in ("2  user: Hi", "5  assistant: Hello", "2  the chat template", "55 are free"):
        assert part in recorder.of("note")


def test_the_system_prompt_changes_within_a_conversation() -> None:
    chat, recorder = session()
    for line in ("Hi", "/system Be brief.", "More", "/system none", "/system"):
        chat.handle(line)
    assert asked(chat) == ["Be brief.", "Hi", "Hello", "More"]
    assert chat.messages[0]["role"] == "user" and "system prompt: none" in recorder.of("note")


def test_the_model_is_told() -> None:
    chat, recorder = session()
    chat.handle("/model")
    assert "w4, 1.0 MiB" in recorder.of("note") and "cpu: no device" in recorder.of("note")


def test_a_conversation_is_kept_after_each_answer(tmp_path: Path) -> None:
    chat, _ = session()
    chat.kept_in = tmp_path / "last-chat.json"
    chat.handle("Hi")
    other, _ = session()
    other.handle(f"/load {chat.kept_in}")
    assert other.messages == chat.messages
    chat.kept_in = tmp_path / "none" / "last-chat.json"
    assert chat.handle("Hi") and chat.write.of("error") == ""


def test_pinned_messages_come_back_from_a_file(tmp_path: Path) -> None:
    notes, file = tmp_path / "notes.txt", tmp_path / "saved.json"
    notes.write_text("notes")
    chat, _ = session()
    for line in (f"/read {notes}", "Hi", f"/save {file}"):
        chat.handle(line)
    other, _ = session()
    other.handle(f"/load {file}")
    assert other.pinned == [other.messages[0]]


def test_an_edited_question_leaves_its_document_where_it_was(tmp_path: Path) -> None:
    """The editor has what was typed, not the whole document."""
    notes = tmp_path / "notes.txt"
    notes.write_text("a document")
    chat, _ = session()
    for line in (f"/read {notes}", "first", "/edit"):
        chat.handle(line)
    assert (chat.draft, chat.documents, chat.messages) == ("first", ["a document"], [])
    chat.handle("second")
    assert chat.messages[0]["content"] == "a document\n\nsecond"
    assert chat.pinned == [chat.messages[0]]
    for line in (f"/read {notes}", "/edit"):  # another document waits
        chat.handle(line)
    assert chat.documents == ["a document", "a document"]


def test_settings_are_shown_as_they_are_typed() -> None:
    chat, recorder = session()
    for line in ("/set think auto", "/set think off", "/set stop END", "/set"):
        chat.handle(line)
    told = recorder.of("note").splitlines()
    assert told[:3] == ["think = auto", "think = off", 'stop = ["END"]']
    assert not any("None" in line or "False" in line for line in told)


def test_a_full_context_says_what_to_leave_out() -> None:
    chat, recorder = session(stats=FakeStats(finish_reason="context"))
    chat.handle("Hi")
    assert "/set overflow drop_oldest leaves out the oldest turns" in recorder.of("note")
    recorder.pieces.clear()
    for line in ("/set overflow drop_oldest", "Hi"):
        chat.handle(line)
    assert "leaves out the oldest" not in recorder.of("note")
    assert "/context shows what fills it" in recorder.of("note")
