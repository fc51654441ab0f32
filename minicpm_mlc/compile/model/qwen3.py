"""Qwen3, dense: Llama whose queries and keys are normed head by head before RoPE.

x = embed(ids)
q = rope(rms_norm(q_proj(h)));  k = rope(rms_norm(k_proj(h)))    h = rms_norm(x), norms per head
x = x + attention(q, k, v_proj(h));  x = x + mlp(rms_norm(x))    for every layer
logits = head(rms_norm(x))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minicpm_mlc.compile.config.decoder_keys import decoder_fields
from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.model.declaration import ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.layers import Attention, Layer
from minicpm_mlc.compile.model.parts import Plan, Vector
from minicpm_mlc.ops.head_norm import HeadNorm

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

# what absent keys mean in the published configuration class, not in llama's
DEFAULTS = {"head_dim": 128, "num_key_value_heads": 32, "use_sliding_window": False}


class Qwen3Attention(Attention):
    """Attention with one norm for all query heads and one for all key heads."""

    def __init__(self, plan: Plan, at: str) -> None:
        super().__init__(plan, at)
        head_dim = plan.config.head_dim
        self.q_norm = Vector(plan, f"{at}.q_norm.weight", head_dim)
        self.k_norm = Vector(plan, f"{at}.k_norm.weight", head_dim)

    def project(self, x: Tensor) -> Tensor:
        """Queries and keys normed, and values, side by side, before RoPE."""
        norm = HeadNorm(*self.heads, self.plan.config.rms_norm_eps)
        qkv = super().project(x)
        return self.plan.kernels(norm, self.q_norm.values, self.k_norm.values, qkv)


class Qwen3Layer(Layer):
    """A layer with Qwen3's attention."""

    def attention_part(self, plan: Plan, at: str) -> Attention:
        return Qwen3Attention(plan, at)


class Qwen3(Decoder):
    """The scalings are all 1."""

    layer_part = Qwen3Layer


def read(keys: Keys) -> dict[str, Any]:
    """The keys that every decoder has. A sliding window is refused, and the keys that shape one
    are taken where it is off. Raises ConfigError.
    """
    for key, value in DEFAULTS.items():
        keys.left.setdefault(key, value)
    keys.take("max_window_layers", None)  # the layers that use_sliding_window would leave whole
    kinds = keys.take("layer_types", None)
    fields = decoder_fields(keys, tied=False, bos=None, eos=None)
    layers = fields["num_layers"]
    if kinds not in (None, ["full_attention"] * layers):
        expected = f'"full_attention" for each of the {layers} layers'
        raise keys.refuse("layer_types", kinds, f"{expected} (no other kind is implemented)")
    return fields


DECLARATION = ModelDeclaration(
    model_types=("qwen3",), architectures=("Qwen3ForCausalLM",), read=read, part=Qwen3
)
