"""Files of strangers for native/engine: damaged ones are refused by a sentence, and nothing else
happens. Some mutations of each kind, many under sanitizers; with -m campaign libFuzzer's own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import mutations
import numpy as np
import pytest
import tiny_tokenizers
from engine_process import built
from engine_sanitized import SANITIZED, sanitized_program

from minicpm_mlc.bundle.kernel_cases import INDEX, Case, Expected, Tiled, to_bytes
from minicpm_mlc.runtime_py.prefix_cache import Kept
from minicpm_mlc.runtime_py.saved_state import MAGIC, TAIL, checksum, save_state

PROGRAM = Path(__file__).with_name("engine_fuzz.cc")
MUTATED = 3000 if SANITIZED else 120  # of each target


def tokenizers(_: Path) -> list[bytes]:
    made = [tiny_tokenizers.sentencepiece(), tiny_tokenizers.byte_level()]
    normal = json.loads(made[1].to_str()) | {"normalizer": {"type": "NFC"}}
    return [*(each.to_str().encode() for each in made), json.dumps(normal).encode()]


def sessions(folder: Path) -> list[bytes]:
    """Of pools as engine_fuzz.cc has them: two texts that share a page, one of them the own."""
    pools = [np.ones((4, 2, 8), np.float32), np.full((4, 16), 7, np.uint8)]
    first, second, third = tuple(range(64)), tuple(range(9)), tuple(range(5, 40))
    kept = [Kept(-1, first, 0), Kept(0, second, 1), Kept(0, third, 2)]
    save_state(folder / "saved", "manifest", kept, [*first, *third], pools)
    return [(folder / "saved").read_bytes()]


def signed(data: bytes, draw: random.Random) -> bytes:
    """A session whose texts or footer were changed by somebody who knows its checksums."""
    length = int.from_bytes(data[-TAIL : 8 - TAIL], "little")
    said = json.loads(data[-TAIL - length : -TAIL])
    texts = np.frombuffer(data[len(MAGIC) :], np.int32, said["tokens"]).copy()
    pages = data[len(MAGIC) + texts.nbytes : -TAIL - length]
    for _ in range(draw.randint(1, 3)):
        odd = [-(2**31), -2, -1, 0, 1, 2, 63, 64, 65, 2**31 - 1]
        texts[draw.randrange(len(texts))] = draw.choice(odd)
    said["sums"][0] = checksum(texts)
    if draw.random() < 0.3:
        said = mutations.changed(said, draw)
    footer = json.dumps(said).encode()
    tail = len(footer).to_bytes(8, "little") + hashlib.sha256(footer).digest()
    return MAGIC + texts.tobytes() + pages + footer + tail


def mutated_session(data: bytes, draw: random.Random) -> bytes:
    return signed(data, draw) if draw.random() < 0.8 else mutations.mutate(data, draw)


def mutated_cases(data: bytes, draw: random.Random) -> bytes:
    """An archive whose index or arrays were changed by somebody who knows how NumPy stores them."""
    if draw.random() < 0.3:
        return mutations.mutate(data, draw)
    arrays = dict(np.load(io.BytesIO(data)))
    if draw.random() < 0.8:
        index = mutations.changed(json.loads(arrays[INDEX].tobytes()), draw)
        arrays[INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    else:
        arrays["0"] = arrays["0"][: draw.randrange(4)]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


MUTATE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "session": mutated_session,
    "cases": mutated_cases,
}


def file_of(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(folder / name).read_bytes()]


def cases(_: Path) -> list[bytes]:
    """Of a kernel whose third argument is new, and whose first is written into."""
    rows = Tiled(np.arange(3, dtype=np.float32), (7,)), Tiled(np.ones((1, 4), np.int8), (5, 8))
    written = Expected(0, Tiled.whole(np.ones(2, np.float32)), np.array([0, 6], np.int32))
    new = Expected(2, Tiled(np.ones((1, 1), np.float16), (3, 2)))
    record = {"file": "made", "operator": "made", "fields": {}}
    return [to_bytes([Case("kernel", record, 0.1, rows, [written, new])])]


TARGETS: dict[str, Callable[[Path], list[bytes]]] = {
    "tokenizer": tokenizers,
    "manifest": file_of("manifest.json"),
    "params": file_of("tensor-cache.json"),
    "rules": file_of("engine.json"),
    "session": sessions,
    "cases": cases,
}


def inputs(target: str, folder: Path, count: int) -> Iterable[bytes]:
    """The seeds, then mutations of them: the same ones in every run."""
    seeds = TARGETS[target](folder)
    yield from seeds
    draw = random.Random(target)
    mutate = MUTATE.get(target, mutations.mutate)
    for _ in range(count):
        yield mutate(draw.choice(seeds), draw)


def tried(program: Path, target: str, bundle: Path, folder: Path, count: int) -> list[str]:
    """What the engine said of each input."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    tried = list(inputs(target, copy, count))
    said = "".join(f"{data.hex()}\n" for data in tried)
    command = [str(program), target, str(copy)]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    answers = done.stdout.splitlines()
    culprit = tried[len(answers)][:300] if len(answers) < len(tried) else b""
    assert done.returncode == 0 and not culprit, f"{culprit!r}\n{done.stderr[-3000:]}"
    return answers


@pytest.mark.parametrize("target", TARGETS)
def test_strangers_files_are_refused_or_taken(
    target: str, demo_bundle: Path, tmp_path: Path
) -> None:
    answers = tried(built(PROGRAM), target, demo_bundle, tmp_path, MUTATED)
    seeds = len(TARGETS[target](tmp_path / "bundle"))
    assert answers[:seeds] == ["taken"] * seeds
    refused = [json.loads(answer) for answer in answers if answer != "taken"]
    assert len(refused) > MUTATED // 10
    # each says what to do
    assert all("; " in why and len(why) < 1000 for why in refused), refused


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("clang++-15"), reason="no clang with libFuzzer")
def test_libfuzzer_finds_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    """MINICPM_FUZZ_SECONDS for each target, 20 unless set."""
    flags = ("-O1", "-g", "-fsanitize=fuzzer-no-link,address,undefined")
    link = ("-fsanitize=fuzzer", "-DMINICPM_LIBFUZZER")
    program = sanitized_program(PROGRAM, "clang++-15", flags, link)
    seconds = os.environ.get("MINICPM_FUZZ_SECONDS", "20")
    for target in TARGETS:
        folder = tmp_path / target
        copy = Path(shutil.copytree(demo_bundle, folder / "bundle"))
        (folder / "corpus").mkdir()
        for number, data in enumerate(inputs(target, copy, 20)):
            (folder / "corpus" / str(number)).write_bytes(data)
        limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048"]
        done = subprocess.run(
            [str(program), str(folder / "corpus"), "-max_len=65536", *limits],
            env=os.environ | {"MINICPM_FUZZ_TARGET": target, "MINICPM_FUZZ_FOLDER": str(copy)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
