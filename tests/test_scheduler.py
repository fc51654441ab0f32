"""Many requests at once over a fake library: each says what it says alone, and no page is lost."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_library import FIRST_WORD, PAGE, FakeLibrary, use_fake_library
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minicpm_mlc.base.errors import ContextError, EngineError
from minicpm_mlc.runtime_py.engine import Engine
from minicpm_mlc.runtime_py.generation import Ids
from minicpm_mlc.runtime_py.scheduler.chunks import LEAST, STALL_SECONDS, Chunks
from minicpm_mlc.runtime_py.scheduler.task import Over, Progress, Task

BASE = [1, *range(30, 60)]


def opened(**options: Any) -> Engine:
    """An engine over a FakeLibrary."""
    with pytest.MonkeyPatch.context() as patch:
        use_fake_library(patch)
        engine = Engine("", **options)
    engine.eos_token_ids = frozenset()
    return engine


class Heard(list):
    """What a task's reader was told: token ids. `error` is what ended it."""

    over = False
    error: BaseException | None = None
    progress = 0

    def __call__(self, event: object) -> None:
        assert not self.over
        if isinstance(event, Over):
            self.over, self.error = True, event.error
        elif isinstance(event, Progress):
            self.progress += 1
        else:
            self.append(event)


def submit(
    engine: Engine, prompt: list[int], client: str = "", **options: Any
) -> tuple[Task, Heard]:
    """A task that only `step` runs."""
    heard = Heard()
    generation = engine.generation(engine.request(prompt, options), Ids())
    task = Task(generation, heard, client)
    engine.scheduler.submit(task)
    return task, heard


def run(engine: Engine) -> None:
    """Until all tasks are over."""
    steps = 0
    while engine.scheduler.tasks:
        engine.scheduler.step()
        steps += 1
        assert steps < 5000


@functools.cache
def alone(prompt: tuple[int, ...], max_tokens: int, seed: int | None) -> list[int]:
    """What a request says on an engine of its own, without speculation."""
    engine = opened(context=44)
    sampling = {"temperature": 0} if seed is None else {"temperature": 1.5, "seed": seed}
    options: dict[str, Any] = {"max_tokens": max_tokens, "speculate": "off", **sampling}
    _, heard = submit(engine, list(prompt), **options)
    run(engine)
    return list(heard)


class Traffic(RuleBasedStateMachine):
    """Requests that come, are cancelled and end in any order, on fewer pages than they want."""

    CONTEXT = 44  # as in alone

    def __init__(self) -> None:
        super().__init__()
        self.engine = opened(context=self.CONTEXT, parallel=None)
        self.asked: list[tuple[Task, Heard, tuple[Any, ...]]] = []
        self.beside: list[Any] = []
        self.forked = False  # somebody else held pages
        self.cuts = 0  # calls that end a stream

    @rule(
        shared=st.integers(1, 20),
        own=st.integers(0, 5),
        which=st.integers(0, 2),
        max_tokens=st.integers(1, 24),
        seed=st.one_of(st.none(), st.integers(0, 3)),
        client=st.sampled_from("ab"),
    )
    def ask(self, shared, own, which, max_tokens, seed, client) -> None:
        prompt = (*BASE[:shared], *[FIRST_WORD + which] * own)
        options = {"temperature": 0} if seed is None else {"temperature": 1.5, "seed": seed}
        task, heard = submit(self.engine, list(prompt), client, max_tokens=max_tokens, **options)
        self.asked.append((task, heard, (prompt, max_tokens, seed)))

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.scheduler.step()

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.asked:
            self.engine.cancel(self.asked[which % len(self.asked)][0])

    @rule(length=st.integers(0, 9))
    def cut(self, length: int) -> None:
        self.cuts += 1
        kept = self.engine.cached_tokens[:length]
        self.engine.truncate(len(kept))
        assert self.engine.cached_tokens == kept

    @rule()
    def fork(self) -> None:
        if not self.beside:
            self.beside.append(self.engine.model.fork())
            self.forked = True

    @rule()
    def free(self) -> None:
        if self.beside:
            self.beside.pop().free()

    def pools(self) -> Any:
        return self.engine.model.cache.pools

    @invariant()
    def every_page_has_its_owners_and_holds_their_tokens(self) -> None:
        slots, pools = self.engine.scheduler.slots, self.pools()
        pool = self.engine.model.cache.pages
        owners = np.zeros(len(pool.owners), int)
        for model in [*(slot.model for slot in slots.all), *self.beside]:
            table = model.sequence.page_table
            np.add.at(owners, table, 1)
            at = np.arange(len(model))
            held = pools.tokens[table[at // PAGE], at % PAGE]
            assert held.tolist() == model.sequence.tokens
        assert slots.cache
        kept = slots.cache.all()
        for _, tokens, page in kept:
            owners[page] += 1
            assert tuple(pools.tokens[page][: len(tokens)]) == tokens
        assert owners.tolist() == pool.owners.tolist()
        assert sorted(each.page for each in kept) == np.flatnonzero(pool.kept).tolist()
        assert pool.free_pages == (owners == 0).sum()

    @invariant()
    def idle_slots_are_free(self) -> None:
        placed = {id(task.slot) for task in self.engine.scheduler.placed}
        for slot in self.engine.scheduler.slots.all[1:]:
            assert len(slot.model) == 0 or id(slot) in placed

    def teardown(self) -> None:
        while self.beside:
            self.free()
        run(self.engine)
        for task, heard, asked in self.asked:
            expected = alone(*asked)
            assert heard.over
            if isinstance(heard.error, ContextError):
                assert self.forked and "don't fit the cache" in str(heard.error)
            elif heard.error:
                assert self.cuts and "ended when another call" in str(heard.error)
            if task.cancelled or heard.error:
                assert heard == expected[: len(heard)]
            else:
                assert heard == expected
        pool = self.engine.model.cache.pages
        self.engine.truncate(0)
        assert pool.available == len(pool.owners)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)


def test_a_call_takes_one_row_of_each_running_answer() -> None:
    engine = opened()
    options = {"max_tokens": 5, "speculate": "off", "temperature": 0}
    several = [submit(engine, [*BASE[:9], n + 2], **options)[1] for n in range(3)]
    run(engine)
    assert several == [alone((*BASE[:9], n + 2), 5, None) for n in range(3)]
    assert isinstance(engine.library, FakeLibrary)
    assert 3 in engine.library.calls


def test_later_answers_begin_with_the_pages_of_earlier_ones() -> None:
    engine = opened()
    tasks = [submit(engine, BASE[:30], max_tokens=9, seed=n)[0] for n in range(4)]
    run(engine)
    cached = [task.generation.stats.cached_tokens for task in tasks]
    assert cached == [0, 28, 28, 28]  # the full pages
    longer, _ = submit(engine, [*BASE[:18], 7, 7, 7], max_tokens=1)
    run(engine)
    assert longer.generation.stats.cached_tokens == 18  # 4 pages, and 2 tokens of the fifth


def test_a_running_answer_waits_for_one_chunk_at_most() -> None:
    engine = opened()
    _, first = submit(engine, BASE[:4], max_tokens=40, speculate="off")
    while not first:
        engine.scheduler.step()
    _, second = submit(engine, BASE[::-1], max_tokens=2)
    said = []
    while not second:
        engine.scheduler.step()
        said.append(len(first))
    assert said == list(range(said[0], said[0] + len(said))) and second.progress > 3


def test_clients_take_turns() -> None:
    engine = opened(parallel=2)
    asked = {n: submit(engine, BASE[:8], client=n[0], max_tokens=6) for n in "a1 a2 a3 b1".split()}
    order: dict[str, None] = {}
    while engine.scheduler.tasks:
        engine.scheduler.step()
        order |= {name: None for name, (_, heard) in asked.items() if heard}
    assert list(order) == ["a1", "b1", "a2", "a3"]


def test_the_last_to_come_makes_room_and_goes_on_later() -> None:
    engine = opened(context=40)
    asked = [submit(engine, BASE[:5], max_tokens=30, seed=n, temperature=1.5) for n in range(2)]
    run(engine)
    for n, (_, heard) in enumerate(asked):
        assert heard == alone(tuple(BASE[:5]), 30, n)
    firsts = [task.generation.stats for task, _ in asked]
    assert all(stats.finish_reason == "length" for stats in firsts)


def test_what_can_never_fit_is_refused_at_once_and_what_others_hold_when_it_is_alone() -> None:
    engine = opened(context=40)
    with pytest.raises(ContextError, match="41 tokens and the context holds 40"):
        engine.request([5] * 41, {})
    beside = engine.open_sequence()
    list(beside.prefill(BASE[:30], 5))
    _, heard = submit(engine, BASE[:20][::-1], max_tokens=2)
    run(engine)
    assert isinstance(heard.error, ContextError) and "20 tokens don't fit" in str(heard.error)
    beside.free()
    _, heard = submit(engine, BASE[:20][::-1], max_tokens=2)
    run(engine)
    assert heard.error is None and len(heard) == 2


def test_a_prompt_that_fills_the_context_gets_one_token() -> None:
    engine = opened(context=20)
    task, heard = submit(engine, BASE[:20])
    run(engine)
    assert len(heard) == 1 and task.generation.stats.finish_reason == "context"


def test_a_task_that_is_cancelled_while_its_prompt_is_computed_leaves_no_page() -> None:
    engine = opened()
    task, heard = submit(engine, BASE, max_tokens=2)
    engine.scheduler.step()
    engine.cancel(task)
    engine.scheduler.step()
    assert heard.over and not heard and not engine.scheduler.tasks
    assert heard.progress == 1


@pytest.mark.parametrize("wrong", [RuntimeError("lost"), EngineError("gone")])
def test_an_error_of_one_prompt_leaves_the_others_alone(wrong: Exception) -> None:
    engine = opened()
    first, heard = submit(engine, BASE[:6], max_tokens=9, temperature=0)
    while not heard:
        engine.scheduler.step()
    prefill = engine.library.prefill

    def fails(token_ids: np.ndarray, *rest: Any, **named: Any) -> Any:
        if len(token_ids) > 1:
            raise wrong
        return prefill(token_ids, *rest, **named)

    engine.library.prefill = fails
    _, second = submit(engine, BASE[::-1], max_tokens=2)
    run(engine)
    assert second.error is wrong and heard == alone(tuple(BASE[:6]), 9, None)
    assert not first.cancelled


def test_many_threads_at_once_say_what_each_says_alone() -> None:
    engine = opened(context=60)
    asked = [(tuple(BASE[: 3 + n % 7]), 5 + n % 4, n % 3 or None) for n in range(24)]

    def ask(prompt: tuple[int, ...], max_tokens: int, seed: int | None) -> list[int]:
        options = {"temperature": 0} if seed is None else {"temperature": 1.5, "seed": seed}
        request = engine.request(prompt, {"max_tokens": max_tokens, **options})
        return list(engine._pieces(engine.generation(request, Ids())))  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda one: ask(*one), asked))
    assert said == [alone(*one) for one in asked]


def test_submitted_generations_go_on_by_themselves() -> None:
    engine = opened()
    heard = [Heard() for _ in range(3)]
    for n, hear in enumerate(heard):
        request = engine.request(BASE[: 5 + n], {"max_tokens": 7, "temperature": 0})
        engine.submit(engine.generation(request, Ids()), hear)
    engine.until(lambda: all(hear.over for hear in heard))
    for n, hear in enumerate(heard):
        assert hear == alone(tuple(BASE[: 5 + n]), 7, None)


def read(engine: Engine, prompt: list[int], **options: Any) -> list[object]:
    """What a call says that nobody else runs."""
    return list(engine.read(engine.generation(engine.request(prompt, options), Ids())))


def test_a_prompt_that_is_watched_is_computed_in_short_chunks() -> None:
    """So that Ctrl-C ends it soon: the first has few tokens, later ones what takes 0.2 s."""
    with pytest.MonkeyPatch.context() as patch:
        use_fake_library(patch, prefill_chunk=64, max_context=200)
        engine = Engine("")
    library = engine.library
    assert isinstance(library, FakeLibrary)
    seen: list[tuple[int, int]] = []
    prompt = [1, *range(30, 130)]
    read(engine, prompt, max_tokens=1, on_prefill=lambda *event: seen.append(event))
    assert library.calls[0] == LEAST and seen[0] == (LEAST, 101) and seen[-1] == (101, 101)
    library.calls.clear()
    read(engine, [2, *prompt], max_tokens=1)
    assert library.calls == [64, 38]


@pytest.mark.parametrize(("milliseconds", "tokens"), [(100, 16), (10, 20), (1, 192), (0.1, 1984)])
def test_watched_chunks_take_as_long_on_any_machine(milliseconds: float, tokens: int) -> None:
    chunks = Chunks(page_size=64)
    assert chunks.watched == LEAST
    chunks.took(LEAST, LEAST * milliseconds / 1e3)
    assert chunks.watched == chunks.most == tokens  # also while other answers wait
    assert milliseconds > 10 or tokens * milliseconds <= 1e3 * STALL_SECONDS


def test_figures_count_what_was_computed_before_a_stop() -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_library(patch, prefill_chunk=16)
        engine = Engine("")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(engine, [1, *range(30, 130)], on_prefill=stop)
    assert (engine.stats.prompt_tokens, engine.stats.computed_tokens) == (101, 16)
