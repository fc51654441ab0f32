"""Which distribution of this package is installed: the whole, or what runs bundles."""

from __future__ import annotations

import importlib.metadata

WHOLE, RUNTIME = "minicpm-mlc", "minicpm-mlc-runtime"


def distribution() -> str:
    """The one that pip knows; the whole in a checkout."""
    alone = _is_installed(RUNTIME) and not _is_installed(WHOLE)
    return RUNTIME if alone else WHOLE


def pip_install(extra: str) -> str:
    """The command that brings what an extra needs, and no compiler to who has none."""
    return f"pip install '{distribution()}[{extra}]'"


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
