"""An answer as pieces of its text."""

from __future__ import annotations

from collections.abc import Sequence

from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings, TextStream
from minicpm_mlc.runtime_py.chat.think_budget import ThinkBudget, ThinkEnd
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
        self._text = TextStream(tokenizer, prompt_ids)
        self._stops = stops
        self._end = ThinkEnd(tokenizer, budget)

    @property
    def stop(self) -> str | None:
        """The stop string that came."""
        return self._stops.stop

    def forced(self) -> Sequence[int]:
        """The end of the think block, once its budget is spent."""
        return self._end.forced()

    def feed(self, token: Scored) -> list[str]:
        """The text that can be shown now."""
        said = self._text.feed(token.token_id)
        self._end.spend(said, self._text.at_border)
        return _shown(self._stops.feed(said + self._stops.mark(token.token_id)))

    def finish(self) -> list[str]:
        """What was held back; nothing after a stop string."""
        if self.stop is not None:
            return []
        text = self._stops.feed(self._text.finish())
        return _shown(text if self.stop is not None else text + self._stops.finish())


def _shown(text: str) -> list[str]:
    return [text] if text else []
