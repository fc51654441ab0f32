"""Which distribution of this package is installed: the whole, or what runs bundles; and whether the
compiler is.
"""

from __future__ import annotations

import importlib.metadata

from minicpm_mlc.base.errors import CompileError

WHOLE, RUNTIME = "minicpm-mlc", "minicpm-mlc-runtime"
COMPILER = {  # distributions that compiling takes on every device, and how each is installed
    "apache-tvm": "pip install apache-tvm==0.27.0.post1",
    "ziglang": "pip install ziglang",
}


def distribution() -> str:
    """The one that pip knows; the whole in a checkout."""
    alone = _is_installed(RUNTIME) and not _is_installed(WHOLE)
    return RUNTIME if alone else WHOLE


def pip_install(extra: str) -> str:
    """The command that brings what an extra needs, and no compiler to who has none."""
    return f"pip install '{distribution()}[{extra}]'"


def missing_to_compile() -> list[str]:
    """The commands that install what compiling for any device takes and is not here."""
    missing = [command for name, command in COMPILER.items() if not _is_installed(name)]
    return [f"pip install {WHOLE}"] if missing and distribution() == RUNTIME else missing


def check_compiler() -> None:
    """Raises CompileError where nothing can be compiled, before anything is fetched or computed for
    it.
    """
    if missing := missing_to_compile():
        raise CompileError(
            f"this takes TVM's compiler, which is not installed; try: {' && '.join(missing)}"
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
