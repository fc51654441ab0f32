"""What the distributions take when they are installed: python tools/install_size.py [DIST].

DIST holds the wheels that tools/wheels.py builds, dist/ by default. Each distribution goes into a
virtual environment of its own; megabytes are those of its files, less an empty environment's.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

NAMES = ("minicpm-mlc-runtime", "minicpm-mlc")
SHOWN = 5  # of a distribution's folders, the largest


def main() -> None:
    """Prints a Markdown table."""
    wheels = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    print("| distribution | installed | seconds | of a core | largest folders |")
    print("|---|--:|--:|--:|---|")
    for name in NAMES:
        print(f"| `{name}` | {_row(name, wheels)} |")


def _row(name: str, wheels: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        venv.create(root, with_pip=True)
        empty = _bytes(root)
        packages = next(root.glob("lib/python*/site-packages"))
        before = {each.name for each in packages.iterdir()}
        python = root / "bin" / "python"
        command = [python, "-m", "pip", "install", "-q", "--find-links", wheels, name]
        began, spent = time.perf_counter(), _processor_seconds()
        subprocess.run(list(map(str, command)), check=True)
        seconds, spent = time.perf_counter() - began, _processor_seconds() - spent
        taken = _bytes(root) - empty
        sizes = {each.name: _bytes(each) for each in packages.iterdir() if each.name not in before}
    largest = sorted(sizes, key=lambda each: -sizes[each])[:SHOWN]
    told = ", ".join(f"{each} {sizes[each] / 1e6:.0f}" for each in largest)
    return f"{taken / 1e6:.0f} MB | {seconds:.0f} | {spent:.0f} | {told}"


def _bytes(place: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _processor_seconds() -> float:
    """Of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
