"""A chat template, parsed and rendered."""

from __future__ import annotations

from pathlib import Path

from checkpoints import CHAT_TEMPLATE

from minicpm_mlc.prompt.template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <|im_end|>"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "More /no_think"},
]
PARTS = [
    CHAT_TEMPLATE,
    "{% set ns = namespace(s='ab', n=2) %}{% for i in range(5) %}"
    "{% set ns.s = ns.s ~ ns.s + '%5d' % i %}{% endfor %}{{ ns.s | upper | trim | center(20) }}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}{{ bos_token }}",
    "{{ messages | map(attribute='role') | join(',') }}{{ messages[1:] | length ** 2 }}",
    "{{ '{:>5}'.format('a') }}{{ 'a,b'.split(',') | last }}{{ strftime_now('%Y') }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{% break %}{% endfor %}",
    "{% generation %}a{% endgeneration %}{{ raise_exception('no') if messages | length > 9 }}",
    "{{ {'a': [1, 2]} | tojson }}{{ dict(a=1).items() | list }}{{ 'x' * 3 }}{{ [1] * 3 }}",
    "{% set a = messages | selectattr('role', 'eq', 'user') | list %}{{ a[0]['content'][::-1] }}",
]


def seeds() -> list[bytes]:
    return [part.encode() for part in PARTS]


def run(data: bytes, folder: Path) -> None:
    """Bytes as chat_template.jinja, the way that a checkpoint brings them."""
    (folder / "chat_template.jinja").write_bytes(data)
    template = ChatTemplate.from_folder(folder)
    for messages in (MESSAGES[1:2], MESSAGES):
        template.render(messages)
