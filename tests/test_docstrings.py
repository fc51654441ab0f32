"""Public functions and classes say what they do; a method may leave that to one it overrides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "minicpm_mlc"
LEAST = 0.95


def functions_and_classes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.ClassDef | None]]:
    """Public ones of a module and of its classes, with the class that holds them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    if "overload" not in [getattr(d, "id", "") for d in member.decorator_list]:
                        yield member.name, member, node


def bases(owner: ast.ClassDef) -> list[str]:
    """The names of a class's bases, without their modules and parameters."""
    plain = (base.value if isinstance(base, ast.Subscript) else base for base in owner.bases)
    return [getattr(base, "id", getattr(base, "attr", "")) for base in plain]


def test_public_functions_and_classes_have_docstrings() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.rglob("*.py")}
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)

    def documented(name: str, node: ast.AST, owner: ast.ClassDef | None) -> bool:
        """Whether it, or the same method of a base, has a docstring."""
        if ast.get_docstring(node):  # type: ignore[arg-type]
            return True
        above = [each for base in bases(owner) for each in classes.get(base, [])] if owner else []
        return any(
            documented(name, member, each)
            for each in above
            for member in each.body
            if isinstance(member, ast.FunctionDef) and member.name == name
        ) or any(_defines_nothing(name, each) and documented(name, node, each) for each in above)

    found = [
        (f"{path.relative_to(FOLDER)}: {name}", documented(name, node, owner))
        for path, tree in sorted(trees.items())
        for name, node, owner in functions_and_classes(tree)
    ]
    without = [name for name, said in found if not said]
    assert len(without) <= (1 - LEAST) * len(found), "\n".join(without)


def _defines_nothing(name: str, owner: ast.ClassDef) -> bool:
    """Whether a class leaves a method to its own bases."""
    return not any(getattr(member, "name", "") == name for member in owner.body)
