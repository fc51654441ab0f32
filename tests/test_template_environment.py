"""Chat templates render as `transformers` renders them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import chat_templates
import pytest
import tiny_tokenizers
from tokenizers import processors

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.template import ChatTemplate
from minicpm_mlc.prompt.tokenizer import Tokenizer

CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "<|im_end|>", "__type": "AddedToken", "special": True},
    "unk_token": "<unk>",
    "pad_token": "</s>",
    "image_token": "<|im_start|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "mask_token": None,
}
USER = {"role": "user", "content": " What is 1 + 2? \n"}
ANSWER = {"role": "assistant", "content": "\n3, of course. "}
CHATS = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Be brief. /no_think "}, USER],
    "three turns": [USER, ANSWER, {"role": "user", "content": ""}, ANSWER, USER],
    "Chinese": [{"role": "user", "content": "你好 '\"\\ <b>é</b>"}, ANSWER, USER],
}


def write(folder: Path, template: str, config: dict[str, Any] = CONFIG) -> Path:
    tiny_tokenizers.sentencepiece().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@functools.cache
def auto_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer


def rendered_there(folder: Path, chat: list[dict[str, str]], **options: Any) -> str:
    tokenizer = auto_tokenizer().from_pretrained(str(folder))
    return tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, **options
    )


@pytest.mark.parametrize("name", chat_templates.CHAT)
def test_templates_render_as_in_transformers(tmp_path: Path, name: str) -> None:
    write(tmp_path, chat_templates.CHAT[name])
    template = ChatTemplate.from_folder(tmp_path)
    for chat in CHATS.values():
        assert template.render(chat) == rendered_there(tmp_path, chat)
        if template.can_switch_thinking:
            for think in (True, False):
                there = rendered_there(tmp_path, chat, enable_thinking=think)
                assert template.render(chat, think=think) == there


BROKEN = [
    "{{ nothing.at.all }}",
    "{{ nothing + 'a' }}",
    "{{ 'a' + 1 }}",
    "{{ messages | tojson(colour=1) }}",
    "{{ tools | length }}",
    "{{ raise_exception('no') }}",
    "{% set _ = messages.append(1) %}",
    "{% set ns = namespace(_private=1) %}",
    "{% set ns = namespace() %}{% set ns._private = 1 %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ '{0.__class__.a}'.format('') }}",
    "{{ 'a'.format.__self__ }}{{ 'a'.format.func() }}",
    "{{ (namespace | attr('__init__')).__globals__ }}",
    "{{ dict.mro() }}",
    "{% break %}",
    "{% include 'other' %}",
    "{{ nothing | tojson }}",
]


@pytest.mark.parametrize("source", BROKEN)
def test_what_transformers_refuses_is_refused(tmp_path: Path, source: str) -> None:
    write(tmp_path, source)
    with pytest.raises(Exception):  # noqa: B017  any of jinja2's and Python's
        rendered_there(tmp_path, [USER])
    with pytest.raises(TemplateError):
        ChatTemplate.from_folder(tmp_path).render([USER])


def test_case_18_generation_tag_has_no_effect(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    chat = [USER, ANSWER, USER]
    write(tmp_path, source)
    assert ChatTemplate(source).render(chat) == "".join(m["content"] for m in chat)
    assert ChatTemplate(source).render(chat) == rendered_there(tmp_path, chat)


def test_case_19_tools_and_documents_are_none() -> None:
    source = (
        "{% if tools is not none %}You may call: {{ tools | tojson }}{% endif %}"
        "{% if documents is not none %}DOCS{% endif %}ok"
    )
    assert ChatTemplate(source).render([USER]) == "ok"


def test_case_19_additional_special_tokens_have_their_name(tmp_path: Path) -> None:
    write(tmp_path, "{{ additional_special_tokens[1] }}{{ boi_token }}")
    extra = CONFIG | {"extra_special_tokens": {"boi_token": "<boi>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(extra))
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<|im_end|><boi>"


def test_tokens_of_an_older_checkpoint_stand_in_special_tokens_map(tmp_path: Path) -> None:
    write(tmp_path, "{{ bos_token }}{{ pad_token }}", {"bos_token": "<s>"})
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "</s>"}})
    )
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<s></s>"
    assert rendered_there(tmp_path, [USER]) == "<s></s>"


def test_rob_06_a_token_that_is_a_number_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "{{ bos_token }}", {"bos_token": 5})
    with pytest.raises(TemplateError, match="bos_token is 5, expected a text"):
        ChatTemplate.from_folder(tmp_path)


PROCESSORS = {
    "none": None,
    "no BOS": processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]),
    "BOS": processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    ),
    "byte level and another BOS": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
            ),
        ]
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("says", [None, True, False])
@pytest.mark.parametrize("bos", ["<s>", None])
def test_bos_is_put_where_transformers_puts_it(
    tmp_path: Path, name: str, says: bool | None, bos: str | None
) -> None:
    raw = tiny_tokenizers.sentencepiece()
    if PROCESSORS[name] is not None:
        raw.post_processor = PROCESSORS[name]
    raw.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos}
    config |= {} if says is None else {"add_bos_token": says}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    there = auto_tokenizer().from_pretrained(str(tmp_path))
    here = Tokenizer.from_folder(tmp_path, 1, 1000)
    assert here.encode("hello world") == there("hello world").input_ids
    prompt = ChatTemplate.from_folder(tmp_path).prompt(here.raw, [USER])
    assert prompt.ids == there(prompt.text).input_ids


def test_case_44_a_model_without_bos_gets_none_before_a_prompt(tmp_path: Path) -> None:
    raw = tiny_tokenizers.sentencepiece()
    raw.post_processor = PROCESSORS["BOS"]
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": None}))
    assert Tokenizer.from_folder(tmp_path, None, 1000).encode("hello")[0] != 1
    assert ChatTemplate.from_folder(tmp_path).prompt(raw, [USER]).ids[0] != 1
