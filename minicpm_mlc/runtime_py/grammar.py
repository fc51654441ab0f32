"""Grammars that an answer has to follow: JSON schemas and calls of tools, by llguidance."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.base.installed import pip_install
from minicpm_mlc.prompt.thinking import CLOSE, OPEN
from minicpm_mlc.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from minicpm_mlc.prompt.template import Prompt

THOUGHT = f'thought[suffix="{CLOSE}"]: /(.|\\n)*/\n'
GAP = "GAP: /[ \\n]{0,4}/\n"


class Grammars:
    """Grammars over one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Collection[int], vocab_size: int
    ) -> None:
        """Raises SamplingError where llguidance is not installed."""
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise SamplingError(
                f"schemas and forced tool calls need llguidance: {pip_install('serve')}"
            ) from None
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            tokenizer.raw.to_str(), n_vocab=vocab_size, eos_token=sorted(eos_token_ids)
        )

    def start(self, grammar: str) -> Grammar:
        """A grammar at its beginning. Raises SamplingError for one that can't be followed, with
        what it doesn't know.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            said = matcher.get_error().splitlines()[0].split("failed to compile JSON schema: ")[-1]
            raise SamplingError(f"the schema can't be enforced: {said:.300}")
        return Grammar(matcher, self._vocab_size)


class Grammar:
    """What may come next in one answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._size = vocab_size

    def copy(self) -> Grammar:
        """The same at the same place, to go another way. Much quicker than to begin anew."""
        return Grammar(self._matcher.deep_copy(), self._size)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits float32 [vocab], -inf where a token can't follow."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise SamplingError(f"the grammar fails: {self._matcher.get_error():.200}")
        allowed = np.unpackbits(words, count=self._size, bitorder="little").view(bool)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token_id: int) -> None:
        """Goes on by a token; one that can't follow ends the grammar's hold."""
        self._matcher.consume_token(token_id)


def answer_grammar(prompt: Prompt, body: str, may_think: bool) -> str:
    """An answer whose text is the rule `body`: after the think block, if there is one."""
    if prompt.thinking:
        return f"start: thought GAP body\n{THOUGHT}{GAP}{body}"
    if may_think:
        return f'start: ("{OPEN}" thought GAP)? body\n{THOUGHT}{GAP}{body}'
    return f"start: body\n{body}"
