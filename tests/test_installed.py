"""What is said to be installed is what the user has: the whole, or what runs bundles."""

from __future__ import annotations

import importlib.metadata

import pytest

from minicpm_mlc.base.installed import pip_install


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"minicpm-mlc", "minicpm-mlc-runtime"}, "pip install 'minicpm-mlc[serve]'"),
        ({"minicpm-mlc-runtime"}, "pip install 'minicpm-mlc-runtime[serve]'"),
        (set(), "pip install 'minicpm-mlc[serve]'"),  # a checkout
    ],
)
def test_an_extra_is_of_the_distribution_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], told: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert pip_install("serve") == told
