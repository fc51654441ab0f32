"""The scripts in bench/ refuse what can't be measured in one line, before they measure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from fake_library import manifest

from minicpm_mlc.bundle.manifest import PAGE_SIZE


@pytest.mark.parametrize(
    "script, options, message",
    [
        ("verify", "--rows 4,100", "--rows 100: a tree has at most 64 nodes"),
        ("verify", "--rows 0", "--rows is 0; it must be 1 or more"),
        ("verify", "--repeats 0", "--repeats is 0; it must be 1 or more"),
        ("verify", "--depth -1", "depths must be one or more numbers >= 0"),
        (
            "verify",
            "--depth 100",
            "--depth 100 and 128 tokens behind it: .* give --depth 72 or less",
        ),
        ("startup", "--repeats 0", "--repeats is 0; it must be 1 or more"),
        ("startup", "--words 0", "--words is 0; it must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, options: str, message: str
) -> None:
    target = {"device": "cpu", "triple": "", "cpu": "", "features": []}
    files = {"model.so": {"bytes": 0, "sha256": "0" * 64}}
    made = manifest(target=target, page_size=PAGE_SIZE, files=files)
    (tmp_path / "manifest.json").write_bytes(made.to_bytes())
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), *options.split()])
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        importlib.import_module(script).main()
