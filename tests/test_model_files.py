"""Models by file: found by what they declare, their weights known before anything is converted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import config_json, tiny_config, write_checkpoint, write_tensors

from minicpm_mlc.base.errors import CheckpointError, ConfigError
from minicpm_mlc.compile import compile_model, compiler, pipeline
from minicpm_mlc.compile import model as package
from minicpm_mlc.compile.model.registry import (
    build_model,
    draft_config_like,
    eagles,
    models,
    published_tensors,
    read_config,
)
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.ops.formats.kv import F16
from minicpm_mlc.ops.formats.weights import SCHEMES

TINY = tiny_config("MiniCPM5-1B", num_layers=1)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NEW_MODEL = """
from minicpm_mlc.compile.config.decoder_keys import decoder_fields
from minicpm_mlc.compile.model.declaration import ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.layers import Layer, RMSNorm


class WarmLayer(Layer):
    def __init__(self, plan, at):
        super().__init__(plan, at)
        self.last_norm = RMSNorm(plan, f"{at}.warmth.weight")


class Warm(Decoder):
    layer_part = WarmLayer


def read(keys):
    keys.positive("warmth")
    return decoder_fields(keys, tied=False)


DECLARATION = ModelDeclaration(("warm",), ("WarmForCausalLM",), read, Warm)
"""


@pytest.fixture
def one_more_file(tmp_path, monkeypatch) -> Iterator[None]:
    """A model in a file of its own, beside the others."""
    (tmp_path / "warm.py").write_text(NEW_MODEL)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    models.cache_clear()
    yield
    models.cache_clear()
    sys.modules.pop(f"{package.__name__}.warm", None)


@pytest.fixture
def nothing_converted(monkeypatch) -> None:
    """Fails a test in which a weight is converted."""
    monkeypatch.setattr(compiler, "convert", lambda *args, **options: pytest.fail("converted"))


def test_models_and_heads_are_found_by_their_files():
    def declared(kind: str) -> list[str]:
        """The files that say so, in the order of their names."""
        files = sorted(Path(package.__file__).parent.glob("*.py"))
        return [f.stem for f in files if f"\nDECLARATION = {kind}(" in f.read_text()]

    listed = list(models())
    assert listed == sorted(listed, key=lambda name: (not name.startswith("minicpm"), name))
    assert listed[0] == "minicpm4" and "llama" in listed
    assert sorted(models()) == declared("ModelDeclaration")
    assert list(eagles()) == declared("EagleDeclaration") == ["eagle2", "eagle3"]


def test_an_unknown_model_names_those_that_exist():
    values = {**config_json(TINY), "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    with pytest.raises(ConfigError, match=r"gpt2.*MiniCPMSALAForCausalLM, LlamaForCausalLM"):
        read_config(values, "tiny")


def test_a_models_file_is_all_that_it_takes(one_more_file):
    values = {**config_json(TINY), "model_type": "warm", "architectures": ["WarmForCausalLM"]}
    with pytest.raises(ConfigError, match="warmth is missing"):
        read_config(values, "tiny")
    config = read_config({**values, "warmth": 21}, TINY.name)
    assert config == replace(TINY, model_type="warm")
    more = published_tensors(config).keys() - published_tensors(TINY).keys()
    assert more == {"model.layers.0.warmth.weight"}
    with pytest.raises(ConfigError, match="warmth"):
        read_config({**config_json(TINY), "warmth": 21}, "tiny")


def test_a_key_is_refused_by_models_that_do_not_declare_it():
    sparse = {"sparse_config": {"topk": 8}}
    assert read_config(config_json(tiny_config("MiniCPM4-8B")) | sparse, "tiny").sparse
    with pytest.raises(ConfigError, match="sparse_config"):
        read_config(config_json(TINY) | sparse, "tiny")


def test_a_tree_of_parts_names_every_weight_and_what_it_is_made_of():
    precision = Precision(SCHEMES["w4"], SCHEMES["w8"], F16)
    tied = tiny_config("MiniCPM4-0.5B", num_layers=1)
    found = {p.name: p for p in build_model(tied, precision).parameters()}
    assert list(found) == [
        "embedding",
        "layers.0.input_norm",
        "layers.0.attention.qkv",
        "layers.0.attention.out",
        "layers.0.mlp_norm",
        "layers.0.mlp.gate_up",
        "layers.0.mlp.down",
        "norm",
    ]
    qkv = found["layers.0.attention.qkv"]
    assert qkv.sources == tuple(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
    assert (qkv.rows, qkv.columns, qkv.scheme.name) == (16 * 64 + 2 * 2 * 64, 1024, "w4")
    assert found["embedding"].scheme.name == "w8" and found["norm"].columns == 0
    untied = [p.name for p in build_model(TINY, precision).parameters()]
    assert untied == [*found, "head"]


def test_a_heads_tensors_stand_behind_the_bases_under_a_prefix():
    precision = Precision(SCHEMES["f16"], SCHEMES["f16"], F16)
    for kind in eagles():
        draft = draft_config_like(TINY, kind)
        names = [
            source
            for param in build_model(TINY, precision, (draft, precision)).parameters()
            for source in param.sources
        ]
        own = published_tensors(draft)
        assert names == [*published_tensors(TINY), *(f"draft/{name}" for name in own)]
        assert eagles()[kind].mark in own


def test_a_model_is_described_without_tvm():
    code = (
        "import sys; from minicpm_mlc.inspect.describe import describe; "
        "describe('MiniCPM4.1-8B'); assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_missing_or_extra_tensor_is_refused_before_conversion(
    tmp_path, nothing_converted, change
):
    weights = write_checkpoint(tmp_path / "model", TINY)
    if change == "missing":
        del weights[Q_PROJ]
    else:
        weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(128, np.float32)
    write_tensors(tmp_path / "model", weights)
    message = f"{Q_PROJ} is missing" if change == "missing" else "q_norm.weight is not part"
    with pytest.raises(CheckpointError, match=message):
        compile_model(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_library_with_other_parameters_is_refused_before_conversion(
    tmp_path, nothing_converted, monkeypatch
):
    def without_the_last(*args):
        program = build(*args)
        return replace(program, params=program.params[:-1])

    build = pipeline.build_program
    monkeypatch.setattr(pipeline, "build_program", without_the_last)
    write_checkpoint(tmp_path / "model", TINY)
    with pytest.raises(AssertionError, match="other parameters"):
        compile_model(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
