"""Bundles of tiny models, compiled once per test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc.compile.config import ModelConfig


class TinyBundle:
    """A compiled tiny model and what it was made from: float32 weights by published name."""

    def __init__(self, path: Path, checkpoint: Path, config: ModelConfig, weights: dict[str, np.ndarray]) -> None:
        self.path, self.checkpoint, self.config, self.weights = path, checkpoint, config, weights


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyBundle]:
    """tiny_bundle(preset, scheme="f32", **config overrides), shared by all tests that ask for the same."""
    from minicpm_mlc.compile import compile_model

    built: dict[Any, TinyBundle] = {}

    def build(preset: str, scheme: str = "f32", **overrides: Any) -> TinyBundle:
        key = (preset, scheme, *sorted(overrides.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp("tiny")
            config = tiny_config(preset, **overrides)
            weights = write_checkpoint(folder / "checkpoint", config, dtype="f32")
            compile_model(folder / "checkpoint", folder / "bundle", scheme=scheme, prefill_chunk=2048)
            built[key] = TinyBundle(folder / "bundle", folder / "checkpoint", config, weights)
        return built[key]

    return build
