"""Who is next of those that wait."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

from minicpm_mlc.runtime_py.scheduler.task import Task
from minicpm_mlc.runtime_py.scheduler.waiting import Waiting


def task(client: str) -> Task:
    generation: Any = SimpleNamespace()
    return Task(generation, lambda event: None, client)


def test_clients_take_turns_and_each_ones_tasks_keep_their_order():
    waiting, running = Waiting(), Counter()
    many = [task("a") for _ in range(3)]
    late = task("b")
    for each in (many[2], many[0], late, many[1]):
        waiting.add(each)
    order = []
    while (found := waiting.next(running)) is not None:
        waiting.remove(found)
        running[found.client] += 1
        order.append(found)
    assert order == [many[0], late, many[1], many[2]]
    assert list(waiting) == [] and late not in waiting


def test_who_gave_its_pages_back_comes_before_those_behind_it():
    waiting = Waiting()
    first, second = task("a"), task("a")
    waiting.add(second)
    waiting.add(first)
    assert waiting.next(Counter()) is first and list(waiting) == [first, second]


def test_threads_may_add_while_one_takes():
    waiting, taken = Waiting(), []
    count = 300

    def add(name: str) -> None:
        for _ in range(count):
            waiting.add(task(name))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    while len(taken) < 4 * count:
        if found := waiting.next(Counter()):
            waiting.remove(found)
            taken.append(found)
    for thread in threads:
        thread.join()
    assert len({id(each) for each in taken}) == 4 * count
    for name in "abcd":
        arrivals = [each.arrival for each in taken if each.client == name]
        assert arrivals == sorted(arrivals)
