"""The same weights by the libraries that write these forms, where they are installed:
pip install "mlx[cpu]" compressed-tensors peft
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from checkpoints import write_checkpoint
from packers import small_config

from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.checkpoint.adapters import Adapters
from minicpm_mlc.compile.checkpoint.forms import Stated, open_form
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.compile.checkpoint.tensor import Tensor

SHAPE = (64, 256)


def read(folder: Path, tensors: packers.Tensors, method: str) -> Tensor:
    path = folder / "model.safetensors"
    path.write_bytes(packers.file_of({f"p.{end}": part for end, part in tensors.items()}))
    file = SafetensorsFile(path)
    reader = open_form(Stated(method, {}, "x"), dict.fromkeys(file.entries, file))
    found = reader.tensor("p.weight", {"p.weight": SHAPE})
    assert found is not None
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_mlx_means_the_same_weights(tmp_path, bits, group):
    mx = pytest.importorskip("mlx.core", reason='pip install "mlx[cpu]"')
    weights = np.random.default_rng(0).normal(0, 0.05, SHAPE).astype(np.float32)
    numbers = mx.array(weights).astype(mx.bfloat16)
    words, *floats = mx.quantize(numbers, group_size=group, bits=bits)
    plain = [np.array(part.astype(mx.float32)) for part in floats]
    scales, biases = (packers.bf16_bits(part) for part in plain)
    tensors = {"weight": np.array(words), "scales": scales, "biases": biases}
    expected = mx.dequantize(words, *map(mx.array, plain), group_size=group, bits=bits)
    assert np.array_equal(read(tmp_path, tensors, "mlx").rows(), np.array(expected))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_compressed_tensors_packs_the_same_words(tmp_path, bits):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    torch = pytest.importorskip("torch")
    rng, half = np.random.default_rng(1), 1 << (bits - 1)
    values, zeros = (rng.integers(0, 2 * half, size) for size in (SHAPE, (64, 4)))
    scale = rng.uniform(0.001, 0.01, (64, 4)).astype(np.float16)

    def packed(numbers: np.ndarray, **options: Any) -> np.ndarray:
        signed = torch.from_numpy((numbers - half).astype(np.int8))
        return helpers.pack_to_int32(signed, bits, **options).contiguous().numpy()

    tensors = {
        "weight_packed": packed(values),
        "weight_scale": scale,
        "weight_shape": np.array(SHAPE),
        "weight_zero_point": packed(zeros, packed_dim=0),
    }
    expected = (values - zeros.repeat(64, 1)) * scale.astype(np.float32).repeat(64, 1)
    assert np.array_equal(read(tmp_path, tensors, "compressed-tensors").rows(), expected)


CASES: dict[str, dict[str, Any]] = {
    "all linears": {"target_modules": "all-linear"},
    "rank-stabilised": {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "DoRA": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 8, "mlp.up_proj": 2},
        "alpha_pattern": {r".*\.0\.mlp.down_proj": 3},
        "target_modules": "all-linear",
    },
    "saved modules": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "fan_in_fan_out": {"target_modules": ["v_proj"], "fan_in_fan_out": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vocabulary", [323, 384])
@pytest.mark.parametrize("case", CASES)
def test_peft_merges_to_the_same_weights(tmp_path, case, vocabulary):
    """In a resized vocabulary where PEFT saves it, which it does with the modules."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from llama_oracle import llama_config

    if vocabulary != 323 and case != "saved modules":
        pytest.skip("PEFT doesn't save the resized embedding")
    weights = write_checkpoint(tmp_path / "base", small_config(), dtype="f32")
    model = transformers.LlamaForCausalLM(llama_config(small_config())).float()
    model.load_state_dict({name: torch.from_numpy(part) for name, part in weights.items()})
    model.resize_token_embeddings(vocabulary)
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16} | CASES[case]
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                part.add_(0.05 * torch.randn_like(part))
    model.save_pretrained(tmp_path / "lora")
    adapters = Adapters.open([str(tmp_path / "lora")])
    found = adapters.weights(open_checkpoint(tmp_path / "base", small_config()), small_config())
    expected = model.merge_and_unload().state_dict()
    for name in found.names():
        assert np.abs(found.rows(name) - expected[name].numpy()).max() < 1e-6, name
