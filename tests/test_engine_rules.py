"""engine.json's chat rules: what they make is what the template makes, or they are refused."""

from __future__ import annotations

import chat_templates
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import sentencepiece
from tokenizers import Tokenizer

from minicpm_mlc.compile.chat_rules import ChatRules, chat_rules
from minicpm_mlc.prompt.template import ROLES, ChatTemplate

FITS = {
    "CHATML": set(ROLES),
    "MINICPM41": set(ROLES),
    "QWEN3": {"system", "user", "assistant"},
    "PHI4": {"system", "user", "assistant"},
    "DEEPSEEK": {"user", "assistant"},
    "GEMMA": {"user", "assistant"},
}
REFUSED = {
    "LLAMA3": "writes the date",
    "SMOLLM3": "writes the date",
    "MISTRAL": "comes out otherwise",
    "GRANITE": "comes out otherwise",
    "PYTHON": "left out or moved",
    "TOKENS": "left out or moved",
}
TOKENIZER = sentencepiece()


def template(name: str) -> ChatTemplate:
    return ChatTemplate(getattr(chat_templates, name), "<s>", "</s>", None)


def rules_of(name: str, tokenizer: Tokenizer = TOKENIZER) -> ChatRules:
    made = chat_rules(template(name), tokenizer)
    assert "refused" not in made, made
    return ChatRules(**made)


RULES = {name: rules_of(name) for name in FITS}
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(ROLES),
        "content": st.one_of(
            st.text(max_size=20),
            st.sampled_from(["", " a ", "<think>", "x</think>\n y", "{{ 1 }}"]),
        ),
    }
)


@given(st.sampled_from(sorted(FITS)), st.lists(MESSAGE, min_size=1, max_size=6), st.data())
def test_rules_make_what_the_template_makes(name, messages, data):
    rules, own = RULES[name], template(name)
    think = data.draw(st.sampled_from([None, True, False] if own.can_switch_thinking else [None]))
    messages = [m for m in messages if m["role"] in FITS[name]] or [{"role": "user", "content": ""}]
    made = rules.render(messages, think)
    if made is not None:
        assert made == own.rendered(messages, think)


@pytest.mark.parametrize("name", FITS)
def test_which_roles_a_template_has_rules_for(name):
    assert set(RULES[name].between) == FITS[name]
    assert "user" in RULES[name].end


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_do_more_are_refused_by_what_they_do(name):
    assert REFUSED[name] in chat_rules(template(name), TOKENIZER)["refused"]


def test_a_template_that_takes_long_or_refuses_all_is_refused(monkeypatch):
    raising = ChatTemplate("{{ raise_exception('no') }}", "<s>", "</s>", None)
    assert "no" in chat_rules(raising, TOKENIZER)["refused"]
    monkeypatch.setattr("minicpm_mlc.compile.chat_rules.SECONDS", -1.0)
    assert "too long" in chat_rules(template("CHATML"), TOKENIZER)["refused"]
