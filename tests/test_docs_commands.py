"""Every command that the README and docs/ show exists, and so do its options: parsed, not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from minicpm_mlc.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
COMMAND = re.compile(r"\b(?:minicpm-mlc|python|make)\s[^|;<>&)`]+")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page's code, without those that stand for any verb."""
    text = page.read_text()
    lines = [line for block in FENCED.findall(text) for line in _joined(block)]
    for line in [*lines, *INLINE.findall(FENCED.sub("", text))]:
        for found in COMMAND.findall(line):
            words = shlex.split(found.replace("...", ""), comments=True)
            if len(words) > 1 and words[1] != "COMMAND" and not words[1].startswith("{"):
                yield words


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def parse(words: list[str], group: click.Group = main) -> None:
    """Raises click's error for a command that isn't there, or an option that its verb hasn't."""
    command = group.commands[words[0]]
    if isinstance(command, click.Group) and len(words) > 1:
        return parse(words[1:], command)
    command.make_context(words[0], words[1:], resilient_parsing=True)
    given = [word for word in words[1:] if word.startswith("--")]
    known = {name for each in command.get_params(click.Context(command)) for name in each.opts}
    known |= {name for each in command.params for name in each.secondary_opts}
    assert {word.partition("=")[0] for word in given} <= {*known, "--help"}, words


def runs_a_script(words: list[str]) -> None:
    """The file is there, and reads each option."""
    assert (ROOT / words[0]).is_file(), words
    text = _sources((ROOT / words[0]).parent)
    assert all(f'"{word}"' in text for word in words[1:] if word.startswith("--")), words


@cache
def _sources(folder: Path) -> str:
    """The scripts of a folder, which share options."""
    return "".join(file.read_text() for file in folder.glob("*.py"))


def makes_a_target(words: list[str]) -> None:
    assert words[0] in TARGETS, words


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "minicpm-mlc": parse,
    "python": runs_a_script,
    "make": makes_a_target,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_there(page: Path) -> None:
    for program, *words in commands(page):
        if program != "python" or words[0].endswith(".py"):
            PROGRAMS[program](words)


def test_the_pages_show_many_commands() -> None:
    """So that the patterns above find what they are for."""
    found = [words for page in PAGES for words in commands(page)]
    assert sum(words[0] == "minicpm-mlc" for words in found) > 70
    assert {"run", "compile", "chat", "serve", "inspect", "bench", "quality", "verify"} <= {
        words[1] for words in found
    }
    with pytest.raises(AssertionError):
        parse(["bench", "B", "--markdwn"])
    with pytest.raises(KeyError):
        parse(["comple", "B"])
