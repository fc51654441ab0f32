"""Files on their way: how many bytes came, several at once, and going on with one that was begun.

huggingface_hub 2 throws away what it had of a file when its process ends, so that a model of four
files of 5 GB may never arrive over a bad line; large files are fetched here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.files import sha256_of
from minicpm_mlc.base.partial import hold
from minicpm_mlc.base.progress import Progress
from minicpm_mlc.base.text import shown
from minicpm_mlc.hub.listing import RemoteFile

AT_ONCE = 4  # files
PAUSES = (1, 2, 4, 8)  # seconds before another try that follows one which brought nothing
LONGEST_PAUSE = 60  # seconds that a hub may ask to wait

# From a place in the file on: where the bytes really begin (0 where ranges are refused), and them.
Open = Callable[[int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


class UnreachableError(HubError):
    """No way to the hub: what was fetched before may do."""


@contextmanager
def understood(hub: str) -> Iterator[None]:
    """Raises HubError where an answer isn't a hub's, such as the page of a proxy."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{hub} answers what no hub does ({shown(error)}); see the address of the mirror, and "
            "whether the network asks for a login"
        ) from error


class Counter:
    """Bytes that came, of all files together, shown as the stage "download"; `stop` ends all
    transfers at their next block.
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = 0
        self._lock = threading.Lock()
        self._stopped = False

    def __call__(self, count: int) -> None:
        if self._stopped:
            raise HubError("the download was broken off")
        with self._lock:
            self._done = min(self._done + count, self._total)
            self._progress("download", self._done, self._total)

    def stop(self) -> None:
        """Ends what is running."""
        self._stopped = True


def fetch_all(
    files: Sequence[RemoteFile], fetch: Callable[[RemoteFile], object], counter: Counter
) -> None:
    """Calls `fetch` for each file, AT_ONCE at a time; the first error, and Ctrl-C, end all."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(fetch, file) for file in files]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
        except BaseException:
            counter.stop()
            for one in running:
                one.cancel()
            raise


class Interrupted(Exception):
    """A transfer that may be tried again; `pause`: the seconds that the hub asks for."""

    def __init__(self, reason: HubError, pause: float | None = None) -> None:
        self.reason, self.pause = reason, pause


def complete(partial: Path, file: RemoteFile, open_at: Open, counter: Counter) -> None:
    """Brings `partial` to the whole file, from where it is, however often the connection is cut.

    Raises HubError where tries one after another bring nothing, where another process writes it,
    and for bytes other than the file's; these are removed.
    """
    partial.touch()
    try:
        held = hold(partial)
    except BlockingIOError:
        raise HubError(
            f"{file.path} is being downloaded by another process; wait until it ends"
        ) from None
    try:
        counter(partial.stat().st_size)
        _read_to_end(partial, file, open_at, counter)
        check(partial, file)
    finally:
        held.close()


def _read_to_end(partial: Path, file: RemoteFile, open_at: Open, counter: Counter) -> None:
    idle = 0
    while (before := partial.stat().st_size) < file.size:
        try:
            _append(partial, file.size, open_at, counter)
            reason, pause = HubError(f"the hub ends {file.path} too early"), None
        except Interrupted as cut:
            reason, pause = cut.reason, cut.pause
        after = partial.stat().st_size
        if after >= file.size:
            return
        idle = 0 if after > before else idle + 1
        if idle > len(PAUSES) or (pause or 0) > LONGEST_PAUSE:
            raise reason
        time.sleep(pause if pause is not None else PAUSES[max(idle - 1, 0)])


def _append(partial: Path, size: int, open_at: Open, counter: Counter) -> None:
    """As far as the connection brings it; no more than one block beyond `size`."""
    there = partial.stat().st_size
    with open_at(there) as (start, blocks), open(partial, "r+b") as out:
        counter(start - there)
        out.truncate(start)
        out.seek(start)
        for block in blocks:
            out.write(block)
            counter(len(block))
            if out.tell() > size:
                return


def first_bytes(blocks: Iterator[bytes], count: int) -> bytes:
    """What comes first, at most `count` bytes of it."""
    came = b""
    for block in blocks:
        came += block
        if len(came) >= count:
            break
    return came[:count]


def check(path: Path, file: RemoteFile) -> None:
    """Removes what isn't the file, and raises HubError then."""
    size = path.stat().st_size
    found = sha256_of(path) if size == file.size and file.sha256 else None
    if size == file.size and found == file.sha256:
        return
    path.unlink()
    seen = f"{size:,} bytes" if size != file.size else f"SHA-256 {found}"
    expected = f"{file.size:,}" if size != file.size else file.sha256
    raise HubError(
        f"{file.path} came with {seen}, expected {expected}: it was damaged on the way, or the hub "
        "or its mirror holds another file; the same command fetches it again"
    )
