"""A bundle as the source of another: what it has quantised is carried, whatever the layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.bundle.params import load_params
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint import Checkpoint, RandomCheckpoint
from minicpm_mlc.compile.checkpoint.bundle import BundleWeights
from minicpm_mlc.compile.compilation import Compilation
from minicpm_mlc.compile.convert import convert
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.source import open_source
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.inspect.describe import as_text, describe
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.targets.cpu import CpuTarget

CONFIG = tiny_config("MiniCPM5-1B", tie_word_embeddings=False)
DOWN = "model.layers.1.mlp.down_proj.weight"
SOURCE = "openbmb/MiniCPM5-1B@c0ffee"
CALIBRATION = {"sha256": "ab" * 32, "tokens": 512}


def compilation(activations: str, scheme: str = "w4") -> Compilation:
    mixed = {DOWN: SCHEMES["w8"]}
    precision = Precision(SCHEMES[scheme], SCHEMES["w8"], F16, activations, mixed)
    target = CpuTarget.of("x86-64-v3")
    return Compilation(CONFIG, precision, target, 256, 64, None, CALIBRATION, SOURCE)


def written(folder: Path, made: Compilation, weights: Checkpoint) -> Bundle:
    """A bundle without a library."""
    with BundleWriter(folder) as bundle:
        names = convert(made.params, weights, bundle)
        bundle.add_file("model.so", b"none")
        return Bundle(folder, bundle.finish(replace(made.manifest, params=names)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "w4"
    written(path, compilation("int8"), RandomCheckpoint(CONFIG))
    return path


def test_it_describes_itself(folder):
    weights = BundleWeights(folder)
    assert weights.config == CONFIG
    assert weights.precision == compilation("int8").precision
    assert weights.names() == RandomCheckpoint(CONFIG).names()
    assert weights.manifest.calibration == CALIBRATION
    assert weights.manifest.source == open_source(folder, False, [], None, None).origin == SOURCE


def test_where_the_checkpoint_was_from_is_no_part_of_the_library(folder, tmp_path):
    described = describe(str(folder))
    assert described["source"] == SOURCE and SOURCE in as_text(described)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["source"]  # as earlier versions wrote it
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    old = Manifest.load(tmp_path)
    assert old.source is None
    assert old.compiled_part() == BundleWeights(folder).manifest.compiled_part()


@pytest.mark.parametrize("name", ["k_proj", "down_proj", "o_proj", "embed_tokens", "norm"])
def test_rows_are_those_that_are_stored(folder, name):
    weights, source = BundleWeights(folder), RandomCheckpoint(CONFIG)
    for tensor in (t for t in weights.names() if name in t):
        exact = source.rows(tensor)
        assert weights.shape(tensor) == exact.shape
        scheme = SCHEMES["w8" if tensor == DOWN or "embed" in tensor else "w4"]
        if exact.ndim == 2:
            exact = scheme.dequantize(scheme.quantize(exact))
        assert np.array_equal(weights.rows(tensor), exact)
        assert np.array_equal(weights.rows(tensor, 3, 21), exact[3:21])


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_integers_are_carried_into_either_layout(folder, tmp_path, activations):
    """Into the same layout byte for byte; into another they are those of the checkpoint."""
    again = written(tmp_path / "again", compilation(activations), BundleWeights(folder))
    fresh = written(tmp_path / "fresh", compilation(activations), RandomCheckpoint(CONFIG))
    pairs = zip(load_params(again), load_params(fresh), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_other_schemes_and_longer_contexts_are_refused(folder):
    weights = BundleWeights(folder)
    assert weights.schemes() == ("w4", "w8")
    weights.require(None, "w8")
    with pytest.raises(CompileError, match=r"--quant w8: the bundle's are w4.*compile the check"):
        weights.require("w8", None)
    assert weights.context(None) == 256 and weights.context(128) == 128
    with pytest.raises(CompileError, match="compiled for 256 tokens"):
        weights.context(257)
    with pytest.raises(CompileError, match="--calibrate would round again"):
        compile_model(folder, calibrate=[], dry_run=True)
    with pytest.raises(CompileError, match="--bits would round again"):
        compile_model(folder, bits=5.0, dry_run=True)


def test_compile_takes_it(folder):
    result = compile_model(folder, device="cpu", cpu="x86-64-v2", dry_run=True)
    assert result.out == "MiniCPM5-1B-w4-cpu"
    assert result.offer is None and ["no tokenizer.json" in note for note in result.notes] == [True]
    assert result.weights == BundleWeights(folder).bytes
    assert result.memory[-1]["context"] == 256


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("num_layers", 2_000_000_000),
        ("num_layers", 3),
        ("hidden_size", "wide"),
        ("hidden_size", 96),
        ("num_kv_heads", 0),
        ("model_type", "unknown"),
    ],
)
def test_a_manifest_of_another_model_is_refused(folder, tmp_path, place, value):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["model"][place] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        BundleWeights(copy)
