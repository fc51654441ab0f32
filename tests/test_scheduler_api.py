"""The ways into the scheduler: jobs, event loops, several answers at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_library import EOS, TOKENIZER, FakeLibrary, token, use_fake_library

from minicpm_mlc.base.errors import EngineError, SamplingError
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.events import Ended, Failed, Job, Scored, Started, Text
from minicpm_mlc.runtime_py.request import Options
from minicpm_mlc.runtime_py.scheduler.jobs import JobBackend

PROMPT = [1, *range(30, 50)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor "
    "%}<|im_start|>assistant\n"
)
QUESTION = [{"role": "user", "content": "hello"}]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """build(say=..., **options) opens an engine over a FakeLibrary."""
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, EOS], "do_sample": False})
    )
    (tmp_path / "chat_template.jinja").write_text(CHATML)

    def make(say: Any = None, **options: Any) -> Engine:
        use_fake_library(monkeypatch, lambda: FakeLibrary(say))
        return Engine(tmp_path, **options)

    return make


class TokenReader:
    """Makes a Text of each token; stops at `last`."""

    def __init__(self, choice: int, last: int | None = None) -> None:
        self.choice, self.last = choice, last
        self.stop: str | None = None
        self.reasoning_tokens = 0

    def forced(self) -> list[int]:
        return []

    def feed(self, token: Scored) -> list[Text]:
        self.stop = "last" if token.token_id == self.last else None
        return [Text(self.choice, str(token.token_id), (token,))]

    def finish(self) -> list[Text]:
        return []


def run(engine: Engine, job: Job) -> list[Any]:
    """The events of a job."""
    events: list[Any] = []
    backend = JobBackend(engine)
    running = backend.submit(job, events.append)
    engine.until(lambda: running.over)
    return events


def said(events: list[Any], choice: int) -> list[int]:
    return [int(e.text) for e in events if isinstance(e, Text) and e.choice == choice]


def test_a_jobs_choices_are_those_of_lone_requests_and_share_the_prompt(build) -> None:
    options: Options = {"max_tokens": 6, "temperature": 1.2, "seed": 5}
    events = run(build(), Job(PROMPT, TokenReader, options, n=3))
    for choice in range(3):
        seeded: Options = {"max_tokens": 6, "temperature": 1.2, "seed": 5 + choice}
        lone = run(build(), Job(PROMPT, TokenReader, seeded))
        assert said(events, choice) == said(lone, 0)
    assert [type(e) for e in events].count(Started) == 1 and isinstance(events[0], Started)
    ends = {e.choice: e for e in events if isinstance(e, Ended)}
    assert [ends[i].counts.cached_tokens for i in range(3)] == [0, 20, 20]
    assert all(
        end.reason == "length" and end.counts.completion_tokens == 6 for end in ends.values()
    )


def test_a_prompts_scores_are_those_of_its_logits(build) -> None:
    engine = build()
    logits = engine.logits(PROMPT).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    job = Job(PROMPT, TokenReader, {"max_tokens": 1}, logprobs=2, echo=True)
    for each in (job, Job(PROMPT, TokenReader, logprobs=2, echo=True, empty=True)):
        events = run(engine, each)
        assert isinstance(events[0], Started) and isinstance(events[-1], Ended)
        first, *rest = events[0].scores
        assert first == Scored(PROMPT[0]) and [s.token_id for s in rest] == PROMPT[1:]
        got = np.array([score.logprob for score in rest], float)
        np.testing.assert_allclose(got, expected[np.arange(20), PROMPT[1:]], atol=1e-5)
        assert all(len(score.top) == 2 for score in rest)
        assert len(said(events, 0)) == (0 if each.empty else 1)


def test_the_scores_of_one_context_are_computed_once(build) -> None:
    def scores(engine: Engine, prompt: list[int], top: int = 2) -> Any:
        return run(engine, Job(prompt, TokenReader, {"max_tokens": 1}, logprobs=top, echo=True))[0]

    engine = build()
    first = scores(engine, PROMPT)
    assert first.scores == scores(build(), PROMPT).scores
    for prompt in ([*PROMPT[:-2], 7], PROMPT[:9], PROMPT, [*PROMPT, 8, 9], PROMPT[:1]):
        before = sum(engine.library.calls)
        again = scores(engine, prompt)
        assert again.scores == scores(build(), prompt).scores
        assert sum(engine.library.calls) - before == len(prompt) - again.cached_tokens <= 4
    assert scores(engine, PROMPT, 3).scores == scores(build(), PROMPT, 3).scores


def test_a_cancelled_job_ends_as_cancelled_once(build) -> None:
    engine, events = build(), []
    backend = JobBackend(engine)
    running = backend.submit(Job(PROMPT, TokenReader, n=2), events.append)
    running.cancel()
    running.cancel()
    engine.until(lambda: running.over)
    running.cancel()
    ends = [e for e in events if isinstance(e, Ended)]
    assert [(e.choice, e.reason) for e in ends] == [(0, "cancelled"), (1, "cancelled")]


def test_an_error_is_the_last_event_of_its_job(build, monkeypatch) -> None:
    engine = build()
    monkeypatch.setattr(engine.library, "prefill", lambda *_, **__: 1 / 0)
    events = run(engine, Job(PROMPT, TokenReader, n=3))
    assert len(events) == 1 and isinstance(events[0], Failed)
    assert isinstance(events[0].error, ZeroDivisionError)


def test_a_backend_that_closes_cancels_what_waits(build) -> None:
    engine, events = build(), []
    backend = JobBackend(engine)
    for _ in range(20):
        backend.submit(Job(PROMPT, TokenReader), events.append)
    backend.close()
    assert len([e for e in events if isinstance(e, Ended)]) == 20


def test_a_closed_engine_ends_its_jobs_with_the_reason(build) -> None:
    engine, events = build(), []
    backend = JobBackend(engine)
    for _ in range(4):
        backend.submit(Job(PROMPT, TokenReader), events.append)
    engine.close()
    assert {type(e) for e in events if isinstance(e, Ended | Failed)} <= {Ended, Failed}
    failed = [e for e in events if isinstance(e, Failed)]
    assert failed and all(isinstance(e.error, EngineError) for e in failed)


def test_a_stop_ends_a_choice_with_its_string(build) -> None:
    first = said(run(build(), Job(PROMPT, TokenReader, {"max_tokens": 8})), 0)
    events = run(build(), Job(PROMPT, lambda choice: TokenReader(choice, first[3])))
    assert said(events, 0) == first[:4]
    assert (events[-1].reason, events[-1].stop) == ("stop", "last")


def test_answers_in_an_event_loop_are_those_of_threads(build) -> None:
    plain = build()
    expected = [plain.chat(QUESTION, max_tokens=9, seed=n, temperature=1.0) for n in range(5)]
    engine = build()

    async def ask() -> list[str]:
        asked = (engine.achat(QUESTION, max_tokens=9, seed=n, temperature=1.0) for n in range(5))
        return await asyncio.gather(*(_text(answer) for answer in asked))

    async def _text(answer: Any) -> str:
        return await answer

    assert asyncio.run(ask()) == expected


def test_pieces_in_an_event_loop_join_to_the_text_and_a_loop_may_be_left(build) -> None:
    engine = build()
    expected = build().generate(PROMPT, max_tokens=9)

    async def pieces() -> str:
        return "".join([piece async for piece in engine.agenerate(PROMPT, max_tokens=9)])

    async def left() -> None:
        async for _ in engine.agenerate(PROMPT):
            break

    async def cancelled() -> None:
        answer = asyncio.ensure_future(_text())
        await asyncio.sleep(0.01)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer

    async def _text() -> str:
        return await engine.agenerate(PROMPT)

    assert asyncio.run(pieces()) == expected
    asyncio.run(left())
    asyncio.run(cancelled())
    engine.until(lambda: not engine.scheduler.tasks)
    assert asyncio.run(pieces()) == expected


def test_an_error_reaches_who_awaits(build, monkeypatch) -> None:
    engine = build()
    monkeypatch.setattr(engine.library, "prefill", lambda *_, **__: 1 / 0)

    async def text() -> str:
        return await engine.agenerate(PROMPT)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(text())


def test_choices_have_text_thinking_and_scores(build) -> None:
    says = [token("hello"), token("b")]
    after = {says[0]: says[1], says[1]: EOS}
    engine = build(lambda history: after.get(history[-1], says[0]))
    choices = engine.choices(QUESTION, n=2, logprobs=3, temperature=0)
    assert [c.text for c in choices] == ["hellob", "hellob"]
    assert [[s.token_id for s in c.tokens] for c in choices] == [says] * 2
    assert all(len(s.top) == 3 and s.top[0][1] == s.logprob for c in choices for s in c.tokens)
    assert {c.reason for c in choices} == {"stop"}
    by_ids = engine.choices(PROMPT, max_tokens=2)
    assert len(by_ids) == 1 and by_ids[0].counts.prompt_tokens == len(PROMPT)
    with pytest.raises(SamplingError, match="n is 0"):
        engine.choices("a", n=0)
