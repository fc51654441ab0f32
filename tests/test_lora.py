"""LoRA adapters: the notes' worked numbers, PEFT's rules, whose tokenizer is taken, what is refused
by name, and a base compiled with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from checkpoints import config_json, save_tensors, write_checkpoint, write_json, write_tokenizer
from click.testing import CliRunner
from numpy_model import forward
from packers import small_config

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.cli import main
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint import Weights, open_checkpoint
from minicpm_mlc.compile.checkpoint.adapters import Adapters
from minicpm_mlc.compile.companions import open_companions
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import published_tensors

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "bias": "none", "lora_dropout": 0.05}


def write_adapter(folder: Path, tensors: packers.Tensors, **values: Any) -> Path:
    """An adapter's folder; names are without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {PREFIX + name: np.asarray(part, np.float32) for name, part in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(packers.file_of(stored))
    write_json(folder / "adapter_config.json", CONFIG | values)
    return folder


def lora(module: str, shape: tuple[int, int], rank: int = 4, seed: int = 0) -> packers.Tensors:
    rng = np.random.default_rng(seed)
    n, k = shape
    return {
        f"{module}.lora_A.weight": rng.normal(0, 0.1, (rank, k)).astype(np.float32),
        f"{module}.lora_B.weight": rng.normal(0, 0.1, (n, rank)).astype(np.float32),
    }


def delta(tensors: packers.Tensors, module: str) -> np.ndarray:
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, small_config(), dtype="f32")
    return folder


def merged(base: Path, *given: Any, config: ModelConfig | None = None) -> tuple[Any, Weights]:
    config = config or small_config()
    adapters = Adapters.open([str(one) for one in given])
    weights = adapters.weights(open_checkpoint(base, config), config)
    assert weights.names() == list(published_tensors(adapters.config(config)))
    return adapters.config(config), weights


WORKED = {
    "alpha / r": ({}, [[3, 4], [6, 8]]),
    "alpha / sqrt(r)": ({"use_rslora": True}, [[5, 6], [8, 10]]),
    "DoRA": ({"use_dora": True}, [[6, 8], [3, 4]]),
    "alpha_pattern": ({"lora_alpha": 1, "alpha_pattern": {"q_proj": 16}}, [[3, 4], [6, 8]]),
    "rank_pattern": ({"r": 1, "rank_pattern": {".*self_attn.q_proj": 4}}, [[3, 4], [6, 8]]),
    "another's pattern": ({"lora_alpha": 16, "alpha_pattern": {"proj": 1}}, [[3, 4], [6, 8]]),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, [[3, 4], [6, 8]]),
}


@pytest.mark.parametrize("rule", WORKED)
def test_merged_weights_are_those_of_the_notes(tmp_path, base, rule):
    """The 2 x 2 matrix of the notes lies in the corner of one whose other numbers are 0."""
    values, expected = WORKED[rule]
    config = small_config()
    weights = write_checkpoint(tmp_path / "base", config, dtype="f32")
    weights[f"{Q}.weight"][:] = 0
    weights[f"{Q}.weight"][:2, :2] = [[1, 2], [4, 6]]
    save_tensors(tmp_path / "base" / "model.safetensors", weights, "f32")
    a, b = np.zeros((4, 128), np.float32), np.zeros((128, 4), np.float32)
    a[0, :2], b[:2, 0] = 0.5, 1
    tensors = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    if rule == "DoRA":
        tensors[f"{Q}.lora_magnitude_vector"] = np.array([10, 5] + [0] * 126, np.float32)
    _, found = merged(tmp_path / "base", write_adapter(tmp_path / "lora", tensors, **values))
    rows = found.rows(f"{Q}.weight")
    assert rows[:2, :2].tolist() == expected and not rows[2:].any() and not rows[:, 2:].any()
    assert np.array_equal(found.rows(f"{Q}.weight", 1, 2), rows[1:2])


def test_several_are_merged_in_order_with_their_weights(tmp_path, base):
    first, second = lora(Q, (128, 128), seed=1), lora(Q, (128, 128), seed=2)
    named = {name.replace(".weight", ".default.weight"): part for name, part in second.items()}
    write_adapter(tmp_path / "a", first)
    write_adapter(tmp_path / "b", named | lora(DOWN, (128, 192)))
    _, found = merged(base, tmp_path / "a", f"{tmp_path / 'b'}:0.5", f"{tmp_path / 'a'}:-1")
    plain = open_checkpoint(base, small_config()).rows(f"{Q}.weight")
    expected = plain + 4 * delta(first, Q) + 2 * delta(second, Q) - 4 * delta(first, Q)
    assert np.abs(found.rows(f"{Q}.weight") - expected).max() < 1e-6
    untouched = "model.layers.0.self_attn.v_proj.weight"
    assert np.array_equal(
        found.rows(untouched), open_checkpoint(base, small_config()).rows(untouched)
    )


def test_an_embedding_is_changed_by_its_transposed_factors(tmp_path, base):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 323)), rng.normal(size=(128, 4))
    tensors = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    _, found = merged(base, write_adapter(tmp_path / "lora", tensors))
    plain = open_checkpoint(base, small_config()).rows(f"{EMBEDDING}.weight")
    assert np.allclose(found.rows(f"{EMBEDDING}.weight"), plain + 4 * (b @ a).T, atol=1e-5)


def whole(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 128)).astype(np.float32)


def test_saved_modules_take_the_bases_place_and_resize_its_vocabulary(tmp_path, base):
    saved = {
        f"{EMBEDDING}.weight": whole(384, 1),
        f"{HEAD}.modules_to_save.default.weight": whole(384, 2),
        "model.norm.weight": np.full(128, 2, np.float32),
    }
    folder = write_adapter(tmp_path / "lora", saved | lora(Q, (128, 128)))
    config, found = merged(base, folder)
    assert config.vocab_size == 384
    assert np.array_equal(found.rows(f"{EMBEDDING}.weight"), whole(384, 1))
    assert np.array_equal(found.rows(f"{HEAD}.weight"), whole(384, 2))
    assert (found.rows("model.norm.weight") == 2).all()
    with pytest.raises(CheckpointError, match=r"lm_head.weight of the base has 323 rows"):
        del saved[f"{HEAD}.modules_to_save.default.weight"]
        merged(base, write_adapter(tmp_path / "half", saved))


@pytest.mark.parametrize(
    ("saved", "tied"),
    [
        ({EMBEDDING: 1, HEAD: 1}, True),
        ({EMBEDDING: 1, HEAD: 2}, False),
        ({EMBEDDING: 1}, False),
        ({HEAD: 1}, False),
    ],
)
def test_a_tied_head_is_its_own_where_it_was_trained_apart(tmp_path, saved, tied):
    config = small_config(tie_word_embeddings=True)
    weights = write_checkpoint(tmp_path / "base", config, dtype="f32")
    tensors = {f"{module}.weight": whole(323, seed) for module, seed in saved.items()}
    made, found = merged(
        tmp_path / "base", write_adapter(tmp_path / "lora", tensors), config=config
    )
    assert made.tie_word_embeddings == tied
    embedding = weights[f"{EMBEDDING}.weight"]
    expected = {module: whole(323, seed) for module, seed in saved.items()}
    assert np.array_equal(found.rows(f"{EMBEDDING}.weight"), expected.get(EMBEDDING, embedding))
    if not tied:
        assert np.array_equal(found.rows(f"{HEAD}.weight"), expected.get(HEAD, embedding))
    told = [note for note in found.remarks if "the adapter changes the embedding alone" in note]
    assert bool(told) == (HEAD not in saved)


def test_a_resized_tied_vocabulary_stays_tied(tmp_path):
    config = small_config(tie_word_embeddings=True)
    write_checkpoint(tmp_path / "base", config, dtype="f32")
    folder = write_adapter(tmp_path / "lora", {f"{EMBEDDING}.weight": whole(384, 1)})
    made, _ = merged(tmp_path / "base", folder, config=config)
    assert (made.vocab_size, made.tie_word_embeddings) == (384, True)


def test_a_quantised_base_is_told_to_be_rounded_again(tmp_path):
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    packers.write_quantised(tmp_path / "base", packers.gptq(), settings)
    folder = write_adapter(tmp_path / "lora", lora(Q, (128, 128)))
    _, found = merged(tmp_path / "base", folder)
    assert found.schemes() == ("w4", None)
    [note] = packers.notes_of(found, "w4", "w8")
    assert note.startswith("1 tensors of GPTQ (4 bits) with an adapter merged into them are quant")


def test_awq_is_told_to_need_the_unquantised_base(tmp_path):
    settings = {"quantization_config": {"quant_method": "awq"}}
    packers.write_quantised(tmp_path / "base", packers.awq(), settings)
    _, found = merged(tmp_path / "base", write_adapter(tmp_path / "lora", lora(Q, (128, 128))))
    assert any("AWQ moves factors" in remark for remark in found.remarks)


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
PAIR = lora(Q, (128, 128))
REFUSED: dict[str, tuple[packers.Tensors, dict[str, Any]]] = {
    'peft_type is "IA3", expected LORA': (PAIR, {"peft_type": "IA3"}),
    'bias is "all"': (PAIR, {"bias": "all"}),
    'init_lora_weights is "pissa"': (PAIR, {"init_lora_weights": "pissa"}),
    "target_parameters is": (PAIR, {"target_parameters": ["experts"]}),
    "trainable_token_indices is": (PAIR, {"trainable_token_indices": [1]}),
    "a_variant_of_tomorrow is true": (PAIR, {"a_variant_of_tomorrow": True}),
    "r is 8, expected 4, the rows of": (PAIR, {"r": 8}),
    "lora_alpha is 0, expected a positive number": (PAIR, {"lora_alpha": 0}),
    "expected names of modules, without repetitions": (PAIR, {"alpha_pattern": {"(a+)+b": 3}}),
    "expected a regular expression": (PAIR, {"alpha_pattern": {"q_proj(": 3}}),
    "has no lora_B beside it": ({A: PAIR[A]}, {}),
    "the base has no model.layers.9.q.weight to change": (lora("model.layers.9.q", (8, 8)), {}),
    r"lora_A.weight has shape \[4, 64\], expected \[4, 128\]": (lora(Q, (128, 64)), {}),
    "changes a vector, of 128 numbers": (lora("model.norm", (128, 128)), {}),
    "are two adapters; save one": (PAIR | {f"{Q}.lora_A.other.weight": PAIR[A]}, {}),
    "is no part of a LoRA": ({f"{Q}.bias": np.zeros(128)}, {}),
    "has no magnitudes": (PAIR, {"use_dora": True}),
    "belongs to DoRA, and use_dora is not set": (
        PAIR | {f"{Q}.lora_magnitude_vector": np.ones(128)},
        {},
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_no_lora_of_the_base_is_refused_by_name(tmp_path, base, wrong):
    tensors, values = REFUSED[wrong]
    with pytest.raises(CheckpointError, match=wrong) as caught:
        merged(base, write_adapter(tmp_path / "lora", tensors, **values))
    assert str(tmp_path / "lora") in str(caught.value) and "\n" not in str(caught.value)


def test_folders_that_are_no_adapters_say_so(tmp_path, base):
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json; give the folder"):
        Adapters.open([str(base)])
    write_json(tmp_path / "adapter_config.json", CONFIG)
    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors and no adapter"):
        Adapters.open([str(tmp_path)])
    with pytest.raises(CheckpointError, match="the weight is nan, expected a number"):
        Adapters.open([f"{tmp_path}:nan"])


def test_an_adapter_alone_is_told_the_option(tmp_path, base):
    folder = write_adapter(tmp_path / "run" / "checkpoint-500", lora(Q, (128, 128)))
    done = CliRunner().invoke(main, ["compile", str(folder)])
    assert done.exit_code == 1 and f"compile MODEL --adapter {folder}" in done.output
    with pytest.raises(CheckpointError, match=r"give a folder inside: .*checkpoint-500"):
        compile_model(folder.parent, dry_run=True)
    with pytest.raises(CompileError, match="--adapter changes a model's weights"):
        compile_model("MiniCPM4-0.5B", random_weights=True, adapters=[str(folder)], dry_run=True)


def test_llama_factorys_folder_brings_its_tokenizer(tmp_path, base):
    """Its resize_vocab pads to a multiple of 64 and saves embedding and head whole."""
    saved = {f"{EMBEDDING}.weight": whole(384, 1), f"{HEAD}.weight": whole(384, 2)}
    folder = write_adapter(
        tmp_path / "lora", saved, modules_to_save=["embed_tokens", "lm_head"], use_rslora=True
    )
    write_tokenizer(folder, 384)
    result = compile_model(base, tmp_path / "out", adapters=[str(folder)], dry_run=True)
    assert packers.told(result) == []
    alone = compile_model(base, tmp_path / "out", dry_run=True)
    assert result.weights > alone.weights
    opened = Adapters.open([str(folder)])
    files = opened.files(open_companions(base), opened.config(small_config()))
    assert files.object("config.json")["vocab_size"] == 384
    assert files.content("tokenizer.json") == (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()  # then the base's is taken, with 323 tokens
    result = compile_model(base, tmp_path / "out", adapters=[str(folder)], dry_run=True)
    assert packers.told(result) == []


def test_xtuners_folder_is_read_from_a_file_of_torch(tmp_path, base):
    torch = pytest.importorskip("torch")
    folder, tensors = write_adapter(tmp_path / "lora", {}), lora(Q, (128, 128))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "xtuner_config.py").write_text("lr = 2e-4")
    halves = {PREFIX + name: torch.from_numpy(part).half() for name, part in tensors.items()}
    torch.save(halves, folder / "adapter_model.bin")
    _, found = merged(base, folder)
    rounded = {name: part.astype(np.float16).astype(np.float32) for name, part in tensors.items()}
    plain = open_checkpoint(base, small_config()).rows(f"{Q}.weight")
    assert np.allclose(found.rows(f"{Q}.weight"), plain + 4 * delta(rounded, Q), atol=1e-6)


def test_logits_are_those_of_the_merged_weights(tmp_path, base):
    tensors = lora(Q, (128, 128)) | lora(DOWN, (128, 192), seed=5)
    folder = write_adapter(tmp_path / "lora", tensors)
    command = [
        "compile",
        str(base),
        "--adapter",
        f"{folder}:2",
        "--quant",
        "f32",
        "--context",
        "64",
    ]
    done = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    weights = open_checkpoint(base, small_config())
    dense = {name: weights.rows(name) for name in weights.names()}
    for module in (Q, DOWN):
        dense[f"{module}.weight"] = dense[f"{module}.weight"] + 8 * delta(tensors, module)
    ids = [5, 300, 17, 42]
    with Engine(tmp_path / "out", context=64) as engine:
        logits = engine.logits(ids)
    assert np.abs(logits - forward(small_config(), dense, ids, [False] * 4)).max() <= 1e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config_json(small_config())
