"""Templates that would hang, fill the memory or break the compiler end in one error."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import chat_templates
import pytest
from template_bombs import BOMBS, explode

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.jinja import compile_template, render_template
from minicpm_mlc.prompt.template import ChatTemplate

# of processor time: the tests share their cores
MOST_SECONDS = 2.5
MOST_MB = 200


@pytest.fixture(scope="module")
def exploded() -> dict[str, tuple[float, float, str]]:
    """Name of each bomb -> (seconds, MB that it and those before it took, the error), rendered in
    a process of their own.
    """
    run = [sys.executable, str(Path(__file__).with_name("template_bombs.py"))]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = (line.split(maxsplit=4) for line in lines)
    named = ((row[4].split(": ", 1), row) for row in rows)
    return {name: (float(row[0]), float(row[2]), error) for (name, error), row in named}


@pytest.mark.parametrize("name", BOMBS)
def test_rob_05_a_bomb_is_refused_in_time_and_memory(
    exploded: dict[str, tuple[float, float, str]], name: str
) -> None:
    seconds, megabytes, error = exploded[name]
    assert error.startswith("it")
    assert seconds < MOST_SECONDS
    assert megabytes < MOST_MB


def test_rob_05_an_error_of_a_template_is_cut() -> None:
    refused, _ = explode("{{ raise_exception('a' * 4000000) }}")
    assert len(refused) < 600


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "minicpm4.1"])
def test_rob_05_a_long_conversation_stays_inside_the_budget(name: str) -> None:
    turn = [
        {"role": "user", "content": "一" * 1500},
        {"role": "assistant", "content": "b" * 1500},
    ]
    messages = [*turn * 200, {"role": "user", "content": "再见"}]
    template = ChatTemplate(chat_templates.CHAT[name], bos_token="<s>")
    start = time.process_time()
    text = template.render(messages)
    assert len(text) > 600_000
    assert time.process_time() - start < 1


BROKEN = {
    "break outside of a loop": "{% break %}",
    "one keyword twice": "{{ dict(a=1, a=2) }}",
    "nested loops": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "nested ifs": "{% if true %}" * 150 + "{% endif %}" * 150,
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "lists": "{{ " + "[" * 60000 + " }}",
    "digits": "{{ " + "9" * 5000 + " }}",
    "elif": "{% if a %}" + "{% elif a %}" * 9000 + "{% endif %}",
    "sum": "{{ 1" + "+1" * 30000 + " }}",
    "attributes": "{{ a" + ".b" * 30000 + " }}",
    "comparisons": "{{ 1" + "<2" * 5000 + " }}",
    "infinity": "{{ 1e999 }}",
    "an unknown tag": "{% nonsense %}",
    "no end": "{% for m in messages %}{{ m.content }}",
    "too long": "a" * 200_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_rob_06_what_python_can_not_compile_is_a_template_error(name: str) -> None:
    start = time.process_time()
    with pytest.raises(TemplateError, match=r"^it\b"):
        render_template(compile_template(BROKEN[name], "it"), "it", messages=[])
    assert time.process_time() - start < MOST_SECONDS


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", b"\xff\xfe{{", "not UTF-8"),
        ("tokenizer_config.json", b"[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", b'{"bos_token": 5}', "bos_token is 5"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": [], "template": ""}]}',
            "without a template named 'default'",
        ),
    ],
)
def test_rob_06_damaged_files_are_template_errors(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TemplateError, match=message):
        ChatTemplate.from_folder(tmp_path)


def test_rob_06_half_a_character_in_a_prompt_is_refused() -> None:
    with pytest.raises(TemplateError, match="not text"):
        ChatTemplate("{{ '\ud800' }}").render([{"role": "user", "content": "a"}])
