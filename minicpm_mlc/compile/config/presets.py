"""The published models' shapes, so that full-size libraries can be built and measured without their
weights.
"""

from __future__ import annotations

from dataclasses import replace

from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.rope_lists import FACTORS_05B, FACTORS_8B, FACTORS_41_8B

_MINICPM4_8B = ModelConfig(
    name="MiniCPM4-8B",
    model_type="minicpm4",
    vocab_size=73448,
    hidden_size=4096,
    intermediate_size=16384,
    num_layers=32,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_factors=FACTORS_8B,
    rope_attention_scale=1.0,
    max_position_embeddings=32768,
    tie_word_embeddings=False,
    scale_emb=12.0,
    scale_depth=1.4,
    dim_model_base=256,
    bos_token_id=1,
    eos_token_ids=(2, 73440),
)

_MINICPM4_05B = replace(
    _MINICPM4_8B,
    name="MiniCPM4-0.5B",
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=24,
    num_heads=16,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_factors=FACTORS_05B,
    tie_word_embeddings=True,
)

_MINICPM41_8B = replace(
    _MINICPM4_8B, name="MiniCPM4.1-8B", rope_factors=FACTORS_41_8B, max_position_embeddings=65536
)

_MINICPM_SALA = replace(
    _MINICPM4_8B,
    name="MiniCPM-SALA",
    model_type="minicpm_sala",
    rope_factors=(1.0,) * 64,
    max_position_embeddings=524288,
    sparse=SparseConfig(),
    lightning_layers=tuple(i for i in range(32) if i not in (0, 9, 16, 17, 22, 29, 30, 31)),
)

_MINICPM5_1B = ModelConfig(
    name="MiniCPM5-1B",
    model_type="llama",
    vocab_size=130560,
    hidden_size=1536,
    intermediate_size=4608,
    num_layers=24,
    num_heads=16,
    num_kv_heads=2,
    head_dim=128,  # not hidden_size / num_heads
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    rope_factors=(1.0,) * 64,
    rope_attention_scale=1.0,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_ids=(1, 130073),
)

_MINICPM5_2B = replace(
    _MINICPM5_1B, name="MiniCPM5-2B", hidden_size=2048, intermediate_size=6144, num_layers=42
)

_QWEN3_8B = ModelConfig(
    name="Qwen3-8B",
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_factors=(1.0,) * 64,
    rope_attention_scale=1.0,
    max_position_embeddings=40960,
    tie_word_embeddings=False,
    bos_token_id=151643,
    eos_token_ids=(151645,),
)

_QWEN3_06B = replace(
    _QWEN3_8B,
    name="Qwen3-0.6B",
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_heads=16,
    tie_word_embeddings=True,
)

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        _MINICPM4_05B,
        _MINICPM4_8B,
        _MINICPM41_8B,
        _MINICPM_SALA,
        _MINICPM5_1B,
        _MINICPM5_2B,
        _QWEN3_06B,
        _QWEN3_8B,
    )
}
