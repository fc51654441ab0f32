"""MiniCPM-SALA: MiniCPM4 of which three layers in four have lightning attention.

x = x + s * mixer(rms_norm(x));  x = x + s * mlp(rms_norm(x))    s = scale_depth / sqrt(layers)
attention: o_proj(attend(q, k, v) * sigmoid(o_gate(h)))          InfLLM-v2, without RoPE
lightning: o_proj(rms_norm(lightning_attend(q, k, v)) * sigmoid(z_proj(h)))
           q and k normed head by head, then turned by RoPE      (ops/lightning_attend.py)

No config says how a lightning layer forgets. Assumed, as in public implementations: head i of n
keeps exp(-2^(-8 (i + 1) / n)) of its state from token to token, in every layer alike (`decays`).
Assumed too: the last norm is over all heads together, and attention has no norms. A checkpoint
with other tensors, or a config with other values of these keys, is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.model import minicpm4
from minicpm_mlc.compile.model.declaration import ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder
from minicpm_mlc.compile.model.layers import (
    Attention,
    Batch,
    Layer,
    Linear,
    Mixer,
    Pools,
    read_alike,
)
from minicpm_mlc.compile.model.parts import Part, Plan, Vector
from minicpm_mlc.compile.model.sparse_attention import SparseAttention
from minicpm_mlc.compile.state import LIGHTNING
from minicpm_mlc.ops.head_norm import HeadNorm
from minicpm_mlc.ops.lightning_attend import LightningAttend
from minicpm_mlc.ops.rms_norm import RmsNorm
from minicpm_mlc.ops.rope_angles import RopeAngles
from minicpm_mlc.ops.sigmoid_gate import SigmoidGate

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

MIXERS = ("minicpm4", "lightning-attn")  # of mixer_types
# the maths that is here, as the published config.json asks for it
PUBLISHED: dict[str, Any] = {
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_scale": "1/sqrt(d)",
    "lightning_use_rope": True,
    "qk_norm": True,
    "use_output_gate": True,
    "use_output_norm": True,
}
# lightning layers have the heads of the attention's queries, and no groups
HEADS = {
    "lightning_nh": "num_heads",
    "lightning_nkv": "num_heads",
    "lightning_head_dim": "head_dim",
}


def decays(heads: int) -> np.ndarray:
    """What of its state each head keeps from token to token, float32 [heads]: e to minus ALiBi's
    slopes, which for a number of heads that is no power of two take every other one of the next.
    """
    whole = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 / whole * np.arange(1, whole + 1))
    between = 2.0 ** (-4 / whole * np.arange(1, 2 * whole + 1, 2))
    return np.exp(-np.concatenate([slopes, between])[:heads]).astype(np.float32)


class OutputGate(Part):
    """x * sigmoid(a linear of the layer's input)."""

    def __init__(self, plan: Plan, source: str) -> None:
        c = plan.config
        self.plan = plan
        self.width = c.num_heads * c.head_dim
        self.gate = Linear(plan, {source: self.width}, c.hidden_size)

    def __call__(self, mixed: Tensor, x: Tensor, beside: Linear) -> Tensor:
        """float32 [n, heads * head_dim] and the input as linears want it -> float32, the same
        shape. Raises CompileError where the linear `beside` it wants that input otherwise.
        """
        if self.plan.int8 and not read_alike(self.plan, self.gate, beside):
            raise CompileError(
                f"an output gate is stored as {self.gate.scheme.name} beside {beside.scheme.name}, "
                "which don't read the same int8 rows; name one scheme for all (--quant), or "
                "--activations f32"
            )
        return self.plan.kernels(SigmoidGate(self.width), mixed, self.gate(x))


class GatedAttention(Mixer):
    """Attention without positions, gated."""

    def __init__(self, plan: Plan, at: str) -> None:
        sparse = plan.config.sparse
        self.plan = plan
        self.attention = SparseAttention(plan, at, sparse) if sparse else Attention(plan, at)
        self.gate = OutputGate(plan, f"{at}.o_gate.weight")

    @property
    def reader(self) -> Linear:
        return self.attention.qkv

    def __call__(
        self, x: Tensor, residual: Tensor, pools: Pools, batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        attention, batch = self.attention, replace(batch, cos_sin=self.unturned(batch.positions))
        q, pools = attention.append(attention.project(x), pools, batch)
        mixed = attention.attend(q, pools, batch, selected)
        return attention.out(self.gate(mixed, x, self.reader), residual)

    def unturned(self, positions: Tensor) -> Tensor:
        """RoPE's cosines and sines of frequencies that are all 0: queries and keys stay as they
        are.
        """
        from tvm.relax.frontend.nn import Tensor  # imports TVM

        size = self.plan.config.head_dim
        still = Tensor.from_const(np.zeros(size // 2, np.float32))
        return self.plan.kernels(RopeAngles(size), positions, still)


class LightningAttention(Mixer):
    """Linear attention over one matrix a head, in place of keys and values."""

    def __init__(self, plan: Plan, at: str) -> None:
        c = plan.config
        width = c.num_heads * c.head_dim
        projections = {f"{at}.{name}_proj.weight": width for name in "qkv"}
        self.plan = plan
        self.qkv = Linear(plan, projections, c.hidden_size)
        self.q_norm = Vector(plan, f"{at}.q_norm.weight", c.head_dim)
        self.k_norm = Vector(plan, f"{at}.k_norm.weight", c.head_dim)
        self.o_norm = Vector(plan, f"{at}.o_norm.weight", width)
        self.gate = OutputGate(plan, f"{at}.z_proj.weight")
        output = {f"{at}.o_proj.weight": c.hidden_size}
        self.out = Linear(plan, output, width, scale=c.residual_scale, residual=True)

    @property
    def reader(self) -> Linear:
        return self.qkv

    def __call__(
        self, x: Tensor, residual: Tensor, pools: Pools, batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        kernels, eps = self.plan.kernels, self.plan.config.rms_norm_eps
        mixed = self.mixed(self.qkv(x), pools, batch)
        normed = kernels(RmsNorm(self.o_norm.rows, eps), mixed, self.o_norm.values)
        return self.out(self.gate(normed, x, self.reader), residual)

    def mixed(self, qkv: Tensor, pools: Pools, batch: Batch) -> Tensor:
        """What each row reads of the state, float32 [n, heads * head_dim]."""
        from tvm.relax.frontend.nn import Tensor  # imports TVM

        c, kernels = self.plan.config, self.plan.kernels
        norm = HeadNorm(c.num_heads, c.num_heads, c.head_dim, c.rms_norm_eps)
        qkv = kernels(norm, self.q_norm.values, self.k_norm.values, qkv)
        kept = Tensor.from_const(decays(c.num_heads))
        attend = LightningAttend(c.num_heads, c.head_dim, batch.decode)
        _, out = kernels(attend, qkv, batch.cos_sin, batch.positions, kept, pools[LIGHTNING])
        return out


class LightningLayer(Layer):
    """A layer with lightning attention."""

    def attention_part(self, plan: Plan, at: str) -> Mixer:
        return LightningAttention(plan, at)


class GatedLayer(Layer):
    """A layer with attention."""

    def attention_part(self, plan: Plan, at: str) -> Mixer:
        return GatedAttention(plan, at)


class MiniCPMSala(Decoder):
    """Layers of two kinds, as the config lists them."""

    def layer(self, plan: Plan, number: int) -> Layer:
        kind = LightningLayer if number in self.config.lightning_layers else GatedLayer
        return kind(plan, f"model.layers.{number}")


def read(keys: Keys) -> dict[str, Any]:
    """MiniCPM4's keys, and those that say which layers are of which kind. Raises ConfigError for
    other maths than the published one.
    """
    for key, only in PUBLISHED.items():
        if (found := keys.take(key)) != only:
            raise keys.refuse(key, found, f"{only!r} (nothing else is implemented)")
    kinds = keys.take("mixer_types")
    lightning = {key: keys.integer(key) for key in HEADS}
    keys.left.setdefault("tie_word_embeddings", False)
    fields = minicpm4.read(keys)
    for key, field in HEADS.items():
        if lightning[key] != fields[field]:
            expected = f"{fields[field]}, as attention has ({field})"
            raise keys.refuse(key, lightning[key], expected)
    return fields | {"lightning_layers": _lightning_layers(keys, kinds, fields["num_layers"])}


def _lightning_layers(keys: Keys, kinds: Any, layers: int) -> tuple[int, ...]:
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= {*MIXERS}:
        expected = f"{' or '.join(MIXERS)} for each of the {layers} layers"
        raise keys.refuse("mixer_types", kinds, expected)
    if set(kinds) != {*MIXERS}:
        raise keys.refuse("mixer_types", kinds, f"layers of both kinds, {' and '.join(MIXERS)}")
    return tuple(i for i, kind in enumerate(kinds) if kind == MIXERS[1])


DECLARATION = ModelDeclaration(
    model_types=("minicpm_sala",),
    architectures=("MiniCPMSALAForCausalLM",),
    read=read,
    part=MiniCPMSala,
)
