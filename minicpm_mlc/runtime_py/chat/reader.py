"""From the tokens of an answer to events: its thinking, its text, its calls of tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from minicpm_mlc.prompt.thinking import ThinkSplitter
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget, ThinkEnd
from minicpm_mlc.runtime_py.chat.tool_reader import Found, ToolReader
from minicpm_mlc.runtime_py.events import Reasoning, Scored, Text


class TextReader:
    """Text that goes on from a prompt: all of it is text."""

    def __init__(
        self,
        choice: int,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: str | Sequence[str] | None = None,
    ) -> None:
        self.choice = choice
        self.reasoning_tokens = 0
        self._stops: StopStrings | AnswerStops = StopStrings(stop, tokenizer.hidden)
        self._text = TextStream(tokenizer, prompt_ids)
        self._scores = _Scores()

    @property
    def stop(self) -> str | None:
        """The stop string that came."""
        return self._stops.stop

    def forced(self) -> Sequence[int]:
        """None."""
        return ()

    def feed(self, token: Scored) -> Iterable[Found]:
        """The events that this token completes."""
        piece = self._text.feed(token.token_id) + self._stops.mark(token.token_id)
        self._scores.add(token, len(piece))
        return self._scored(self._read(self._stops.feed(piece)))

    def finish(self) -> Iterable[Found]:
        """What was held back; after a stop string there is nothing."""
        if self.stop is not None:
            return self._scored(self._rest())
        text = self._stops.feed(self._text.finish())
        text += "" if self.stop is not None else self._stops.finish()
        return self._scored([*self._read(text), *self._rest()], last=True)

    def _read(self, text: str) -> list[Found]:
        return [Text(self.choice, text)] if text else []

    def _rest(self) -> list[Found]:
        return []

    def _withheld(self) -> int:
        return self._stops.withheld

    def _scored(self, events: list[Found], last: bool = False) -> list[Found]:
        """The events, with the scores of the tokens whose text is theirs in the last Text."""
        texts = [i for i, event in enumerate(events) if isinstance(event, Text)]
        if texts:
            at = texts[-1]
            scores = self._scores.take(self._withheld())
            events[at] = replace(events[at], tokens=scores)
        elif last and (scores := self._scores.take(self._withheld())):
            events.append(Text(self.choice, "", scores))
        elif any(not isinstance(event, Text) for event in events):
            self._scores.take(self._withheld())
        return events


class ChatReader(TextReader):
    """An assistant's answer: it may begin with a think block, and may call tools. Stop strings end
    the answer, and are only text within the block.
    """

    def __init__(
        self,
        choice: int,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: str | Sequence[str] | None = None,
        opened: bool = False,
        most_thinking: int | None = None,
        tools: ToolReader | None = None,
    ) -> None:
        """`opened`: the prompt ends inside a think block, which takes `most_thinking` tokens at
        most.
        """
        super().__init__(choice, tokenizer, prompt_ids, stop)
        self._stops = AnswerStops(StopStrings(stop, tokenizer.hidden), opened)
        self._splitter = ThinkSplitter(opened)
        budget = None if most_thinking is None else ThinkBudget(most_thinking, opened)
        self._end = ThinkEnd(tokenizer, budget)
        self._tools = tools
        self._answering = False

    def forced(self) -> Sequence[int]:
        """The end of the think block, once its budget is spent."""
        return self._end.forced()

    def feed(self, token: Scored) -> Iterable[Found]:
        """The events that this token completes."""
        self.reasoning_tokens += self._splitter.thinking
        said = self._text.feed(token.token_id)
        self._end.spend(said, self._text.at_border)
        piece = said + self._stops.mark(token.token_id)
        self._scores.add(token, len(piece))
        events = self._read(self._stops.feed(piece))
        if not (self._answering or self._splitter.unsure or self._stops.withheld):
            self._scores.take(0)  # thinking, its markers, and the white space after them
        return self._scored(events)

    def _read(self, text: str) -> list[Found]:
        return self._events(self._splitter.feed(text))

    def _rest(self) -> list[Found]:
        events = self._events(self._splitter.finish())
        return events + (self._tools.finish() if self._tools else [])

    def _events(self, parts: Iterable[tuple[str, str]]) -> list[Found]:
        events: list[Found] = []
        for kind, text in parts:
            if kind == "thinking":
                events.append(Reasoning(self.choice, text))
            else:
                self._answering = True
                events += self._tools.feed(text) if self._tools else [Text(self.choice, text)]
        return events

    def _withheld(self) -> int:
        return self._stops.withheld + (self._tools.withheld if self._tools else 0)


class _Scores:
    """Tokens whose text has not been sent, with its length."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Scored, int]] = []

    def add(self, token: Scored, length: int) -> None:
        if token.logprob is not None:
            self._waiting.append((token, length))

    def take(self, withheld: int) -> tuple[Scored, ...]:
        """The tokens up to those whose text makes up the last `withheld` characters."""
        kept = len(self._waiting)
        while kept and withheld and self._waiting[kept - 1][1] <= withheld:
            withheld -= self._waiting[kept - 1][1]
            kept -= 1
        taken = tuple(token for token, _ in self._waiting[:kept])
        del self._waiting[:kept]
        return taken
