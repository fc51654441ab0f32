"""Case 98: what a process can't have is no traceback. A context that fits is chosen, or an error
names one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import BundleError, ContextError
from minicpm_mlc.bundle.manifest import read_bundle
from minicpm_mlc.runtime_py.library import LocalLibrary
from minicpm_mlc.runtime_py.out_of_memory import within_memory

CONTEXT = 131072  # tokens, whose keys and values take 0.5 GiB
CHAT = """
import sys
from minicpm_mlc import Engine
from minicpm_mlc.base.errors import ContextError
try:
    with Engine(sys.argv[1], threads=1, context=eval(sys.argv[2])) as engine:
        engine.prefill([5, 6, 7])
        print(engine.context)
except ContextError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4-0.5B", "w4", max_position_embeddings=CONTEXT, num_layers=8).path


def limited(bundle: Path, kib: int, context: int | None = None) -> str:
    """What an engine says in a process whose address space is limited."""
    program = f'ulimit -v {kib}; exec "$@"'
    command = ["sh", "-c", program, "sh", sys.executable, "-c", CHAT, str(bundle), str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_case_98_a_context_that_fits_the_address_space_is_chosen(bundle: Path) -> None:
    need = read_bundle(bundle).manifest.memory_need
    assert need(CONTEXT) - need(0) >= 512 << 20
    assert 0 < int(limited(bundle, 600_000)) < CONTEXT


def test_case_98_a_context_that_does_not_fit_is_refused_with_one_that_does(bundle: Path) -> None:
    said = limited(bundle, 600_000, CONTEXT)
    found = re.search(r"give --context (\d+) or less", said)
    assert found, said
    assert int(limited(bundle, 600_000, int(found[1]))) == int(found[1])


def test_case_98_an_address_space_that_holds_no_context(bundle: Path) -> None:
    assert "raise the limit that this process runs under (ulimit -v" in limited(bundle, 250_000)


def test_case_98_memory_that_is_refused_while_pools_are_made(bundle: Path) -> None:
    library = LocalLibrary(read_bundle(bundle), 1)
    with pytest.raises(ContextError, match=r"no more memory \(Unable to allocate .*ulimit -v"):
        library.new_pools(1 << 32)


def test_case_98_memory_that_is_refused_to_a_call(bundle: Path, monkeypatch) -> None:
    with Engine(bundle, context=256, threads=1) as engine:
        monkeypatch.setattr(np, "empty", lambda *_: np.zeros((1 << 50,), np.float64))
        with pytest.raises(ContextError, match="no more memory"):
            engine.logits([5, 6, 7])
        monkeypatch.undo()
        assert len(engine.logits([5, 6, 7])) == 3  # and the engine goes on


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Traceback ...\nstd::bad_alloc"),
        BundleError("weights: [Errno 12] Cannot allocate memory"),
        BundleError("model.so: failed to map segment from shared object"),
    ],
)
def test_case_98_each_way_to_refuse_memory(error: Exception) -> None:
    @within_memory
    def refused() -> None:
        raise error

    with pytest.raises(ContextError, match=r"no more memory \(.+\); give a smaller --context"):
        refused()


@pytest.mark.parametrize("error", [RuntimeError("lost"), BundleError("damaged"), KeyError("a")])
def test_other_errors_pass(error: Exception) -> None:
    @within_memory
    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fails()
    assert caught.value is error
