"""The package's imports go one way: cli -> bench, inspect, compile, runtime_py -> targets -> ops ->
bundle -> base. They are read from the sources, those within functions and for the type checker
among them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "minicpm_mlc"
FOLDER = Path(__file__).parents[1] / PACKAGE

# A room is a folder of the package or a file beside them. In ops, the folders are rooms, the files
# beside them, where the operators' records are, are one, and so are what kernels are written with:
TOOLS = {
    "ops.tir": "ops tools",
    "ops.cpu.vector": "ops/cpu tools",
    "ops.gpu.float16_bits": "ops/gpu tools",
    "ops.gpu.intrinsics": "ops/gpu tools",
    "ops.gpu.kernel": "ops/gpu tools",
}
# Formats hold the TIR that reads them on a CPU and on a GPU, so they may use the tools of both.
BELOW_OPS = {"base", "bundle"}
FORMATS = BELOW_OPS | {"ops tools", "ops/cpu tools", "ops/gpu tools"}
RECORDS = BELOW_OPS | {"ops tools", "ops/formats"}
OPS = FORMATS | RECORDS | {"ops", "ops/cpu", "ops/gpu"}
# Each room may import itself and these:
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "bundle": {"base"},
    "ops tools": set(),
    "ops/cpu tools": BELOW_OPS | {"ops tools"},
    "ops/gpu tools": BELOW_OPS | {"ops tools"},
    "ops/formats": FORMATS,
    "ops": RECORDS,
    "ops/cpu": RECORDS | {"ops", "ops/cpu tools"},
    "ops/gpu": RECORDS | {"ops", "ops/gpu tools"},
    "targets": OPS,
    "compile": OPS | {"targets", "prompt"},
    "prompt": BELOW_OPS,
    "runtime_py": BELOW_OPS | {"prompt"},
    "serve": BELOW_OPS | {"prompt", "runtime_py", ""},
    "bench": OPS | {"targets", "prompt", "compile", "runtime_py"},
    "hub": BELOW_OPS | {""},
    "inspect": OPS
    | {"targets", "prompt", "compile", "runtime_py", "bench", "hub"},  # it measures too
    "cli": {"serve"} | OPS | {"targets", "compile", "runtime_py", "bench", "inspect", "hub", ""},
    "": {"base", "runtime_py"},  # the package itself: the engine and the errors
    "__main__": {"cli"},
}


@dataclass(frozen=True)
class Arrow:
    """One import of a module by another, named without the package; `place` is file and line."""

    importer: str
    imported: str
    place: str

    @property
    def allowed(self) -> bool:
        here, there = room(self.importer), room(self.imported)
        return here == there or there in ALLOWED[here]

    def __str__(self) -> str:
        return f"{self.place}: {self.importer or PACKAGE} imports {self.imported or PACKAGE}"


def room(module: str) -> str:
    """The room of a module such as ops.cpu.linear."""
    first, *rest = module.split(".")
    if first != "ops" or not rest or not (FOLDER / first / rest[0]).is_dir():
        return TOOLS.get(module, first)
    return TOOLS.get(module, f"{first}/{rest[0]}")


def imports(source: str, folder: str) -> Iterator[tuple[str, int]]:
    """The package's modules that a source imports, with the line; `folder` is the dotted name of
    the folder that it lies in.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: 1 - node.level or None] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            names = [_module(start, alias.name) for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.split(".")[0] == PACKAGE:
                yield name.removeprefix(PACKAGE).removeprefix("."), node.lineno


def _module(start: str, name: str) -> str:
    """The module that `from start import name` imports: start.name if there is one, or start."""
    place = FOLDER.parent / start.replace(".", "/") / name
    return f"{start}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else start


def arrows() -> list[Arrow]:
    """Every import within the package."""
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        folder, inside = path.parent.relative_to(FOLDER).parts, path.relative_to(FOLDER)
        importer = ".".join(folder if path.stem == "__init__" else (*folder, path.stem))
        source = path.read_text(encoding="utf-8")
        for imported, line in imports(source, ".".join((PACKAGE, *folder))):
            found.append(Arrow(importer, imported, f"{PACKAGE}/{inside}:{line}"))
    return found


def test_imports_follow_the_arrows() -> None:
    wrong = [str(arrow) for arrow in arrows() if not arrow.allowed]
    assert not wrong, "\n".join(["imports against the arrows:", *wrong])


def test_every_room_of_the_table_exists() -> None:
    rooms = {room(name) for arrow in arrows() for name in (arrow.importer, arrow.imported)}
    assert rooms == ALLOWED.keys()


@pytest.mark.parametrize(
    "source, folder, expected",
    [
        ("import minicpm_mlc.compile.shards", "base", ["compile.shards"]),
        ("def f():\n    from minicpm_mlc.targets import cuda", "base", ["targets.cuda"]),
        ("from minicpm_mlc.targets import get_target, cpu", "base", ["targets", "targets.cpu"]),
        ("if TYPE_CHECKING:\n    import minicpm_mlc.cli", "base", ["cli"]),
        ("from . import files", "base", ["base.files"]),
        ("from .. import cli", "base", ["cli"]),
        ("from ..ops.cpu.vector import load", "base", ["ops.cpu.vector"]),
        ("import tvm\nfrom pathlib import Path", "base", []),
    ],
)
def test_imports_of_every_form_are_seen(source: str, folder: str, expected: list[str]) -> None:
    assert [name for name, _ in imports(source, f"{PACKAGE}.{folder}")] == expected


def test_an_arrow_that_is_not_allowed_is_told_with_its_place() -> None:
    arrow = Arrow("compile.pipeline", "bench.roofline", "minicpm_mlc/compile/pipeline.py:14")
    assert not arrow.allowed and str(arrow).startswith("minicpm_mlc/compile/pipeline.py:14: ")
    assert Arrow("compile.pipeline", "ops.cpu.vector", "").allowed
    assert not Arrow("ops.gpu.linear", "ops.cpu.linear", "").allowed
    assert not Arrow("ops.linear", "ops.cpu.vector", "").allowed
