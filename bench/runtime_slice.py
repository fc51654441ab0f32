"""What runs bundles and nothing else, for a machine whose Python is another one than this.

    python bench/runtime_slice.py slice --python 3.12
    # there: PYTHONPATH=slice python3.12 bench/gpu_smoke.py run FOLDER

The folder gets TVM's runtime libraries, the name and version of its distribution, which bundles are
checked against, minicpm_mlc, and the wheels of its dependencies for that Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "minicpm_mlc"
LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_cuda.so")
DEPENDENCIES = ("apache-tvm-ffi", "numpy", "tokenizers", "jinja2", "click", "rich")
Download = Callable[[Path, str, Iterable[str]], None]  # (folder, Python's version, requirements)


def make(folder: Path, python: str, download: Download) -> None:
    """Raises SystemExit where the folder is there, or TVM isn't."""
    if folder.exists():
        raise SystemExit(f"{folder} is there already; give another folder, or: rm -r {folder}")
    tvm = importlib.util.find_spec("tvm")
    if tvm is None or not tvm.submodule_search_locations:
        raise SystemExit("TVM is not installed; try: pip install apache-tvm==0.27.0.post1")
    libraries = Path(tvm.submodule_search_locations[0]) / "lib"
    (folder / "tvm" / "lib").mkdir(parents=True)
    for name in LIBRARIES:
        shutil.copy2(libraries / name, folder / "tvm" / "lib")
    _copy_metadata(folder)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    with tempfile.TemporaryDirectory() as wheels:
        download(Path(wheels), python, [_pinned(name) for name in DEPENDENCIES])
        for wheel in sorted(Path(wheels).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


def _copy_metadata(folder: Path) -> None:
    """So that importlib.metadata tells TVM's version there."""
    tvm = distribution("apache-tvm")
    place = folder / f"apache_tvm-{tvm.version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Name: apache-tvm\nVersion: {tvm.version}\n")


def _pinned(name: str) -> str:
    """TVM's interface at the version that is here; of others any that fits."""
    return f"{name}=={distribution(name).version}" if name == "apache-tvm-ffi" else name


def pip_download(folder: Path, python: str, requirements: Iterable[str]) -> None:
    """Wheels and their dependencies for another Python. Raises SystemExit with what pip says."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    command += ["--python-version", python, "--dest", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip download failed: {done.stderr.strip()[-1000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True, help="of the other machine: 3.12")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.python, pip_download)
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
