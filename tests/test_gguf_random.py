from __future__ import annotations

import dataclasses

import gguf_random
import numpy as np
import pytest
import sides
import vs_llama

from minicpm_mlc.compile.config.presets import PRESETS

gguf = pytest.importorskip("gguf", reason="the GGUF writer needs `pip install gguf`")

CONFIG = dataclasses.replace(
    PRESETS["MiniCPM4-0.5B"],
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rope_factors=tuple(np.linspace(1, 40, 16)),
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_ids=(2,),
)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
LLAMA = dataclasses.replace(
    UNTIED, model_type="llama", scale_emb=1.0, scale_depth=None, dim_model_base=None
)


class FakeWeights:
    """Random weights held in memory, under the checkpoint's names."""

    def __init__(self, config, seed: int = 0):
        random = np.random.default_rng(seed)
        self.arrays = {}
        for name, shape in shapes(config).items():
            noise = random.standard_normal(shape).astype(np.float32)
            self.arrays[name] = (
                1 + 0.1 * noise if len(shape) == 1 else noise / np.float32(np.sqrt(shape[1]))
            )

    def names(self):
        return list(self.arrays)

    def shape(self, name):
        return self.arrays[name].shape

    def rows(self, name, start=0, stop=None):
        return self.arrays[name][start:stop]


def shapes(config) -> dict[str, tuple[int, ...]]:
    hidden, wide = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    result = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    result |= {
        f"model.layers.{i}.{n}.weight": s
        for i in range(config.num_layers)
        for n, s in layer.items()
    }
    return (
        result
        if config.tie_word_embeddings
        else result | {"lm_head.weight": (config.vocab_size, hidden)}
    )


def reference_logits(config, w: dict[str, np.ndarray], token_ids) -> np.ndarray:
    """float32 logits [n, vocab] of the dense model, written from its definition in the checkpoint's
    own conventions.
    """

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight

    def heads(x, count):
        return x.reshape(len(x), count, config.head_dim).swapaxes(0, 1)

    def rotate(x):
        angle = np.outer(np.arange(x.shape[1]), config.inv_freq)
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
        )

    x = w["model.embed_tokens.weight"][token_ids] * config.scale_emb
    for i in range(config.num_layers):
        p = {
            n.split(".", 3)[3].removesuffix(".weight"): a
            for n, a in w.items()
            if n.startswith(f"model.layers.{i}.")
        }
        y = norm(x, p["input_layernorm"])
        q = rotate(heads(y @ p["self_attn.q_proj"].T, config.num_heads))
        k, v = (heads(y @ p[f"self_attn.{n}_proj"].T, config.num_kv_heads) for n in "kv")
        groups = config.num_heads // config.num_kv_heads
        scores = q @ rotate(k).repeat(groups, 0).swapaxes(1, 2) / np.sqrt(config.head_dim)
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v.repeat(groups, 0)
        x = x + config.residual_scale * (
            mixed.swapaxes(0, 1).reshape(len(x), -1) @ p["self_attn.o_proj"].T
        )
        y = norm(x, p["post_attention_layernorm"])
        gate = y @ p["mlp.gate_proj"].T
        x = x + config.residual_scale * (
            gate / (1 + np.exp(-gate)) * (y @ p["mlp.up_proj"].T) @ p["mlp.down_proj"].T
        )
    head = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return norm(x, w["model.norm.weight"]) * config.logit_scale @ head.T


@pytest.mark.parametrize("config", [CONFIG, UNTIED, LLAMA], ids=["tied", "untied", "llama"])
def test_llama_cpp_computes_the_same_model(tmp_path, config):
    """llama.cpp would load a wrongly scaled or wrongly rotated file just as happily, and be
    compared with anyway.
    """
    pytest.importorskip("llama_cpp", reason="needs `pip install llama-cpp-python`")
    weights = FakeWeights(config)
    path = gguf_random.write_gguf(tmp_path / "m.gguf", config, weights, "f32", "f32")
    token_ids = np.random.default_rng(1).integers(config.vocab_size, size=40).tolist()
    expected = reference_logits(config, weights.arrays, token_ids)

    model = sides.LlamaCpp(str(path), 64, 1)
    np.testing.assert_allclose(model.prefill(token_ids[:30]), expected[29], atol=5e-3)
    model.decode(7)
    model.truncate(30)
    logits = [model.decode(token_id) for token_id in token_ids[30:]]
    np.testing.assert_allclose(logits[-1], expected[39], atol=5e-3)
    assert np.abs(expected[39] - expected[29]).max() > 0.1


def test_file_holds_every_weight_in_the_type_asked_for(tmp_path):
    weights = FakeWeights(UNTIED)
    path = gguf_random.write_gguf(
        tmp_path / "m.gguf", UNTIED, weights, linear="q4_0", embedding="q8_0"
    )
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert len(tensors) == len(weights.names()) + 2  # and LongRoPE's two lists
    for name in weights.names():
        tensor = tensors[gguf_random.gguf_name(name)]
        kind = (
            "F32" if len(weights.shape(name)) == 1 else "Q8_0" if "layers" not in name else "Q4_0"
        )
        assert tensor.tensor_type.name == kind
        assert tuple(int(n) for n in reversed(tensor.shape)) == weights.shape(name)
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if "q_proj" not in name and "k_proj" not in name:
            scale = np.abs(weights.rows(name)).max()
            np.testing.assert_allclose(
                read, weights.rows(name), atol=scale / 8 if kind == "Q4_0" else scale / 100
            )


def test_blocks_of_rows_make_the_whole_tensor(tmp_path, monkeypatch):
    weights = FakeWeights(CONFIG)
    whole = gguf_random.write_gguf(tmp_path / "whole.gguf", CONFIG, weights).read_bytes()
    monkeypatch.setattr(gguf_random, "BLOCK_ROWS", 64)
    assert gguf_random.write_gguf(tmp_path / "blocks.gguf", CONFIG, weights).read_bytes() == whole


def test_rope_pairs_become_neighbours():
    rows = np.arange(8)[:, None]  # two heads of four
    assert gguf_random.interleave_rope_pairs(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(gguf_random, "encode", fail)
    with pytest.raises(OSError, match="disk full"):
        gguf_random.write_gguf(tmp_path / "m.gguf", CONFIG, FakeWeights(CONFIG))
    assert list(tmp_path.iterdir()) == []


def test_untied_embedding_is_not_counted_as_read(tmp_path):
    sizes = {}
    for config in (CONFIG, UNTIED):
        path = gguf_random.write_gguf(tmp_path / "m.gguf", config, FakeWeights(config))
        sizes[config.tie_word_embeddings] = vs_llama.gguf_traffic(path, config, "f16")
    assert sizes[True] == sizes[False]
    assert (
        sizes[True].kv_per_token == 2 * 2 * 2 * 32 * 2
    )  # k and v, layers, kv heads, head_dim, f16
