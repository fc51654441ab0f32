"""An answer as pieces of its text."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream
from minicpm_mlc.runtime_py.chat.think_budget import CLOSING, ThinkBudget
from minicpm_mlc.runtime_py.events import Scored


class Pieces:
    """Reads tokens into text up to a stop string. A spent budget closes the think block."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stops: StopStrings | AnswerStops,
        budget: ThinkBudget | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, prompt_ids)
        self._stops = stops
        self._budget = budget
        self._close = bool(budget and budget.start())

    @property
    def stop(self) -> str | None:
        """The stop string that came."""
        return self._stops.stop

    def forced(self) -> Sequence[int]:
        """The end of the think block, once its budget is spent."""
        if not self._close:
            return ()
        self._close = False
        self._budget = None
        return self._tokenizer.encode_middle(CLOSING)

    def feed(self, token: Scored) -> list[str]:
        """The text that can be shown now."""
        said = self._text.feed(token.token_id)
        if self._budget:
            self._close = self._budget.spend(said, self._text.at_border)
        return _shown(self._stops.feed(said + self._stops.mark(token.token_id)))

    def finish(self) -> list[str]:
        """What was held back; nothing after a stop string."""
        if self.stop is not None:
            return []
        text = self._stops.feed(self._text.finish())
        return _shown(text if self.stop is not None else text + self._stops.finish())


def _shown(text: str) -> list[str]:
    return [text] if text else []
