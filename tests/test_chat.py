from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from chat_templates import CHAT, DEEPSEEK
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.template import CHATML, ChatTemplate, control_tokens
from minicpm_mlc.prompt.thinking import as_history
from minicpm_mlc.runtime_py.chat.session import ChatSession

EMPTY_BLOCK = "<think>\n\n</think>\n\n"
THINKING = CHATML + "{% if enable_thinking is false %}{{ '" + EMPTY_BLOCK + "' }}{% endif %}"
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    model = models.BPE(
        vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


TOKENIZERS = [byte_level_tokenizer(), sentencepiece_tokenizer()]


def chat_template(source: str = CHATML, **options) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="<|im_end|>", **options)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    names = {i: text for text, i in control_tokens(tokenizer).items()}
    return [names[i] for i in ids if i in names]


def test_chatml_is_the_published_form() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ask("Hi")]
    assert chat_template().render(messages) == (
        "<|im_start|>system\nBe "
        "brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("source", [CHATML, "{{ bos_token }}" + CHATML])
def test_bos_comes_exactly_once(tokenizer: Tokenizer, source: str) -> None:
    ids = chat_template(source).prompt(tokenizer, ask("Hi")).ids
    assert controls(tokenizer, ids) == ["<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_no_bos_where_the_checkpoint_says_so() -> None:
    ids = chat_template(add_bos=False).prompt(TOKENIZERS[0], ask("Hi")).ids
    assert "<s>" not in controls(TOKENIZERS[0], ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_harmless_prompt_is_encoded_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    prompt = chat_template().prompt(tokenizer, ask("two  words\nand a line"))
    assert prompt.ids == tokenizer.encode("<s>" + prompt.text, add_special_tokens=False).ids


FRAGMENTS = [*SPECIALS, "<|im_", "end|>", "<", "s>", " ", "\n", "hi", "é", "\ue000", "0:"]
CONTENT = st.lists(st.sampled_from(FRAGMENTS), max_size=8)
SOURCES = st.sampled_from(
    [
        CHATML,
        CHATML.replace("message.content", "(message.content | trim)"),
        CHATML.replace(
            "message.content", "(message.content | upper | lower)"
        ),  # content can't be found again
    ]
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.sampled_from(TOKENIZERS), SOURCES, CONTENT.map("".join), CONTENT.map("".join))
def test_a_message_can_not_fake_a_turn(
    tokenizer: Tokenizer, source: str, first: str, second: str
) -> None:
    turns = [("system", "x"), ("user", first), ("assistant", second), ("user", first)]
    prompt = chat_template(source).prompt(
        tokenizer, [{"role": role, "content": text} for role, text in turns]
    )
    assert controls(tokenizer, prompt.ids) == [
        "<s>",
        *["<|im_start|>", "<|im_end|>"] * 4,
        "<|im_start|>",
    ]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CONTENT.map("".join))
def test_neutralised_text_reaches_the_model_unchanged(text: str) -> None:
    tokenizer = TOKENIZERS[0]
    prompt = chat_template().prompt(tokenizer, ask(text))
    assert tokenizer.decode(prompt.ids, skip_special_tokens=False) == "<s>" + prompt.text
    assert not tokenizer.encode_special_tokens


def test_markers_switch_thinking_for_their_turn() -> None:
    template = chat_template(THINKING)
    assert template.render(ask("Add 1 and 2 /no_think")) == template.render(
        ask("Add 1 and 2"), think=False
    )
    assert template.render(ask("Add 1 and 2 /no_think")).endswith(EMPTY_BLOCK)
    assert not template.render(ask("Add 1 and 2 /think"), think=False).endswith(EMPTY_BLOCK)
    earlier = [*ask("a /no_think"), {"role": "assistant", "content": "b"}, *ask("c")]
    assert "/no_think" not in template.render(earlier) and not template.render(earlier).endswith(
        EMPTY_BLOCK
    )


def test_marker_inside_a_word_or_sentence_is_text() -> None:
    template = chat_template(THINKING)
    for text in ("what does /no_think do?", "see docs/no_think", "rethink"):
        assert f"\n{text}<|im_end|>" in template.render(ask(text))


def test_markers_stay_where_the_template_handles_them_or_can_not_think() -> None:
    assert "hi /no_think<|im_end|>" in chat_template().render(ask("hi /no_think"))
    assert "hi /no_think<|im_end|>" in chat_template(THINKING + "{# /no_think #}").render(
        ask("hi /no_think")
    )


def test_think_without_a_switch_is_refused() -> None:
    with pytest.raises(TemplateError, match="no thinking switch"):
        chat_template().render(ask("hi"), think=True)


def test_past_thinking_is_not_in_the_prompt() -> None:
    messages = [
        *ask("a"),
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nb"},
        *ask("c"),
    ]
    text = chat_template().render(messages)
    assert "secret" not in text and "assistant\nb<|im_end|>" in text


def test_prompt_says_when_the_template_opened_the_block() -> None:
    assert chat_template(CHATML + "{{ '<think>\n' }}").prompt(TOKENIZERS[0], ask("a")).thinking
    assert not chat_template().prompt(TOKENIZERS[0], ask("a")).thinking


ANSWERS = [
    "Keep this: </think> closes.",
    "steps go in <think>x</think>, then the answer",
    "`</think>` ends what `<think>` began",
]


def history(answer: str) -> list[dict[str, str]]:
    return [*ask("q"), {"role": "assistant", "content": answer}, *ask("r")]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", [n for n in CHAT if n not in ("tokens", "python", "deepseek")])
def test_case_24_literal_close_tag_keeps_the_history(name: str, answer: str) -> None:
    text = chat_template(CHAT[name]).render(history(answer))
    assert answer in text
    assert chat_template(CHAT[name]).prompt(TOKENIZERS[0], history(answer)).text == text


@pytest.mark.parametrize("answer", [*ANSWERS, "<think> is a tag."])
@pytest.mark.parametrize("source", [CHATML, DEEPSEEK])
def test_case_24_what_a_session_showed_stays_whole(source: str, answer: str) -> None:
    assert answer in chat_template(source).render(history(as_history(answer)))


def test_case_24_messages_of_every_private_character_are_refused() -> None:
    answer = "".join(map(chr, range(0xE000, 0xF900)))
    assert answer in chat_template().render(history(answer))
    with pytest.raises(TemplateError, match="every private character"):
        chat_template().render(history(answer + " </think>"))


def test_case_24_a_saved_session_keeps_its_answers(tmp_path: Path) -> None:
    engine = FakeEngine(events=[("answer", "Keep this: </think>"), ("answer", " closes.")])
    session = ChatSession(engine, lambda *_: None)  # type: ignore[arg-type]
    session.ask("q")
    session.handle(f"/save {tmp_path / 'chat.json'}")
    session.handle("/reset")
    session.handle(f"/load {tmp_path / 'chat.json'}")
    for source in (CHATML, DEEPSEEK):
        text = chat_template(source).render([*session.messages, *ask("r")])
        assert "Keep this: </think> closes.<|im_end|>" in text


def test_case_24_thinking_that_the_template_opened_is_cut() -> None:
    said = history("secret\n</think>\n\nb")
    text = chat_template(DEEPSEEK).render(said)
    assert "secret" not in text and "<|Assistant|>b<|im_end|>" in text
    assert "secret" in chat_template(CHATML).render(said)
    opening = CHATML + "{% if enable_thinking %}<think>\n{% endif %}"
    assert "secret" not in chat_template(opening).render(said, think=True)
    assert "secret" in chat_template(opening).render(said, think=False)
    marked = [*ask("q /think"), *said[1:]]
    assert "secret" not in chat_template(opening).render(marked)


def test_case_31_chatml_is_not_written_where_its_tokens_are_not(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    plain = Tokenizer(models.BPE({"a": 0, "<s>": 1}, []))
    template = ChatTemplate.from_folder(tmp_path)
    with pytest.raises(
        TemplateError, match=r"no chat template.*use generate, or add chat_template"
    ):
        template.prompt(plain, ask("a"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert ChatTemplate.from_folder(tmp_path).prompt(plain, ask("a")).ids == [0]
    assert template.prompt(TOKENIZERS[0], ask("a")).ids


def test_case_81_rendering_does_not_show_in_the_tokens_of_another_thread() -> None:
    tokenizer = byte_level_tokenizer()
    text = "a<|im_end|>b"
    want = tokenizer.encode(text).ids
    wrong = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            wrong.extend(i for i in [tokenizer.encode(text).ids] if i != want)

    thread = threading.Thread(target=count)
    thread.start()
    template = chat_template()
    for _ in range(100):
        template.prompt(tokenizer, ask("what is <|im_end|>? " * 60))
    stop.set()
    thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "line 2"),
        ("a\n{{ nothing.at.all }}", "line 2: 'nothing' is undefined"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ 1 / 0 }}", "line 1: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "line 1"),
        ("{{ 'a' * 99999999999 }}", "line 1"),
        ("{{ 9 ** 999999999 }}", "line 1"),
        ("{% for i in range(99999999) %}{% endfor %}", "line 1"),
        ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "more than"),
        ("{% set _ = messages.append(1) %}", "line 1"),
    ],
)
def test_a_bad_template_is_one_error_with_its_line(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        chat_template(source).render(ask("hi"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        (["hi"], "message 0"),
        ([{"role": "user"}], "exactly 'role' and 'content'"),
        ([{"role": "user\n", "content": ""}], "is none of"),
        ([{"role": "user", "content": None}], "must be a string, got NoneType"),
    ],
)
def test_malformed_messages_are_refused(messages: list, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        chat_template().render(messages)


def test_template_file_goes_before_the_config(tmp_path: Path) -> None:
    template = "config {{ bos_token }}{{ eos_token }}"
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_folder(tmp_path).render(ask("")) == "config <s></s>"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.from_folder(tmp_path).render(ask("")) == "file"


def test_named_templates_take_default(tmp_path: Path) -> None:
    names = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": names}))
    assert ChatTemplate.from_folder(tmp_path).render(ask("")) == "yes"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": names[:1]}))
    with pytest.raises(TemplateError, match="without a template named 'default'"):
        ChatTemplate.from_folder(tmp_path)


def test_damaged_config_is_named(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path).source == CHATML
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.from_folder(tmp_path)
