"""What may come next: biases, no early end, grammars."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_tokenizers import sentencepiece

from minicpm_mlc.base.errors import SamplingError
from minicpm_mlc.prompt.template import Prompt
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.prompt.tools import json_rule
from minicpm_mlc.runtime_py.constraints import Bias, Chain, NoEnd
from minicpm_mlc.runtime_py.grammar import Grammars, answer_grammar
from minicpm_mlc.runtime_py.scores import scores

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}},
    "required": ["a"],
    "additionalProperties": False,
}
EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(sentencepiece(), 1, True)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, [EOS], tokenizer.raw.get_vocab_size())


def test_biases_are_added_and_the_logits_are_not_changed():
    logits = np.zeros(5, np.float32)
    assert Bias({1: 2.5, 4: -100}).apply(logits).tolist() == [0, 2.5, 0, 0, -100]
    assert not logits.any()


def test_no_end_before_its_time():
    logits = np.zeros(3, np.float32)
    once = NoEnd([EOS], 1)
    assert once.apply(logits).tolist() == [0, 0, -np.inf]
    once.accept(0)
    assert once.apply(logits) is logits
    never = NoEnd([EOS], None)
    never.accept(0)
    assert never.apply(logits)[EOS] == -np.inf


def test_a_chain_applies_and_tells_all():
    chain = Chain([Bias({0: 1.0}), NoEnd([EOS], 1)])
    logits = np.zeros(3, np.float32)
    assert chain.apply(logits).tolist() == [1, 0, -np.inf]
    chain.accept(1)
    assert chain.apply(logits).tolist() == [1, 0, 0]


def written(tokenizer: Tokenizer, grammars: Grammars, grammar: str, wishes: str) -> str:
    """What is said where each next character is as wished, or else the lowest token allowed."""
    held = grammars.start(grammar)
    said: list[int] = []
    for _ in range(200):
        logits = -np.arange(tokenizer.raw.get_vocab_size(), dtype=np.float32)
        left = wishes[len(tokenizer.decode(said)) :]
        for i in range(len(logits)):
            piece = tokenizer.token_bytes(i).decode("utf-8", "replace")
            logits[i] += 1e6 * bool(piece and left.startswith(piece))
        token = int(held.apply(logits).argmax())
        if token == EOS:
            return tokenizer.decode(said)
        held.accept(token)
        said.append(token)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("wishes", ['{"a": 22}', '{"a":1}', "[]", "never JSON", '{"a": 3}'])
def test_an_answer_follows_its_schema_whatever_the_model_would_say(tokenizer, grammars, wishes):
    grammar = answer_grammar(Prompt("", [], False), f"body: {json_rule(SCHEMA)}\n", False)
    said = written(tokenizer, grammars, grammar, wishes)
    assert json.loads(said)["a"] in (1, 22)
    assert (said == wishes) == (wishes in ('{"a": 22}', '{"a":1}'))


@pytest.mark.parametrize("opened", [False, True])
def test_thinking_is_free_and_the_schema_begins_after_it(tokenizer, grammars, opened):
    grammar = answer_grammar(Prompt("", [], opened), f"body: {json_rule(SCHEMA)}\n", True)
    thought = "no {JSON} here</think>\n\n" if opened else "<think>no {JSON} here</think>\n\n"
    assert written(tokenizer, grammars, grammar, thought + '{"a": 1}') == thought + '{"a": 1}'


def test_a_copy_goes_its_own_way(tokenizer, grammars):
    grammar = grammars.start(f"start: {json_rule({'enum': ['h', 'a']})}\n")
    for token in tokenizer.raw.encode('"', add_special_tokens=False).ids[-1:]:
        grammar.accept(token)
    other = grammar.copy()
    logits = np.zeros(tokenizer.raw.get_vocab_size(), np.float32)
    before = grammar.apply(logits)
    other.accept(tokenizer.raw.token_to_id("h"))
    assert np.array_equal(grammar.apply(logits), before)
    assert not np.array_equal(other.apply(logits), before)


@pytest.mark.parametrize("keyword", ["uniqueItems", "propertyNames", "not", "contains"])
def test_a_keyword_that_cannot_be_enforced_is_named(grammars, keyword):
    value = True if keyword == "uniqueItems" else {}
    with pytest.raises(SamplingError, match=keyword):
        grammars.start(f"start: {json_rule({keyword: value})}\n")


def test_scores_are_log_probabilities_with_the_likeliest_first():
    logits = np.random.default_rng(0).normal(0, 3, (4, 9)).astype(np.float32)
    logits[0, 3] = logits[0, 5] = 20  # a tie goes to the lower id
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    for row, found in enumerate(scores(logits, [3, 1, 2, 8], 3)):
        assert found.logprob == pytest.approx(exact[row, found.token_id], abs=1e-6)
        order = sorted(range(9), key=lambda i: (-exact[row, i], i))[:3]
        assert [i for i, _ in found.top] == order
        if found.token_id in order:
            assert dict(found.top)[found.token_id] == found.logprob  # the very same number
    assert scores(logits, [1, 1, 1, 1], 0)[0].top == ()
