"""The pool of threads in compiled CPU libraries: its C under a sanitizer, and engines that share it
with forks, short-lived threads and each other.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.runtime_py import thread_pool
from minicpm_mlc.runtime_py.ffi import tvm_ffi
from minicpm_mlc.runtime_py.machine import CORES
from minicpm_mlc.runtime_py.thread_pool import ThreadPool, pool_for
from minicpm_mlc.targets.cpu import THREAD_POOL
from minicpm_mlc.targets.link import PLATFORMS, compile_object

DRIVER = Path(__file__).parent / "thread_pool_driver.c"
PROMPT = [5, 6, 7, 8, 9]
THREADS = min(2, len(CORES))

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc with its sanitizers")
@pytest.mark.parametrize(
    ("sanitizer", "forks"), [("thread", ""), ("address,undefined", ""), ("", "forks")]
)
def test_the_pool_holds_under_many_callers(tmp_path: Path, sanitizer: str, forks: str) -> None:
    program = tmp_path / "driver"
    flags = [f"-fsanitize={sanitizer}"] if sanitizer else []
    sources = [str(DRIVER), str(THREAD_POOL)]
    options = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["gcc", *options, *flags, *sources, "-o", program], check=True)
    for _ in range(3):
        ran = subprocess.run([program, forks], capture_output=True, text=True, timeout=120)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "held\n", "")


@pytest.mark.parametrize("name", sorted(PLATFORMS.keys() - {"web"}))  # one thread
def test_the_pool_compiles_for_every_platform(tmp_path: Path, name: str) -> None:
    compile_object(PLATFORMS[name].zig, THREAD_POOL, tmp_path / "pool.o")


def test_the_pool_compiles_for_windows(tmp_path: Path) -> None:
    compile_object("x86_64-windows-gnu", THREAD_POOL, tmp_path / "pool.o")


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4-0.5B").path


@pytest.fixture
def engine(bundle: Path):
    with Engine(bundle, context=256, threads=THREADS) as engine:
        yield engine


def answer(engine: Engine) -> str:
    return "".join(map(str, engine.prefill(PROMPT).argsort()[-4:])) + str(engine.truncate(0))


def ask(bundle: Path, answers: multiprocessing.Queue, inherited: list[Engine]) -> None:
    """What a worker process does: an engine of its own, and its parent's."""
    with Engine(bundle, context=256, threads=THREADS) as engine:
        answers.put(answer(engine))
    answers.put([answer(engine) for engine in inherited])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_case_79_workers_of_a_process_that_has_computed_answer(
    bundle: Path, engine: Engine, method: str
) -> None:
    expected = answer(engine)
    context = multiprocessing.get_context(method)
    answers: multiprocessing.Queue = context.Queue()
    inherited = [engine] if method == "fork" else []
    worker = context.Process(target=ask, args=(bundle, answers, inherited))
    worker.start()
    try:
        assert answers.get(timeout=60) == expected
        assert answers.get(timeout=60) == [expected for _ in inherited]
    finally:
        worker.kill()
        worker.join()
    assert answer(engine) == expected


def put_answer(answers: Any, engine: Engine) -> None:
    answers.put(answer(engine))


def test_case_79_a_child_forked_while_others_compute_answers(bundle: Path, engine: Engine) -> None:
    expected, over = answer(engine), threading.Event()

    def compute() -> None:
        with Engine(bundle, context=256, threads=THREADS) as other:
            while not over.is_set():
                answer(other)

    computing = threading.Thread(target=compute)
    computing.start()
    try:
        for _ in range(20):
            context = multiprocessing.get_context("fork")
            answers = context.SimpleQueue()
            worker = context.Process(target=put_answer, args=(answers, engine))
            worker.start()
            worker.join(30)
            assert worker.exitcode == 0 and answers.get() == expected
    finally:
        over.set()
        computing.join()


def test_case_79_a_fork_waits_until_no_other_thread_is_within_a_call(bundle: Path) -> None:
    pool, inside, left = pool_for(bundle / "model.so"), threading.Event(), threading.Event()

    def call() -> None:
        with pool.turn(1):
            inside.set()
            time.sleep(0.1)
            left.set()

    calling = threading.Thread(target=call)
    calling.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(not left.is_set())
    calling.join()
    assert os.waitpid(child, 0)[1] == 0


def test_case_79_a_lock_of_another_thread_is_free_in_the_child(engine: Engine) -> None:
    expected, locked, over = answer(engine), threading.Event(), threading.Event()

    def hold() -> None:
        with engine._turns.changed:
            locked.set()
            over.wait()

    holding = threading.Thread(target=hold)
    holding.start()
    locked.wait()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=put_answer, args=(answers, engine))
    worker.start()
    worker.join(30)
    over.set()
    holding.join()
    worker.kill()
    assert worker.exitcode == 0 and answers.get() == expected


def threads_here() -> int:
    return len(os.listdir("/proc/self/task"))


def wait_for(true: Callable[[], bool]) -> None:
    """Until something is true, on a slow machine too. Raises AssertionError where it never is."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_case_80_a_hundred_threads_that_called_leave_no_thread_and_no_work(engine: Engine) -> None:
    expected = answer(engine)
    before, answers = threads_here(), queue.SimpleQueue()
    for _ in range(100):
        thread = threading.Thread(target=lambda: answers.put(answer(engine)))
        thread.start()
        thread.join()
    assert {answers.get() for _ in range(100)} == {expected}
    wait_for(lambda: threads_here() == before)  # one may still be ending after its join
    spent = time.process_time()
    time.sleep(1)
    assert time.process_time() - spent < 0.05


def test_case_80_the_threads_of_a_server_share_the_pool(bundle: Path, engine: Engine) -> None:
    """Each of its threads is a new one, and has an engine to itself while it answers."""
    expected = answer(engine)
    engines: queue.SimpleQueue[Engine] = queue.SimpleQueue()
    for _ in range(3):
        engines.put(Engine(bundle, context=256, threads=THREADS))
    most = threads_here() + 1 + 8  # the server's own, and one for each request

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mine = engines.get()
            told = f"{answer(mine)} {threads_here()}".encode()
            engines.put(mine)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        told = at_once([lambda: urlopen(url, timeout=60).read().decode()] * 8)
        server.shutdown()
    assert {text.split()[0] for text in told} == {expected.split()[0]}
    assert max(int(text.split()[1]) for text in told) <= most + 8  # and who asks


def at_once(calls: list[Callable[[], str]]) -> list[str]:
    results: queue.SimpleQueue[str] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda call=call: results.put(call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results.get(timeout=1) for _ in calls]


def test_two_engines_of_different_threads_answer_at_once_as_alone(bundle: Path) -> None:
    with (
        Engine(bundle, context=256, threads=1) as one,
        Engine(bundle, context=256, threads=THREADS) as two,
    ):
        expected = answer(one)

        def often(engine: Engine) -> str:
            (only,) = {answer(engine) for _ in range(20)}
            return only

        assert at_once([lambda: often(one), lambda: often(two)]) == [expected] * 2


TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def launched(pool: ThreadPool, body: Callable[[int], int], threads: int, tasks: int) -> int:
    """What the pool's launch returns for a loop of `tasks`."""
    launch = ctypes.CFUNCTYPE(ctypes.c_int, TASK, ctypes.c_void_p, ctypes.c_int)
    call = launch(pool.launch.value or 0)
    with pool.turn(threads):
        return call(TASK(lambda task, *_: body(task)), None, tasks)


def test_as_many_threads_compute_as_were_asked_for(bundle: Path, engine: Engine) -> None:
    pool = pool_for(bundle / engine.manifest.library)
    for threads in (1, THREADS, 1):
        seen: set[int] = set()

        def body(_: int, seen: set[int] = seen, threads: int = threads) -> int:
            seen.add(threading.get_native_id())
            time.sleep(0.01)  # lets others come, if there are too many
            wait_for(lambda: len(seen) >= threads)
            return 0

        assert launched(pool, body, threads, 20) == 0
        assert len(seen) == threads


def test_a_failing_tasks_error_reaches_the_caller(bundle: Path, engine: Engine) -> None:
    library = tvm_ffi.libinfo.find_libtvm_ffi()
    ffi = ctypes.CDLL(library)
    here, came = threading.get_native_id(), threading.Event()

    def body(_: int) -> int:
        if threading.get_native_id() == here:
            came.wait(60 if THREADS > 1 else 0)
            return 0
        came.set()
        ffi.TVMFFIErrorSetRaisedFromCStr(b"ValueError", b"task failed")
        return -1

    pool = pool_for(bundle / engine.manifest.library)
    assert launched(pool, body, THREADS, 20) == (-1 if THREADS > 1 else 0)
    error = ctypes.c_void_p()
    ffi.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
    assert bool(error.value) == (THREADS > 1)


def test_threads_that_the_system_refuses_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        minicpm_pool_enter = staticmethod(lambda threads, tasks: 1)
        left = 0

        def minicpm_pool_leave(self) -> None:
            self.left += 1

    pool = object.__new__(ThreadPool)
    pool._library = library = Library()  # type: ignore[assignment]
    with pytest.raises(EngineError, match=r"started 0 of 3 threads; give fewer \(--threads 1\)"):
        with pool.turn(4):
            pass
    assert library.left == 1


def test_all_libraries_of_a_process_use_one_pool(bundle: Path, demo_bundle: Path) -> None:
    with Engine(bundle, context=64), Engine(demo_bundle, context=64):
        assert len(thread_pool._shared) == 1
        for folder in (bundle, demo_bundle):
            library = ctypes.CDLL(str(folder / "model.so"))
            pointer = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
            assert pointer.value == thread_pool._shared[0].launch.value
