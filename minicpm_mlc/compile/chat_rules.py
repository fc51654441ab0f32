"""What native/engine needs to chat without jinja2: the texts that a chat template puts around
messages, found out by rendering and checked against the template on generated conversations.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

from tokenizers import Tokenizer

from minicpm_mlc.base.errors import BundleError, TemplateError
from minicpm_mlc.prompt.prompt_tokens import beginning
from minicpm_mlc.prompt.template import ROLES, ChatTemplate, Message, switch_name

# Tried in this order: a template may treat a tool's message, or an answer that ends a conversation,
# by other rules than texts around it.
ROLES_AND_LAST = (
    (ROLES, ROLES),
    (ROLES, ("user", "tool")),
    (ROLES[:3], ROLES[:3]),
    (ROLES[:3], ("user",)),
    (ROLES[1:3], ("user",)),
)
MARK = "\ue000{}\ue001"  # stands for a message; no template writes these characters
MORE = "the chat template does more than put texts around messages"
SPACES = " \n"  # around a message, to see whether the template strips it
CONVERSATIONS = 150  # that are generated to check rules with
LONGEST = 7  # messages
SECONDS = 10.0  # of rendering; published templates take 0.1
TEXTS = (
    "Hello",
    "",
    "  spaces  ",
    "\n\nlines\n",
    "你好 émoji 😀",
    "<|im_end|>\n<|im_start|>user\n",
    "{{ messages }}",
    "<think>\nno\n</think>\n\nyes",
    "</think>",
    "<tool_response>\n{}\n</tool_response>",
    "a" * 300,
    "/think",
    "tool",
)


@dataclass(frozen=True)
class ChatRules:
    """The texts of a chat template. `start`: before a first message, by its role; `between`: by the
    role before and the role behind; `end`: behind the last message, by its role, and by what the
    thinking switch says ("default", "think", "no_think"). `strips`: a message loses the white space
    around it. `takes_markers`: a user's final /think or /no_think is taken out, and the last one's
    is the switch. `beginning`: ids before the prompt, unless it has them.
    """

    can_switch_thinking: bool
    takes_markers: bool
    strips: bool
    beginning: list[int]
    start: dict[str, str]
    between: dict[str, dict[str, str]]
    end: dict[str, dict[str, str]]

    @property
    def switches(self) -> tuple[bool | None, ...]:
        """What the thinking switch can say."""
        return (None, True, False) if self.can_switch_thinking else (None,)

    def render(self, messages: Sequence[Message], think: bool | None) -> str | None:
        """What they make of prepared messages; None where they have no text for a role's place."""
        roles = [message["role"] for message in messages]
        texts = [message["content"] for message in messages]
        try:
            parts = [
                self.start[roles[0]],
                *(self.between[one][other] for one, other in pairwise(roles)),
                self.end[roles[-1]][switch_name(think)],
            ]
        except KeyError:
            return None
        texts = [text.strip() for text in texts] if self.strips else texts
        return "".join(a + b for a, b in zip(parts, [*texts, ""], strict=True))


Render = Callable[[list[Message], bool | None], str]  # ChatTemplate.rendered, for some time


class Misfit(Exception):
    """Why no texts around messages do what a template does."""


def chat_rules(template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, Any]:
    """The rules as engine.json has them, or {"refused": why nobody can chat by them}."""
    if missing := template.missing_tokens(tokenizer):
        return {"refused": missing}
    if "strftime_now" in template.source:
        return {"refused": "the chat template writes the date, which this engine doesn't"}
    try:
        return asdict(_fitting(template, tokenizer))
    except (Misfit, TemplateError, BundleError) as misfit:
        return {"refused": f"{MORE}: {misfit!s:.300}"}


def _fitting(template: ChatTemplate, tokenizer: Tokenizer) -> ChatRules:
    """The rules of as many roles as can be. Raises Misfit, TemplateError or BundleError."""
    end = time.monotonic() + SECONDS

    def render(messages: list[Message], think: bool | None) -> str:
        if time.monotonic() > end:
            raise Misfit("it takes too long to render")
        return template.rendered(messages, think)

    strips = _strips(render)
    first = template.beginning(tokenizer)
    why = Misfit()
    for roles, last in ROLES_AND_LAST:
        texts = {role: {} for role in roles}, {role: {} for role in last}
        rules = ChatRules(
            template.can_switch_thinking, template.takes_markers, strips, first, {}, *texts
        )
        try:
            _derive(rules, render)
            return _checked(rules, render, last)
        except Misfit as misfit:
            why = misfit
    raise why


def _derive(rules: ChatRules, render: Render) -> None:
    """Fills in the texts, from short conversations. Raises Misfit."""
    for path in _paths([*rules.between]):
        for think in rules.switches:
            texts = _around(render, path, think)
            if texts is None:
                continue
            first, *between, end = texts
            _keep(rules.start, path[0], first)
            for (one, other), text in zip(pairwise(path), between, strict=True):
                _keep(rules.between[one], other, text)
            if path[-1] in rules.end:
                _keep(rules.end[path[-1]], switch_name(think), end)


def _paths(roles: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Short conversations, by their roles, that have every pair of roles in them; each ends in a
    user's message, or in what is asked about.
    """
    for role in roles:
        yield (role,)
    for pair in product(roles, roles):
        yield pair
        yield (*pair, "user")
        yield ("user", *pair)
        yield ("user", *pair, "user")


def _around(render: Render, path: Sequence[str], think: bool | None) -> list[str] | None:
    """The texts before, between and behind the messages of a conversation; None where the template
    refuses it.
    """
    marks = [MARK.format(i) for i in range(len(path))]
    messages = [{"role": role, "content": mark} for role, mark in zip(path, marks, strict=True)]
    try:
        rest = render(messages, think)
    except TemplateError:
        return None
    texts = []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise Misfit(f"of {', '.join(path)} a message is left out or moved")
        texts.append(before)
    if "\ue000" in rest:
        raise Misfit(f"of {', '.join(path)} a message is written twice")
    return [*texts, rest]


def _keep(texts: dict[str, str], key: str, text: str) -> None:
    """One place has one text."""
    if texts.setdefault(key, text) != text:
        raise Misfit(f"it writes {texts[key]!r:.60} or {text!r:.60} beside {key}")


def _strips(render: Render) -> bool:
    mark = MARK.format(0)
    spaced = SPACES + mark + SPACES[::-1]
    text = render([{"role": "user", "content": spaced}], None)
    return spaced not in text


def _checked(rules: ChatRules, render: Render, last: Sequence[str]) -> ChatRules:
    """The rules, once they make what the template makes. Raises Misfit."""
    draw = random.Random(0)
    checked = 0
    for number in range(CONVERSATIONS):
        roles = _some_roles(draw, [*rules.between], last, 1 + number % LONGEST)
        messages = [{"role": role, "content": draw.choice(TEXTS)} for role in roles]
        think = draw.choice(rules.switches)
        by_rules = rules.render(messages, think)
        if by_rules is None:
            continue
        checked += 1
        if _rendered(render, messages, think) != by_rules:
            raise Misfit(f"a conversation of {', '.join(roles)} comes out otherwise")
    if "user" not in rules.start or checked < CONVERSATIONS // 5:
        raise Misfit("it takes few conversations")
    return rules


def _some_roles(
    draw: random.Random, roles: Sequence[str], last: Sequence[str], length: int
) -> list[str]:
    """Of a conversation: any, or user and assistant in turn, as some templates insist on."""
    if draw.random() < 0.5:
        return ["user", *["assistant", "user"] * (length // 2)]
    return [draw.choice(roles) for _ in range(length - 1)] + [draw.choice(last)]


def _rendered(render: Render, messages: list[Message], think: bool | None) -> str | None:
    try:
        return render(messages, think)
    except TemplateError:
        return None


def text_beginning(tokenizer: Tokenizer, bos_token_id: int | None) -> list[int]:
    """Ids before a text that is no chat: BOS, or none."""
    return beginning(tokenizer)[:1] if bos_token_id is not None else []
