"""The options of a bundle that comes from elsewhere, and the question for one without them."""

from __future__ import annotations

import functools
import sys
from typing import Any

import click


def trust_options(command: Any) -> Any:
    """The options of a bundle that comes from elsewhere, and the question for one without them."""

    @functools.wraps(command)
    def run(*args: Any, sha256: tuple[str, ...], trust: bool, **options: Any) -> Any:
        from minicpm_mlc.runtime_py.admission import admit  # refused where it is opened otherwise

        asks = _at_a_terminal() and not options.get("files_only")
        if asks or sha256 or trust:
            for path in filter(None, map(options.get, ("bundle", "draft_model"))):
                admit(path, sha256 or None, trust, _ask if asks else None)
        return command(*args, **options)

    run = click.option("--trust", is_flag=True, help="Trust this bundle's maker, from now on.")(run)
    return click.option(
        "--sha256",
        metavar="HASH",
        multiple=True,
        help="Run only a bundle whose manifest has this SHA-256; inspect prints it.",
    )(run)


def _at_a_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _ask(bundle: str) -> bool:
    return click.confirm(
        f"{bundle} was not compiled here. A bundle is a program: it runs with your rights, and can "
        "do all that you can. Do you trust its maker?",
        err=True,
    )
