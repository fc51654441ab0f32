"""The engine over a fake library, with a real tokenizer and chat template."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_library import (
    EOS,
    FIRST_WORD,
    PAGE,
    TOKENIZER,
    VOCAB,
    FakeLibrary,
    token,
    use_fake_library,
)
from tokenizers import Tokenizer as RawTokenizer

from minicpm_mlc.base.errors import BundleError, ContextError, EngineError, SamplingError
from minicpm_mlc.prompt.tokenizer import Tokenizer
from minicpm_mlc.runtime_py.engine import Engine


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """build(say=..., generation={...}, context=...) opens an engine over a FakeLibrary."""
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "add_bos_token": True})
    )

    def make(
        say=None, generation: dict | None = None, template: str | None = None, **options: Any
    ) -> Engine:
        config = (
            {"eos_token_id": [2, EOS], "do_sample": False} if generation is None else generation
        )
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        use_fake_library(monkeypatch, lambda: FakeLibrary(say))
        return Engine(tmp_path, **options)

    return make


def library(engine: Engine) -> FakeLibrary:
    assert isinstance(engine.library, FakeLibrary)
    return engine.library


def cached_tokens(engine: Engine) -> list[int]:
    return list(engine.model.sequence.tokens)


def greedy(history: list[int], n: int) -> list[int]:
    """What the fake model says, without any cache."""
    history = list(history)
    for _ in range(n):
        history.append(int(FakeLibrary().row(history).argmax()))
    return history[-n:]


PROMPT = [1, *range(FIRST_WORD, FIRST_WORD + 11)]


def scripted(words: list[str]) -> Callable[[list[int]], int]:
    """After PROMPT it says these tokens, then ends; behind a guess that goes on, too."""
    says = [*map(token, words), EOS]
    return lambda history: says[min(max(0, len(history) - len(PROMPT)), len(words))]


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 12, 64])
def test_the_answer_does_not_depend_on_the_prefill_chunk(build, chunk: int) -> None:
    engine = build()
    engine.prefill_chunk = chunk
    text = engine.generate(PROMPT, max_tokens=20, speculate="off")
    assert (
        text == engine.detokenize([*PROMPT, *greedy(PROMPT, 20)])[len(engine.detokenize(PROMPT)) :]
    )
    assert sum(library(engine).calls) == len(PROMPT) + 19


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_are_one_row_per_token_and_leave_a_right_cache(build, chunk: int) -> None:
    engine = build()
    engine.generate(list(reversed(PROMPT)), max_tokens=3)
    engine.prefill_chunk = chunk
    logits = engine.logits(PROMPT)
    assert logits.shape == (len(PROMPT), VOCAB) and logits.dtype == np.float32
    for n in range(len(PROMPT)):
        np.testing.assert_array_equal(logits[n], FakeLibrary().row(PROMPT[: n + 1]))
    assert engine.generate(PROMPT, max_tokens=4) == build().generate(PROMPT, max_tokens=4)
    assert engine.stats.cached_tokens == len(PROMPT) - 1


def test_prefill_decode_and_truncate_move_the_same_sequence(build) -> None:
    engine = build()
    for n in (3, 9, 1, 0, 9):
        engine.truncate(n if n < 3 else 0)
        rest = PROMPT[min(n, 2 if n < 3 else 0) :]
        np.testing.assert_array_equal(engine.prefill(rest), FakeLibrary().row(PROMPT))
        np.testing.assert_array_equal(
            engine.decode(FIRST_WORD), FakeLibrary().row([*PROMPT, FIRST_WORD])
        )
    with pytest.raises(ContextError, match="has 13 tokens, it can't be cut to 14"):
        engine.truncate(14)


def test_only_what_is_new_in_a_prompt_is_computed(build) -> None:
    engine = build()
    engine.generate(PROMPT, max_tokens=1)
    library(engine).calls.clear()
    longer = [*PROMPT[:8], FIRST_WORD, FIRST_WORD, FIRST_WORD]
    text = engine.generate(longer, max_tokens=6, speculate="off")
    assert (engine.stats.prompt_tokens, engine.stats.cached_tokens) == (11, 8)
    assert library(engine).calls == [3, 1, 1, 1, 1, 1]
    assert text == build().generate(longer, max_tokens=6)


def test_the_same_prompt_again_recomputes_its_last_token(build) -> None:
    engine = build()
    first = engine.generate(PROMPT, max_tokens=9)
    assert engine.generate(PROMPT, max_tokens=9) == first
    assert engine.stats.cached_tokens == len(PROMPT) - 1


def test_a_stream_left_early_does_no_harm(build) -> None:
    engine = build()
    for n in range(1, 9):
        for count, _ in enumerate(engine.generate(PROMPT, stream=True, max_tokens=20), 1):
            if count == n:
                break
        assert engine.stats.finish_reason is None
    assert engine.generate(PROMPT, max_tokens=20) == build().generate(PROMPT, max_tokens=20)


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4, 6])
def test_an_interrupt_inside_the_model_does_no_harm(build, monkeypatch, failing_call: int) -> None:
    engine = build()
    fake, calls = library(engine), []
    original = fake.prefill

    def interrupted(token_ids, positions, slots, page_table, logit_rows, pools, sparse=False):
        calls.append(1)
        if len(calls) == failing_call:
            pools.tokens[page_table[slots // PAGE], slots % PAGE] = -7
            raise KeyboardInterrupt
        return original(token_ids, positions, slots, page_table, logit_rows, pools)

    monkeypatch.setattr(fake, "prefill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_tokens=20)
    assert engine.generate(PROMPT, max_tokens=20) == build().generate(PROMPT, max_tokens=20)


def test_pieces_join_to_the_whole_text_and_are_never_empty(build) -> None:
    pieces = list(build().generate(PROMPT, stream=True, max_tokens=20))
    assert "".join(pieces) == build().generate(PROMPT, max_tokens=20)
    assert len(pieces) > 1 and all(pieces)


@pytest.mark.parametrize("eos", [2, EOS])
def test_any_end_token_stops_and_does_not_show(build, eos: int) -> None:
    engine = build(lambda history: eos if len(history) == len(PROMPT) + 2 else token("hello"))
    assert engine.generate(PROMPT) == "hellohello"
    assert (
        engine.stats.finish_reason,
        engine.stats.generated_tokens,
        engine.stats.decode_steps,
    ) == ("stop", 2, 2)


def test_a_stop_string_across_tokens_ends_the_text_before_it(build) -> None:
    engine = build(scripted(["hello", "h", "e", "b", "o"]))
    assert list(engine.generate(PROMPT, stream=True, stop=["xx", "oheb"])) == ["hell"]
    assert (engine.stats.finish_reason, engine.stats.generated_tokens) == ("stop", 4)
    assert (
        engine.generate(PROMPT, stop="ox") == "hellohebo"
    )  # the held-back o is given out at the end


def test_half_a_character_at_the_end_of_an_answer_shows_as_a_replacement(build) -> None:
    engine = build(scripted(["hello", "<0xE4>"]))
    assert list(engine.generate(PROMPT, stream=True)) == ["hello", "\ufffd"]


def test_penalties_count_the_prompt_and_what_was_said(build) -> None:
    likes = [PROMPT[1], token("hello"), token("b")]

    def favourite(history: list[int]) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[likes] = [9, 8, 7]
        return logits

    engine = build()
    library(engine).row = favourite  # type: ignore[method-assign]
    assert engine.generate([1], max_tokens=3) == "hello hello hello"
    assert engine.generate([1], max_tokens=3, presence_penalty=5) == "hellohellob"
    assert engine.generate(PROMPT[:2], max_tokens=2, repetition_penalty=3) == "hellob"


def test_max_tokens_counts_the_answer(build) -> None:
    engine = build()
    engine.generate(PROMPT, max_tokens=5)
    stats = engine.stats
    assert (stats.finish_reason, stats.generated_tokens, stats.decode_steps) == ("length", 5, 4)
    assert (stats.context_used, stats.context) == (len(PROMPT) + 4, 200)
    assert stats.prefill_rate > 0 and stats.decode_rate > 0


def test_a_full_context_ends_the_answer(build) -> None:
    engine = build(context=18)
    engine.generate(PROMPT)
    assert (engine.stats.finish_reason, engine.stats.context_used) == ("context", 18)
    assert engine.stats.generated_tokens == 18 - len(PROMPT) + 1  # the last one needs no room


def test_the_same_seed_gives_the_same_text(build) -> None:
    engine = build(generation={"temperature": 1.5, "top_p": 1.0})
    texts = [engine.generate(PROMPT, max_tokens=20, seed=seed) for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_defaults_come_from_generation_config(build) -> None:
    given = build(
        generation={"do_sample": True, "temperature": 0.9, "top_k": 20, "repetition_penalty": None}
    ).defaults
    assert (given.temperature, given.top_k, given.repetition_penalty) == (0.9, 20, 1)
    assert build(generation={"do_sample": False, "temperature": 0.9}).defaults.temperature == 0
    published = build(generation={}).defaults
    assert (published.temperature, published.top_p, published.top_k) == (0.6, 0.95, 0)
    with pytest.raises(BundleError, match=r"generation_config.json: top_p is 2"):
        build(generation={"top_p": 2})


def test_prefill_reports_its_progress(build) -> None:
    seen: list[tuple[int, int]] = []
    build().generate(
        PROMPT, max_tokens=1, on_prefill=lambda done, total: seen.append((done, total))
    )
    assert seen == [(5, 12), (10, 12), (12, 12)]


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(build, prompt) -> None:
    with pytest.raises(ContextError, match="the prompt is empty"):
        build().generate(prompt)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(build) -> None:
    for call in (
        lambda e: e.generate(PROMPT, stream=True),
        lambda e: e.logits(PROMPT),
        lambda e: e.prefill(PROMPT),
    ):
        with pytest.raises(ContextError, match="has 12 tokens and the context holds 11"):
            call(build(context=11))


def test_a_bundle_without_a_tokenizer_still_gives_logits(build) -> None:
    engine = build()
    (engine.path / "tokenizer.json").unlink()
    assert engine.logits(PROMPT).shape == (len(PROMPT), VOCAB)
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        engine.tokenize("hello")


def test_a_strange_token_id_is_refused(build) -> None:
    with pytest.raises(
        EngineError, match=f"token id {VOCAB} is not in the vocabulary of {VOCAB} tokens"
    ):
        build().generate([1, VOCAB])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temprature": 1}, "no option 'temprature'; options are .*temperature"),
        ({"stop": [""]}, "stop is"),
    ],
)
def test_bad_options_are_refused_before_the_first_piece(build, options: dict, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        build().generate(PROMPT, stream=True, **options)


def test_a_closed_engine_says_so(build) -> None:
    with build() as engine:
        engine.generate(PROMPT, max_tokens=1)
    for call in (
        lambda: engine.generate(PROMPT),
        lambda: engine.logits(PROMPT),
        lambda: engine.decode(1),
    ):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_an_older_stream_goes_on_beside_newer_calls(build) -> None:
    engine, expected = build(), build().generate(PROMPT, max_tokens=30)
    older = engine.generate(PROMPT, stream=True, max_tokens=30)
    first = next(older)
    assert engine.generate(PROMPT, max_tokens=9) == build().generate(PROMPT, max_tokens=9)
    newer = engine.generate(PROMPT, stream=True, max_tokens=30)
    second = next(newer)
    assert first + "".join(older) == second + "".join(newer) == expected


def test_a_call_on_the_engines_own_sequence_ends_the_stream_that_has_it(build) -> None:
    engine = build()
    older = engine.generate(PROMPT, stream=True)
    next(older)
    np.testing.assert_array_equal(engine.logits(PROMPT[:2])[-1], FakeLibrary().row(PROMPT[:2]))
    newer = engine.generate(PROMPT, stream=True, max_tokens=30)
    first = next(newer)
    with pytest.raises(EngineError, match="ended when another call"):
        list(older)
    # the end of the older stream did not end the newer one
    assert first + "".join(newer) == build().generate(PROMPT, max_tokens=30)


def test_a_stream_that_ended_is_closed_without_a_word(build) -> None:
    engine = build()
    older = engine.generate(PROMPT, stream=True)
    next(older)
    engine.truncate(3)
    assert engine.cached_tokens == PROMPT[:3]
    older.close()
    assert engine.generate(PROMPT, max_tokens=9) == build().generate(PROMPT, max_tokens=9)


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What the call returns or raises there."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        return future.exception() or future.result()


def test_rob_01_a_stream_at_rest_is_read_on_by_any_thread(build) -> None:
    engine, expected = build(), build().generate(PROMPT, max_tokens=9)
    stream = engine.generate(PROMPT, stream=True, max_tokens=9)
    first = next(stream)
    assert first + in_another_thread(lambda: "".join(stream)) == expected
    stream = engine.generate(PROMPT, stream=True, max_tokens=9)
    first = next(stream)
    assert in_another_thread(lambda: engine.generate(PROMPT, max_tokens=9)) == expected
    assert first + "".join(stream) == expected


def test_rob_01_who_comes_while_a_step_computes_waits_for_it(build) -> None:
    engine, expected = build(), build().generate(PROMPT, max_tokens=9)
    decode, inside, together = engine.library.decode, threading.Event(), []

    def slow(token_ids: np.ndarray, *arguments: Any) -> Any:
        inside.set()
        time.sleep(0.05)  # for the others to come
        together.append(len(token_ids))
        return decode(token_ids, *arguments)

    engine.library.decode = slow
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(engine.generate, PROMPT, max_tokens=9, speculate="off")
        inside.wait()
        later = [
            pool.submit(engine.generate, PROMPT, max_tokens=9, speculate="off") for _ in range(3)
        ]
        assert [each.result() for each in (first, *later)] == [expected] * 4
    assert max(together) > 1


def test_a_call_on_the_engines_own_sequence_is_refused_while_another_one_runs(build) -> None:
    engine = build()
    with engine.steps(PROMPT) as (_, logits):
        np.testing.assert_array_equal(logits, FakeLibrary().row(PROMPT))
        for call in (lambda: engine.decode(1), lambda: engine.generate(PROMPT)):
            with pytest.raises(EngineError, match="the engine is busy"):
                call()
        refused = in_another_thread(lambda: engine.decode(1))
        assert isinstance(refused, EngineError) and "the engine is busy" in str(refused)
    assert engine.generate(PROMPT, max_tokens=9) == build().generate(PROMPT, max_tokens=9)


def test_a_call_from_the_progress_callback_ends_the_outer_one(build) -> None:
    engine = build()
    with pytest.raises(EngineError, match="ended when another call"):
        engine.generate(PROMPT, on_prefill=lambda *_: engine.logits([1, 2, 3]))
    assert engine.generate(PROMPT, max_tokens=9) == build().generate(PROMPT, max_tokens=9)


def test_threads_below_one_are_refused(build) -> None:
    with pytest.raises(EngineError, match="threads is 0"):
        build(threads=0)


# Chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor "
    "%}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "hello"}]
BYTES = Tokenizer(TOKENIZER, 1, add_bos=True).token_bytes


def answer_so_far(history: list[int]) -> bytes:
    """What stands after the last "<|im_start|>assistant" line."""
    start = len(history) - history[::-1].index(token("<|im_start|>"))
    return b"".join(map(BYTES, history[start:])).partition(b"\n")[2]


def answers(text: str) -> Callable[[list[int]], int]:
    """Says `text` byte by byte, then ends; goes on where a template or the engine has written the
    beginning.
    """

    def say(history: list[int]) -> int:
        rest = text.encode()[len(answer_so_far(history)) :]
        return token(f"<0x{rest[0]:02X}>") if rest else EOS

    return say


def endless_thinker(history: list[int]) -> int:
    """Opens a block, thinks "b" until somebody closes it, then says hello."""
    said = answer_so_far(history).decode()
    if "</think>" in said:
        return EOS if said.endswith("hello") else token("hello")
    opening = "<think>"[len(said) :]  # after a guess that was wrong too
    return token(f"<0x{ord(opening[0]):02X}>") if opening else token("b")


def joined(events: Iterable[tuple[str, str]]) -> dict[str, str]:
    texts = {"thinking": "", "answer": ""}
    for kind, text in events:
        texts[kind] += text
    return texts


THOUGHT = "<think>\nab\n</think>\n\nhello"


def test_chat_renders_the_template_and_answers(build) -> None:
    engine = build(answers("hello!"), template=CHATML)
    assert engine.chat(QUESTION) == "hello!"
    assert "".join(engine.chat(QUESTION, stream=True)) == "hello!"
    assert joined(engine.chat_events(QUESTION)) == {"thinking": "", "answer": "hello!"}
    assert cached_tokens(engine)[:2] == [1, token("<|im_start|>")]


def test_the_next_turn_computes_only_what_is_new(build) -> None:
    engine = build(answers("!"), template=CHATML)
    answer = engine.chat(QUESTION)
    kept = cached_tokens(engine)
    engine.chat(
        [*QUESTION, {"role": "assistant", "content": answer}, {"role": "user", "content": "b"}]
    )
    assert engine.stats.cached_tokens == len(kept) and cached_tokens(engine)[: len(kept)] == kept


def test_chat_gives_the_thinking_between_its_markers_and_events_apart(build) -> None:
    engine = build(answers(THOUGHT), template=CHATML)
    assert engine.chat(QUESTION) == THOUGHT
    assert "".join(engine.chat(QUESTION, stream=True)) == THOUGHT
    assert joined(engine.chat_events(QUESTION)) == {"thinking": "ab", "answer": "hello"}


def test_a_block_that_the_template_opened_is_opened_in_the_text_too(build) -> None:
    engine = build(answers(THOUGHT), template=CHATML)
    assert engine.chat(QUESTION, think=True) == THOUGHT
    assert joined(engine.chat_events(QUESTION, think=True)) == {"thinking": "ab", "answer": "hello"}


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_spent_think_budget_closes_the_block_and_the_answer_follows(build, budget: int) -> None:
    engine = build(endless_thinker, template=CHATML)
    assert (
        engine.chat(QUESTION, max_think_tokens=budget)
        == f"<think>{'b' * budget}\n</think>\n\nhello"
    )
    assert engine.stats.finish_reason == "stop"
    events = engine.chat_events(QUESTION, max_think_tokens=budget)
    assert joined(events) == {"thinking": "b" * budget, "answer": "hello"}


def test_a_block_opened_by_the_template_can_be_closed_before_its_first_token(build) -> None:
    engine = build(endless_thinker, template=CHATML)
    assert engine.chat(QUESTION, think=True, max_think_tokens=0) == "<think>\n\n</think>\n\nhello"


def test_a_think_budget_that_is_not_spent_changes_nothing(build) -> None:
    assert build(answers(THOUGHT), template=CHATML).chat(QUESTION, max_think_tokens=20) == THOUGHT


def test_a_think_budget_waits_for_a_marker_or_character_that_has_begun(build) -> None:
    said = "<think>ab</think>hello"  # the budget of 4 ends inside the model's own marker
    assert build(answers(said), template=CHATML).chat(QUESTION, max_think_tokens=4) == said
    cut = build(answers("<think>éé"), template=CHATML).chat(QUESTION, max_think_tokens=1)
    assert cut.startswith("<think>é\n</think>\n\n")


def test_a_negative_think_budget_is_refused(build) -> None:
    with pytest.raises(SamplingError, match="max_think_tokens is -1"):
        build(template=CHATML).chat(QUESTION, max_think_tokens=-1)


def in_turn(ids: list[int]) -> Callable[[list[int]], int]:
    """Says these tokens, each after the one before it, then ends."""
    after = dict(zip(ids, [*ids[1:], EOS], strict=True))
    return lambda history: after.get(history[-1], ids[0])


def test_case_38_think_tags_that_are_special_tokens_are_seen(build, tmp_path: Path) -> None:
    raw = RawTokenizer.from_str(TOKENIZER.to_str())
    raw.add_special_tokens(["<think>", "</think>"])
    opened, closed = (raw.token_to_id(tag) for tag in ("<think>", "</think>"))
    assert opened is not None and closed is not None
    says = {opened: token("▁hello"), token("▁hello"): closed, closed: token("▁world")}
    says[token("▁world")] = EOS

    def say(history: list[int]) -> int:
        return says.get(history[-1], token("▁world") if closed in history else opened)

    engine = build(say, template=CHATML)
    raw.save(str(tmp_path / "tokenizer.json"))
    question = [{"role": "user", "content": "a"}]
    assert joined(engine.chat_events(question)) == {"thinking": "hello", "answer": "world"}
    said = "<think> hello</think> world"
    assert engine.chat(question) == said
    assert engine.detokenize([opened, token("▁hello"), closed, token("▁world")]) == said
    short = joined(engine.chat_events(question, max_think_tokens=0))
    assert short == {"thinking": "", "answer": "world"}


@pytest.mark.parametrize("stop", ["<|im_start|>", " world<|im_start|>"])
def test_case_38_a_stop_string_may_name_a_special_token(build, stop: str) -> None:
    says = [token("▁hello"), token("▁world"), token("<|im_start|>"), token("b")]
    engine = build(in_turn(says), template=CHATML)
    question = [{"role": "user", "content": "a"}]
    assert engine.chat(question) == " hello worldb"
    assert engine.chat(question, stop=stop) == " hello world".removesuffix(stop.partition("<")[0])
    assert engine.stats.finish_reason == "stop"
    assert engine.chat(question, stop=[stop + "c", "<|im_start|>c"]) == " hello worldb"


def test_importing_the_package_or_the_engine_pulls_in_no_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, minicpm_mlc; assert 'numpy' not in sys.modules; minicpm_mlc.Engine\n"
        "heavy = {'tvm', 'torch', 'transformers', 'minicpm_mlc.compile'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Text from people


@pytest.mark.parametrize("said", ["ok \ud83d bad", "\udce9", "caf\udcc3\udca9"])
def test_case_04_half_a_character_becomes_a_mark(build, said: str) -> None:
    engine = build(answers("hello!"), template=CHATML)
    mark = said.encode("utf-8", "replace").decode().replace("?", "\ufffd")
    assert engine.tokenize(said) == engine.tokenize(mark)
    assert engine.chat([{"role": "user", "content": said}]) == "hello!"
    assert (
        engine.cached_tokens[: engine.stats.prompt_tokens]
        == engine.template.prompt(engine.tokenizer.raw, [{"role": "user", "content": mark}]).ids
    )
    assert build().generate(said, max_tokens=1) == build().generate(mark, max_tokens=1)


def test_case_04_two_halves_of_one_character_are_joined(build) -> None:
    engine = build()
    assert engine.tokenize("\ud83d" + "\ude00") == engine.tokenize("\U0001f600")


@pytest.mark.parametrize("stop", ["STOP", "\n"])
def test_case_40_a_stop_string_in_the_thinking_is_text(build, stop: str) -> None:
    said = "<think>say STOP\nlater</think>\n\ndone\nSTOP more"
    engine = build(answers(said), template=CHATML)
    shown = joined(engine.chat_events(QUESTION, stop=[stop]))
    assert shown["thinking"] == "say STOP\nlater" and shown["answer"].rstrip() == "done"
    assert engine.stats.finish_reason == "stop"
    assert engine.chat(QUESTION, stop=stop).startswith("<think>say STOP\nlater</think>\n\ndone")


def test_case_40_in_text_without_a_template_stop_strings_are_looked_for_everywhere(build) -> None:
    engine = build(lambda history: token("hello"))
    assert engine.generate("<think>", stop="llo", max_tokens=3) == "he"


def test_case_43_a_larger_context_is_advised_only_where_there_is_one(build) -> None:
    for context, advice in ((50, "--context, up to 200"), (None, "shorten the prompt$")):
        with pytest.raises(ContextError, match=advice):
            build(context=context).generate([FIRST_WORD] * 201)
