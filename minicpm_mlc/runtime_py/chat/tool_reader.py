"""Finds calls of tools in an answer while it streams."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm_mlc.prompt.tool_formats.minicpm import THOUGHT
from minicpm_mlc.prompt.tools import Call, Tool, ToolFormat, compact
from minicpm_mlc.runtime_py.chat.text import overlap
from minicpm_mlc.runtime_py.events import Reasoning, Text, ToolArguments, ToolCall

Found = Reasoning | Text | ToolCall | ToolArguments


class ToolReader:
    """Feed pieces of an answer in any sizes, get events. A call is sent once it is whole; what
    can't be read as one stays text. White space before and after a call belongs to it.
    """

    def __init__(
        self, choice: int, tools: Sequence[Tool], form: ToolFormat, most: int | None = None
    ) -> None:
        """`most`: calls that are sent; those after them are left out."""
        self._choice = choice
        self._tools = tools
        self._form = form
        self._left = most
        self._held = ""
        self._state = "text"  # or "call", "thought"
        self._called_last = False  # what came last was a call: white space after it is dropped

    @property
    def withheld(self) -> int:
        """Characters at the end that are held back."""
        return len(self._held)

    def feed(self, text: str) -> list[Found]:
        """The events that this text completes."""
        self._held += text
        events: list[Found] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> list[Found]:
        """What was held back, when no more text comes: a call whose last marker is missing too."""
        held, self._held = self._held, ""
        if self._state == "call":
            calls = self._form.parse(held.strip() + self._form.closing, self._tools)
            return self._called(calls) if calls else [Text(self._choice, held)]
        if self._state == "thought":
            held = held.removeprefix(THOUGHT[0]).strip()
            return [Reasoning(self._choice, held)] if held else []
        events: list[Found] = []
        self._release(held, events)
        return events

    def _step(self, events: list[Found]) -> bool:
        """Takes one part off what is held; False if that needs more text."""
        return {"text": self._text, "call": self._call, "thought": self._thought}[self._state](
            events
        )

    def _text(self, events: list[Found]) -> bool:
        openings = {self._form.opening: "call"}
        if self._form.name == "minicpm":
            openings[THOUGHT[0]] = "thought"
        at, opening = min((self._find(o), o) for o in openings)
        if at < len(self._held):
            self._state = openings[opening]
            self._release(self._held[:at].rstrip(), events)
            self._held = self._held[at:]
            return True
        keep = max(overlap(self._held, opening) for opening in openings)
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        self._release(shown, events)
        return False

    def _find(self, opening: str) -> int:
        at = self._held.find(opening)
        return at if at >= 0 else len(self._held)

    def _release(self, text: str, events: list[Found]) -> None:
        text = text.lstrip() if self._called_last else text
        if text:
            self._called_last = False
            events.append(Text(self._choice, text))

    def _call(self, events: list[Found]) -> bool:
        end = self._held.find(self._form.closing)
        if end < 0:
            return False
        end += len(self._form.closing)
        whole, self._held = self._held[:end], self._held[end:]
        calls = self._form.parse(whole, self._tools)
        if calls:
            events += self._called(calls)
        else:
            self._release(whole, events)
        self._state = "text"
        return True

    def _thought(self, events: list[Found]) -> bool:
        thought, end, rest = self._held.partition(THOUGHT[1])
        if not end:
            return False
        thought = thought.removeprefix(THOUGHT[0]).strip()
        if thought:
            events.append(Reasoning(self._choice, thought))
        self._held = rest.lstrip()
        self._state = "text"
        self._called_last = True
        return True

    def _called(self, calls: Sequence[Call]) -> list[Found]:
        self._called_last = True
        events: list[Found] = []
        calls = calls[: self._left]
        self._left = self._left and self._left - len(calls)
        for call in calls:
            events += [
                ToolCall(self._choice, call.name),
                ToolArguments(self._choice, compact(call.arguments)),
            ]
        return events
