"""The wheels of a release, one command: python tools/wheels.py [OUT].

minicpm-mlc-runtime is the package, a wheel for each platform that TVM has one for. It carries TVM's
runtime libraries (4 MB of apache-tvm's 305), and tokenizers, whose distribution brings a hub's
client (31 MB). minicpm-mlc is that, TVM's compiler, the linker and what pyproject.toml puts beside
the package: the demo's model, and the sources that package --engine builds. A checkout installs as
one distribution instead (pip install .), with the same files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).parents[1]
TVM = "apache-tvm"
COMPILER = (f"{TVM}==", "ziglang")  # what only compiling takes
TOKENIZERS = "tokenizers>="
PLATFORMS = (  # as pip names them
    "manylinux_2_28_x86_64",
    "manylinux_2_28_aarch64",
    "macosx_11_0_arm64",
    "win_amd64",
)
LIBRARIES = ("tvm_runtime", "tvm_runtime_cuda", "tvm_runtime_metal")
SUFFIXES = (".so", ".dylib", ".dll")
HOOK = """from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Tagged(BuildHookInterface):
    def initialize(self, version, build_data):
        build_data["pure_python"], build_data["tag"] = False, "py3-none-{tag}"
"""
BACKEND = """[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

"""


def main() -> None:
    """Builds all wheels into the folder OUT, dist/ by default."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = told["project"] | {"version": _version()}
    beside = told["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    with tempfile.TemporaryDirectory() as folder:
        _build(_full(Path(folder) / "full", project, beside), out)
        for platform in PLATFORMS:
            _build(_runtime(Path(folder) / platform, project, platform), out)
    for wheel in sorted(out.glob(f"*{project['version']}*.whl")):
        print(f"{wheel.stat().st_size / 1e6:8.1f} MB  {wheel.name}")


def _version() -> str:
    text = (ROOT / "minicpm_mlc" / "__init__.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]


def _full(folder: Path, project: dict[str, Any], beside: dict[str, str]) -> Path:
    """The project of minicpm-mlc: the distributions that it is made of, and the folders `beside`
    the package, by their places in the checkout.
    """
    needs = [each for each in project["dependencies"] if each.startswith(COMPILER)]
    runtime = f"minicpm-mlc-runtime=={project['version']}"
    build = '[tool.hatch.build.targets.wheel]\nonly-include = ["minicpm_mlc"]\n'
    _write(folder, project | {"dependencies": [runtime, *needs]}, build)
    for here, there in beside.items():
        shutil.copytree(ROOT / here, folder / there, ignore=shutil.ignore_patterns("build"))
    return folder


def _runtime(folder: Path, project: dict[str, Any], platform: str) -> Path:
    """The project of minicpm-mlc-runtime for a platform."""
    left_out = (*COMPILER, TOKENIZERS)
    changed = {
        "name": "minicpm-mlc-runtime",
        "description": "Runs bundles of minicpm-mlc without the compiler: chat, server, benchmarks",
        "dependencies": [n for n in project["dependencies"] if not n.startswith(left_out)],
        "scripts": project["scripts"],
    }
    build = (
        '[tool.hatch.build.targets.wheel]\nonly-include = ["minicpm_mlc"]\n'
        '[tool.hatch.build.targets.wheel.hooks.custom]\npath = "hook.py"\n'
    )
    _write(folder, project | changed, build)
    package = folder / "minicpm_mlc"
    ignored = shutil.ignore_patterns("__pycache__", "tvm_runtime", "carried")
    shutil.copytree(ROOT / "minicpm_mlc", package, ignore=ignored)
    _carry_tokenizers(package / "carried", project, platform)
    tag = _carry_runtime(package / "tvm_runtime", project, platform)
    (folder / "hook.py").write_text(HOOK.format(tag=tag))
    return folder


def _write(folder: Path, project: dict[str, Any], build: str) -> None:
    folder.mkdir(parents=True)
    scripts = project.get("scripts", {}) if project["name"] == "minicpm-mlc-runtime" else {}
    project = {key: value for key, value in project.items() if key not in ("dynamic", "scripts")}
    extras = project.pop("optional-dependencies")
    extras = {  # some name others, of the distribution that they belong to
        extra: [need.replace("minicpm-mlc[", f"{project['name']}[") for need in needs]
        for extra, needs in extras.items()
        if extra not in ("dev", "docs")
    }
    tables = {
        "project": project,
        "project.optional-dependencies": extras,
        "project.scripts": scripts,
    }
    text = BACKEND + "\n".join(_table(name, values) for name, values in tables.items())
    (folder / "pyproject.toml").write_text(f"{text}\n{build}")
    for name in ("LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)


def _table(name: str, values: dict[str, Any]) -> str:
    """A TOML table of texts, and lists of texts or of small tables: JSON writes all but the last
    the same.
    """
    return f"[{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def _carry_runtime(place: Path, project: dict[str, Any], platform: str) -> str:
    """TVM's runtime libraries of a platform, its licence and version; returns the tag of the wheel
    that they are from.
    """
    place.mkdir()
    with _wheel(f"{TVM}==", project, platform) as (archive, tag, version):
        for name in archive.namelist():
            path = Path(name)
            library = path.parent.name == "lib" and path.suffix in SUFFIXES
            if library and path.stem.removeprefix("lib") in LIBRARIES:
                (place / path.name).write_bytes(archive.read(name))
            if path.name in ("LICENSE", "NOTICE") and ".dist-info" in name:
                (place / f"TVM-{path.name}").write_bytes(archive.read(name))
        (place / "VERSION").write_text(f"{version}\n")
        return tag


def _carry_tokenizers(place: Path, project: dict[str, Any], platform: str) -> None:
    """The package tokenizers, which is found there where it isn't installed."""
    with _wheel(TOKENIZERS, project, platform) as (archive, _, _):
        archive.extractall(place)
    # what pip would take for an installed distribution
    for folder in place.glob("*.dist-info"):
        folder.rename(folder.with_suffix(".licence"))


@contextmanager
def _wheel(
    beginning: str, project: dict[str, Any], platform: str
) -> Iterator[tuple[zipfile.ZipFile, str, str]]:
    """The wheel of a dependency for a platform, its tag and its version."""
    (need,) = (each for each in project["dependencies"] if each.startswith(beginning))
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        command = [*pip, "--only-binary", ":all:", *_platforms(platform), need.partition(";")[0]]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            yield archive, wheel.stem.split("-")[-1], wheel.stem.split("-")[1]


def _platforms(platform: str) -> list[str]:
    """pip's options for wheels that run there, also those for older systems."""
    system, _, machine = platform.partition("_2_28_")
    older = (f"{system}_2_17_{machine}", f"{system}2014_{machine}") if machine else ()
    return [word for name in (platform, *older) for word in ("--platform", name)]


def _build(folder: Path, out: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(folder)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
