"""Generation with speculation gives what it gives without: the same tokens, the same cache, the
same figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_library import EOS, FIRST_WORD, TOKENIZER, VOCAB, FakeLibrary, token, use_fake_library
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import BundleError, EngineError, SamplingError
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.speculative.tree import Draft, Tree

PROMPT = [1, *range(FIRST_WORD, FIRST_WORD + 11)]


class Oracle:
    """Drafts random trees around what the model would say; `hit` is the chance that a level holds
    the right token.
    """

    def __init__(self, seed: int, hit: float = 0.7, nodes: int = 20) -> None:
        self.random, self.hit, self.nodes = np.random.default_rng(seed), hit, nodes
        self.say: Callable[[list[int]], int] = lambda history: int(
            FakeLibrary().row(history).argmax()
        )

    def begin(self) -> None: ...

    def cached(self, model: Any) -> None: ...

    def draft(
        self, history: np.ndarray, depth: int, top_k: int, floor: float, read: int | None
    ) -> Draft | None:
        paths, tokens, parents = [history.tolist()], [int(history[-1])], [-1]
        used: set[tuple[int, int]] = set()
        for _ in range(self.random.integers(1, self.nodes)):
            parent = int(self.random.integers(max(0, len(paths) - 3), len(paths)))
            right = self.random.random() < self.hit
            guess = (
                self.say(paths[parent])
                if right
                else int(self.random.integers(FIRST_WORD, VOCAB - 3))
            )
            if (parent, guess) not in used and len(paths[parent]) - len(history) < depth:
                used.add((parent, guess))
                tokens.append(guess)
                parents.append(parent)
                paths.append([*paths[parent], guess])
        depths = np.array([len(path) - len(history) for path in paths])
        return Draft(Tree(tokens, parents), 0.5**depths)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """build(say=..., ...) opens an engine over a FakeLibrary."""
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "add_bos_token": True})
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, EOS], "do_sample": False})
    )

    def make(say: Any = None, **options: Any) -> Engine:
        use_fake_library(monkeypatch, lambda: FakeLibrary(say))
        return Engine(tmp_path, **options)

    return make


def run(engine: Engine, **options: Any) -> tuple[str, dict[str, Any], list[int]]:
    """The text, the figures that speculation must not change, and the cache."""
    text = engine.generate(PROMPT, **options)
    names = ("generated_tokens", "decode_steps", "context_used", "finish_reason")
    return text, {name: getattr(engine.stats, name) for name in names}, engine.cached_tokens


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 2},
    {"temperature": 1.0, "min_p": 0.02, "seed": 3},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {
        "temperature": 1.0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.7,
        "seed": 4,
    },
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=[",".join(s) or "greedy" for s in SAMPLINGS])
@pytest.mark.parametrize("tree_size", [1, 2, 5, 16, 60, None])
def test_tokens_cache_and_figures_are_those_of_plain_decoding(
    build, sampling: dict, tree_size: int | None
) -> None:
    plain, engine = build(), build()
    oracle = engine.drafters["ngram"] = Oracle(5, 0.5 if sampling else 0.9)
    if sampling.get("seed"):
        oracle.say = lambda history: FIRST_WORD + 2  # what is drafted does not matter
    options = {"max_tokens": 60, "tree_size": tree_size, **sampling}
    assert run(engine, speculate="ngram", **options) == run(plain, speculate="off", **options)
    if not sampling and tree_size == 16:
        assert engine.stats.speculation.accepted > 10 and engine.stats.speculation.rounds < 45


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    hit=st.sampled_from([0.0, 0.5, 1.0]),
    temperature=st.sampled_from([0, 1]),
    tokens=st.integers(1, 40),
    context=st.integers(20, 60),
)
def test_random_trees_change_nothing(seed, hit, temperature, tokens, context) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_library(patch)
        plain, engine = Engine("", context=context), Engine("", context=context)
    for one in (plain, engine):
        one.__dict__["tokenizer"] = NoText()
    engine.drafters["ngram"] = Oracle(seed, hit)
    options: dict[str, Any] = {"max_tokens": tokens, "temperature": temperature, "seed": seed}
    for _ in range(2):  # the second call goes on from the first one's cache
        assert run(engine, speculate="ngram", **options) == run(plain, speculate="off", **options)


def stream_of(engine: Engine, **options: Any) -> Any:
    """A stream that can be closed."""
    return engine.generate(PROMPT, stream=True, **options)


class NoText:
    """A tokenizer that shows token ids."""

    strips_first_space = False
    hidden: ClassVar[dict[int, str]] = {}

    def token_bytes(self, token_id: int) -> bytes:
        return f"{token_id} ".encode()


def scripted(words: list[str]) -> Callable[[list[int]], int]:
    """After PROMPT it says these tokens, then ends."""
    return lambda history: [*map(token, words), EOS][
        min(len(words), max(0, len(history) - len(PROMPT)))
    ]


def certain(engine: Engine, say: Callable[[list[int]], int]) -> Engine:
    """Its drafter is always right, and goes on after the end of the answer."""
    oracle = engine.drafters["ngram"] = Oracle(0, 1.0)
    oracle.say = say
    return engine


def test_an_end_token_inside_an_accepted_path_ends_the_answer(build) -> None:
    say = scripted(["hello", "h", "e", "b", "o"])
    engine, plain = certain(build(say), say), build(say)
    assert run(engine, speculate="ngram", tree_size=60) == run(plain, speculate="off")
    assert engine.stats.speculation.rounds < 5


@pytest.mark.parametrize("stop", ["oheb", "ox", "h"])
def test_a_stop_string_inside_an_accepted_path_ends_the_text_before_it(build, stop: str) -> None:
    say = scripted(["hello", "h", "e", "b", "o"])
    assert run(certain(build(say), say), stop=stop, speculate="ngram") == run(
        build(say), stop=stop, speculate="off"
    )


@pytest.mark.parametrize("count", range(1, 12))
def test_a_stream_left_inside_a_tree_leaves_the_cache_of_plain_decoding(build, count: int) -> None:
    caches = []
    for engine, mode in ((certain(build(), Oracle(0).say), "ngram"), (build(), "off")):
        with closing(stream_of(engine, max_tokens=20, speculate=mode)) as stream:
            for _ in range(count):
                next(stream)
        caches.append(engine.cached_tokens)
    assert caches[0] == caches[1]


def test_a_new_call_while_an_old_stream_lies_inside_a_tree(build) -> None:
    engine = certain(build(), Oracle(0).say)
    older = stream_of(engine, speculate="ngram")
    for _ in range(3):
        next(older)
    text = engine.generate(PROMPT[:-2], max_tokens=9, speculate="ngram")
    assert text == build().generate(PROMPT[:-2], max_tokens=9)
    cached = engine.cached_tokens
    older.close()
    assert engine.cached_tokens == cached  # the old path is not put after the new tokens


@pytest.mark.parametrize("call", ["verify", "commit"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_the_model_does_no_harm(build, monkeypatch, call: str, after: bool) -> None:
    engine = certain(build(), Oracle(0).say)
    library = engine.library
    original = getattr(library, call)

    def interrupted(*args: Any) -> Any:
        if after:
            original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(library, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_tokens=20, speculate="ngram", tree_size=8)
    monkeypatch.undo()
    assert engine.generate(PROMPT, max_tokens=20) == build().generate(
        PROMPT, max_tokens=20, speculate="off"
    )


def test_forced_tokens_leave_the_tree_where_they_differ(build, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% "
        "endfor %}<think>\n"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    texts = []
    for mode in ("ngram", "off"):
        engine = certain(build(), Oracle(0).say)
        messages = [{"role": "user", "content": "hello"}]
        texts.append(engine.chat(messages, max_think_tokens=5, max_tokens=40, speculate=mode))
    assert texts[0] == texts[1] and "</think>" in texts[0]


def test_a_tree_never_goes_past_the_tokens_asked_for(build) -> None:
    engine = certain(build(), Oracle(0).say)
    engine.generate(PROMPT, max_tokens=4, speculate="ngram", tree_size=60)
    assert (
        len(engine.stats.speculation.drafted_at) <= 2
    )  # the prompt gave one token, the tree's root gives another


def test_a_tree_of_one_node_is_not_drafted(build) -> None:
    engine = certain(build(), Oracle(0).say)
    engine.generate(PROMPT, max_tokens=20, speculate="ngram", tree_size=1)
    assert (engine.stats.speculation.draft_seconds, engine.stats.speculation.rounds) == (0, 0)


def test_the_figures_add_up(build) -> None:
    engine = certain(build(), Oracle(0).say)
    engine.generate(PROMPT, max_tokens=50, speculate="ngram", tree_size=8)
    stats, figures = engine.stats, engine.stats.speculation
    assert figures.accepted + figures.rounds + figures.plain_steps == stats.decode_steps == 49
    assert figures.drafters == {"ngram": figures.rounds}
    assert figures.accept_length == pytest.approx(1 + figures.accepted / figures.rounds)
    assert sum(figures.accepted_at) == figures.accepted
    assert all(0 <= share <= 1 for share in figures.accepted_shares)
    parts = (
        figures.draft_seconds,
        figures.verify_seconds,
        figures.commit_seconds,
        figures.host_seconds,
    )
    assert min(parts) > 0 and sum(parts) <= stats.decode_seconds
    assert "ngram" in figures.decision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculate": "medusa"}, "speculate is 'medusa'; choose auto, off, eagle, ngram, draft"),
        ({"tree_size": 0}, "tree_size is 0"),
        ({"tree_size": 65}, "tree_size is 65; it must be at most 64"),
        ({"draft_depth": 17}, "draft_depth is 17; it must be at most 16"),
        ({"draft_top_k": 17}, "draft_top_k is 17; it must be at most 16"),
        ({"draft_top_k": 2.5}, "draft_top_k is 2.5"),
        ({"draft_top_k": 16, "draft_depth": 6}, "draft_top_k 16 at draft_depth 6 drafts 80 nodes"),
    ],
)
def test_options_out_of_range_are_refused_by_name(build, options: dict, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        build().generate(PROMPT, stream=True, **options)


@pytest.mark.parametrize(
    ("name", "hint"), [("eagle", "no draft head"), ("draft", "no draft bundle was opened")]
)
def test_a_drafter_that_is_not_there_is_refused(build, name: str, hint: str) -> None:
    with pytest.raises(EngineError, match=hint):
        build().generate(PROMPT, speculate=name)


def test_a_draft_bundle_guesses_for_a_larger_one(build, tmp_path: Path) -> None:
    plain, engine = build(), build(draft=tmp_path)
    for top_k in (1, 3):
        options = {"max_tokens": 30, "draft_top_k": top_k, "draft_depth": 4, "tree_size": 12}
        assert run(engine, speculate="draft", **options) == run(
            plain, speculate="off", max_tokens=30
        )
        assert engine.stats.speculation.accepted >= 20  # it is the same model


def test_a_draft_bundle_with_another_tokenizer_is_refused(build, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    changed = json.loads(TOKENIZER.to_str())
    vocab = changed["model"]["vocab"]
    a, b = list(vocab)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(BundleError, match="gives tokens other ids"):
        build(draft=other)
