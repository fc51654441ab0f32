"""What a person is told about an error: one line for what they can fix, how to report the rest."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from minicpm_mlc.base.errors import MiniCPMError
from minicpm_mlc.base.text import LONGEST_MESSAGE, LONGEST_NAME, cut, harmless, shown

_ADVICE: dict[type[BaseException], str] = {
    MemoryError: "memory is used up; close other programs, or give a smaller --context",
    RecursionError: "something in a file or template is nested too deeply; make it flatter",
    UnicodeError: "text in another encoding than UTF-8; convert it, for example with iconv",
}
_SYSTEM = {
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EMFILE: "close other programs, or raise the limit: ulimit -n",
}
_PACKAGE = Path(__file__).parents[1]


def is_expected(error: BaseException) -> bool:
    """Whether the message alone says all that there is to know."""
    return isinstance(error, MiniCPMError | OSError)


def leaves(error: BaseException) -> bool:
    """Whether it ends a program on purpose; a panic in Rust is a BaseException too and doesn't."""
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def explain(error: BaseException) -> str:
    """The error for a terminal, cut where it is very long; of a bug, where it is and what to
    report.
    """
    if is_expected(error):
        said = _told(error) if isinstance(error, OSError) else str(error)
        return cut(harmless(said), LONGEST_MESSAGE)
    if isinstance(error, ModuleNotFoundError) and error.name == "tvm":
        return "this takes TVM's compiler, which is not installed; try: pip install minicpm-mlc"
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    said = shown(f"{type(error).__name__}: {said}".rstrip(": "), LONGEST_NAME)
    for kind, advice in _ADVICE.items():
        if isinstance(error, kind):
            return f"{advice} ({said})"
    return (
        f"{said}{_place(error)}; this is a bug in minicpm-mlc: please report it with what the same "
        "command prints with --debug"
    )


def _told(error: OSError) -> str:
    """What the system says of a file, under the name that the user knows it by."""
    from minicpm_mlc.base.partial import target_of

    if not error.strerror:
        return str(error)
    names = [
        str(target_of(Path(os.fsdecode(name))))
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes | os.PathLike)
    ]
    advice = _SYSTEM.get(error.errno or 0, "check the path")
    return f"{' -> '.join(names)}: {error.strerror}; {advice}" if names else error.strerror


def _place(error: BaseException) -> str:
    """The package's line that it came from, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents]
    return f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
