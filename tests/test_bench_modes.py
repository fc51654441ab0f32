"""Each measurement of bench gets the options it uses, and refuses the others by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from minicpm_mlc.bench.modes import MODES
from minicpm_mlc.cli import main

FUNCTIONS = {
    "attention_only": ("minicpm_mlc.bench.attention", "bench_attention"),
    "operators": ("minicpm_mlc.bench.operators", "bench_operators"),
    "speculate": ("minicpm_mlc.bench.speculation", "bench_speculation"),
    "plot": ("minicpm_mlc.bench.plot", "bench_both_gears"),
    "": ("minicpm_mlc.bench.decode", "bench_bundle"),
}


class Report:
    plain, json, markdown = (
        staticmethod(lambda form=form: form) for form in ("plain", "json", "markdown")
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The options that each measurement was called with."""
    found: dict[str, dict[str, Any]] = {}

    def stub(mode: str) -> Callable[..., Report]:
        def measure(**options: Any) -> Report:
            found[mode] = options
            return Report()

        return measure

    for mode, (module, name) in FUNCTIONS.items():
        monkeypatch.setattr(importlib.import_module(module), name, stub(mode))
    return found


@pytest.mark.parametrize(
    "command, mode, options",
    [
        (
            "--attention-only --prompt-tokens 64,128",
            "attention_only",
            {"prompt_tokens": [64, 128], "repeats": 3},
        ),
        (
            "B --operators --attention dense --depth 0",
            "operators",
            {"path": "B", "attention": "dense", "depths": [0]},
        ),
        (
            "B --speculate ngram --tree-size 5",
            "speculate",
            {"speculate": "ngram", "tree_size": 5, "draft_depth": None},
        ),
        (
            "B --plot a.svg --random-cache --depth 7",
            "plot",
            {"picture": "a.svg", "random_cache": True, "depths": [7]},
        ),
        (
            "B --prompt-tokens 8,16 --new-tokens 4",
            "",
            {"prompt_tokens": [8, 16], "new_tokens": 4, "remote": None},
        ),
    ],
)
def test_a_measurement_gets_its_options(
    called: dict[str, dict[str, Any]], command: str, mode: str, options: dict
) -> None:
    result = CliRunner().invoke(main, ["bench", *command.split(), "--json"])
    assert result.stdout == "json\n" and list(called) == [mode]
    assert result.stderr == ("wrote a.svg\n" if mode == "plot" else "")
    assert called[mode] == called[mode] | options


@pytest.mark.parametrize(
    "command, message",
    [
        (
            "B --tree-size 3",
            "plain bench does not use --tree-size; leave it out, or measure with bench "
            "--speculate.",
        ),
        (
            "B --draft-depth 3 --draft-top-k 2",
            "plain bench does not use --draft-depth, --draft-top-k",
        ),
        ("B --draft-model D", "plain bench does not use --draft-model"),
        ("B --prompt-file p --record r", "plain bench does not use --prompt-file, --record"),
        ("B --replay r", "plain bench does not use --replay"),
        ("B --attention-only", "bench --attention-only does not use BUNDLE"),
        ("--attention-only --new-tokens 64", "bench --attention-only does not use --new-tokens"),
        ("--attention-only --attention auto", "bench --attention-only does not use --attention"),
        (
            "B --operators --random-cache --new-tokens 5",
            "bench --operators does not use --new-tokens, --random-cache",
        ),
        (
            "B --operators --plot x.svg",
            "bench --operators does not use --plot; leave it out, or measure with bench --plot.",
        ),
        ("B --speculate auto --depth 0,1024", "bench --speculate does not use --depth"),
        ("B --plot x.svg --attention dense", "bench --plot does not use --attention"),
        (
            "B --plot x.svg --rpc h:1 --key k",
            "bench --plot does not use --rpc, --key; leave them out, or measure with plain",
        ),
        ("--operators", "Missing argument 'BUNDLE'; or give --attention-only."),
        ("B --depth 1,x", "'1,x' is not a list of numbers such as 0,1024"),
    ],
)
def test_what_a_measurement_does_not_use_is_refused_by_name(
    called: dict, command: str, message: str
) -> None:
    """Also where the value is the default, because it was written down."""
    result = CliRunner().invoke(main, ["bench", *command.split()])
    assert result.exit_code == 2 and message in result.stderr and not called


@pytest.mark.parametrize("mode", ["--attention-only", "B --operators", "B"])
def test_without_a_depth_a_measurement_takes_its_own(
    called: dict[str, dict[str, Any]], mode: str
) -> None:
    CliRunner().invoke(main, ["bench", *mode.split()])
    assert called and all("depths" not in options for options in called.values())


def test_every_option_of_bench_belongs_to_a_measurement() -> None:
    known = {name for mode, names in MODES.items() for name in (mode, *names)}
    assert {param.name for param in main.commands["bench"].params} <= known | {
        "form",
        "sha256",
        "trust",
    }
