"""MiniCPM4 and MiniCPM4.1: Llama with muP scalings, and InfLLM-v2 in long contexts.

x = embed(ids) * scale_emb
x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))    s = scale_depth / sqrt(layers)
logits = head(rms_norm(x) * dim_model_base / hidden_size)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minicpm_mlc.compile.config.decoder_keys import decoder_fields
from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.config.rope_lists import LONGER_CONTEXT, longer_list
from minicpm_mlc.compile.model.declaration import ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.layers import Attention, Layer
from minicpm_mlc.compile.model.parts import Plan
from minicpm_mlc.compile.model.sparse_attention import SparseAttention

DIM_MODEL_BASE = 256  # of the whole family; MiniCPM4-8B's first config.json doesn't say it


class MiniCPM4Layer(Layer):
    """A layer whose attention can be sparse."""

    def attention_part(self, plan: Plan, at: str) -> Attention:
        sparse = plan.config.sparse
        return SparseAttention(plan, at, sparse) if sparse else Attention(plan, at)


class MiniCPM4(Decoder):
    """The scalings are those of the config."""

    layer_part = MiniCPM4Layer


def read(keys: Keys) -> dict[str, Any]:
    """The keys that every decoder has, the muP scalings, of which null switches one off, and
    `sparse_config`.
    """
    sparse = keys.take("sparse_config", None)
    fields = decoder_fields(keys, tied=True)
    fields["scale_depth"] = keys.positive_or_null("scale_depth")
    fields["dim_model_base"] = keys.positive_or_null("dim_model_base", DIM_MODEL_BASE)
    fields["scale_emb"] = keys.positive("scale_emb")
    return fields | {"sparse": None if sparse is None else SparseConfig.from_dict(sparse)}


def sparse_settings(config: ModelConfig) -> SparseConfig | None:
    """The 8B models were trained for InfLLM-v2 and ship without a `sparse_config`: they get the
    published one. Their mark is the 16 query heads of 128 that share a key; MiniCPM4-0.5B has 8.
    """
    trained = config.num_heads == 16 * config.num_kv_heads and config.head_dim == 128
    return config.sparse or (SparseConfig() if trained else None)


def longer_context(config: ModelConfig) -> ModelConfig | None:
    """The 8B models have a published RoPE list for 128K tokens beside their native one."""
    longer = longer_list(config.rope_factors)
    if longer is None:
        return None
    return replace(config, max_position_embeddings=LONGER_CONTEXT, rope_factors=longer)


DECLARATION = ModelDeclaration(
    model_types=("minicpm", "minicpm4"),
    architectures=("MiniCPMForCausalLM", "MiniCPM4ForCausalLM"),
    read=read,
    part=MiniCPM4,
    sparse_settings=sparse_settings,
    longer_context=longer_context,
)
