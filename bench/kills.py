"""Kills compile, package, save and upload at random points, and fills their disk: what is left must
be the old thing, the new thing or nothing, and the next run must put all right.

    python bench/kills.py CHECKPOINT --bundle build/demo             # 20 points of each
    python bench/kills.py CHECKPOINT --bundle build/demo --points 0  # no end

Half of the points are moments, half are amounts of bytes written. After each kill the result is
either not there or whole; after the last one the operation runs to its end, its result is what it
is without kills, and nothing lies beside it. A full disk is a small tmpfs in a mount namespace of
its own (skipped where the system forbids those): the operation says so, with status 1, and leaves
nothing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.bundle.manifest import MANIFEST, Manifest
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.prompt.template import Message
from minicpm_mlc.runtime_py.chat.session import ChatSession

PYTHON = [sys.executable, "-m", "minicpm_mlc"]
SAVE = """
import sys
sys.path.insert(0, sys.argv[2])
from kills import session_errors
messages = [{"role": "user", "content": "abcdefgh" * 1000}] * 2000
sys.exit("\\n".join(session_errors(f"/save {sys.argv[1]}/saved.json", messages)) or 0)
"""
UPLOAD = """
import queue, sys, threading
from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.runtime_py.rpc.client import connect
from minicpm_mlc.runtime_py.rpc.server import run_server
said = queue.Queue()
options = {"port": 0, "key": "a key", "folder": sys.argv[1], "say": said.put}
threading.Thread(target=run_server, kwargs=options, daemon=True).start()
try:
    connect(said.get(timeout=60).split()[2].rstrip(";"), "a key", [sys.argv[2]])
except MiniCPMError as error:
    sys.exit(f"error: {error}")
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # in which anyone may mount


class KillError(Exception):
    """What a killed or cut run left is not as it should be."""


@dataclass(frozen=True)
class Operation:
    """A command that writes into `folder`; `whole` raises or returns what is there (None:
    nothing), `leftovers` is what should not be.
    """

    name: str
    command: Callable[[Path], list[str]]
    whole: Callable[[Path], str | None]
    results: tuple[str, ...]

    def leftovers(self, folder: Path) -> list[str]:
        """What is neither a result nor the folder of temporary files, which is empty."""
        beside = [entry for entry in folder.iterdir() if entry.name not in (*self.results, "tmp")]
        return sorted(map(str, [*beside, *(folder / "tmp").iterdir(), *folder.rglob("*.partial*")]))


def session_errors(line: str, messages: Sequence[Message] = ()) -> list[str]:
    """What a command says that went wrong, in a chat without a model."""
    errors: list[str] = []
    engine = SimpleNamespace(defaults=SamplingParams())
    chat = ChatSession(engine, lambda text, kind: errors.append(text) if kind == "error" else None)  # type: ignore[arg-type]
    chat.messages = list(messages)
    chat.handle(line)
    return errors


def digest(files: Iterator[Path]) -> str:
    """SHA-256 over names and contents."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def whole_bundle(folder: Path) -> str | None:
    """Raises KillError for a bundle with a file that its manifest doesn't have so."""
    bundle = folder / "bundle"
    if not bundle.exists():
        return None
    for name, entry in Manifest.load(bundle).files.items():
        if hashlib.sha256((bundle / name).read_bytes()).hexdigest() != entry["sha256"]:
            raise KillError(f"{bundle / name} is damaged")
    return digest(iter(sorted(bundle.iterdir())))


def whole_archive(folder: Path) -> str | None:
    """Raises tarfile.TarError for an archive that ends early."""
    archive = folder / "bundle.tar"
    if not archive.exists():
        return None
    with tarfile.open(archive) as opened:
        if not any(name.endswith(MANIFEST) for name in opened.getnames()):
            raise KillError(f"{archive} has no {MANIFEST}")
    return digest(iter([archive]))


def whole_session(folder: Path) -> str | None:
    """Raises KillError for a saved session that can't be loaded."""
    saved = folder / "saved.json"
    if not saved.exists():
        return None
    if errors := session_errors(f"/load {saved}"):
        raise KillError(errors[0])
    return digest(iter([saved]))


def whole_store(bundle: Path, folder: Path) -> str | None:
    """Raises KillError for a stored file whose name is not its hash; None until all are there."""
    files = sorted((folder / "store" / "files").glob("*"))
    stored = {file.name: file for file in files if not file.suffix}
    for name, file in stored.items():
        if hashlib.sha256(file.read_bytes()).hexdigest() != name:
            raise KillError(f"{file} is damaged")
    wanted = {entry["sha256"] for entry in Manifest.load(bundle).files.values()}
    return digest(iter(stored.values())) if wanted <= stored.keys() else None


def operations(checkpoint: Path, bundle: Path, options: list[str]) -> list[Operation]:
    """Everything that writes files that people keep."""
    compile_ = [*PYTHON, "compile", str(checkpoint), *options, "--force", "-o"]
    package = [*PYTHON, "package", str(bundle), "--for", "linux", "-o"]
    save, upload = ([sys.executable, "-c", script] for script in (SAVE, UPLOAD))
    here = str(Path(__file__).parent)
    return [
        Operation("compile", lambda d: [*compile_, str(d / "bundle")], whole_bundle, ("bundle",)),
        Operation(
            "package", lambda d: [*package, str(d / "bundle.tar")], whole_archive, ("bundle.tar",)
        ),
        Operation("save", lambda d: [*save, str(d), here], whole_session, ("saved.json",)),
        Operation(
            "upload",
            lambda d: [*upload, str(d / "store"), str(bundle)],
            functools.partial(whole_store, bundle),
            ("store",),
        ),
    ]


def run(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Starts a command whose temporary files lie in the folder too, in a process group of its
    own.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def finished(operation: Operation, folder: Path) -> tuple[float, str | None]:
    """Seconds of a whole run, and what it made. Raises KillError where it fails or leaves more."""
    start = time.monotonic()
    process = run(operation.command(folder), folder)
    _, said = process.communicate(timeout=600)
    seconds = time.monotonic() - start
    if process.returncode:
        raise KillError(f"{operation.name} failed: {said.strip()}")
    if left := operation.leftovers(folder):
        raise KillError(f"{operation.name} left {', '.join(left)}")
    return seconds, operation.whole(folder)


@functools.cache
def measured(operation: Operation) -> tuple[float, int, str | None]:
    """Seconds and bytes of a whole run elsewhere, and what it made. Raises KillError."""
    with tempfile.TemporaryDirectory(prefix="minicpm-whole-") as name:
        seconds, made = finished(operation, Path(name))
        return seconds, size(Path(name)), made


def killed(operation: Operation, folder: Path, seconds: float, written: int | None) -> bool:
    """Starts the operation and kills it after some seconds, or once so many bytes are written;
    False if it was faster.
    """
    process, start = run(operation.command(folder), folder), time.monotonic()
    while process.poll() is None:
        due = time.monotonic() - start > seconds if written is None else size(folder) >= written
        if due:
            os.killpg(process.pid, 9)
            process.communicate()
            return True
        time.sleep(0.002)
    process.communicate()
    return False


def size(folder: Path) -> int:
    """Bytes of the files below a folder, which others change meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def campaign(operation: Operation, points: int, rng: random.Random) -> dict[str, object]:
    """Kills it at so many points. Raises KillError."""
    seconds, most, expected = measured(operation)
    hits = 0
    with tempfile.TemporaryDirectory(prefix="minicpm-kills-") as name:
        folder = Path(name)
        for point in range(points):
            written = rng.randint(1, most) if point % 2 else None
            hits += killed(operation, folder, rng.uniform(0, seconds), written)
            if operation.whole(folder) not in (None, expected):
                raise KillError(f"{operation.name} left another result")
        _, made = finished(operation, folder)
        if made != expected:
            raise KillError(f"after {hits} kills {operation.name} makes another result")
    return {"operation": operation.name, "points": points, "killed": hits}


def full_disk(operation: Operation, points: int, rng: random.Random) -> dict[str, object]:
    """Runs it on disks that are too small. Raises KillError."""
    most, failed = measured(operation)[1], 0
    with tempfile.TemporaryDirectory(prefix="minicpm-full-") as name:
        for _ in range(points):
            failed += on_small_disk(operation, Path(name), rng.randint(1, most))
    return {"operation": operation.name, "points": points, "full disks": failed}


def no_small_disks() -> str | None:
    """Why this system can't make a small disk; None if it can."""
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        return f"unshare: {error.strerror}"
    return done.stderr.strip() or None if done.returncode else None


def on_small_disk(operation: Operation, folder: Path, room: int) -> bool:
    """Whether it failed on a disk of so many bytes. Raises KillError if it did with a traceback,
    or left anything.
    """
    script = (
        f'mount -t tmpfs -o size={room} tmpfs "$0" && mkdir "$0/tmp"; '
        'TMPDIR="$0/tmp" "$@" > /dev/null; status=$?; '
        'ls -A "$0/tmp"; ls -A -I tmp -I store "$0"; exit $status'
    )
    inner = ["sh", "-c", script, str(folder), *operation.command(folder)]
    done = subprocess.run([*NAMESPACE, *inner], capture_output=True, text=True, timeout=600)
    if not done.returncode:
        return False
    if done.stdout or "Traceback" in done.stderr:
        raise KillError(
            f"{operation.name} on a disk of {room} bytes left {done.stdout!r}, said {done.stderr}"
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bundle", type=Path, required=True, help="to package")
    parser.add_argument("--points", type=int, default=20, help="of each operation; 0: no end")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if no_disks := no_small_disks():
        print(f"disks are not filled: {no_disks}", file=sys.stderr)
    seeds = itertools.count(args.seed) if not args.points else [args.seed]
    try:
        for seed in seeds:
            rng = random.Random(seed)
            for operation in operations(args.checkpoint, args.bundle, []):
                print(json.dumps(campaign(operation, args.points or 20, rng)), flush=True)
                if not no_disks:
                    print(json.dumps(full_disk(operation, args.points or 20, rng)), flush=True)
    except (MiniCPMError, KillError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
