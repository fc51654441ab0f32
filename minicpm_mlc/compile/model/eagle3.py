"""EAGLE-3 (MiniCPM4.1-8B-Eagle3): a decoder layer that reads the residual stream entering three of
the base's layers.

x0 = fc(concat(low, middle, high))                     further down a draft the layer's own x
x = x0 + attention(concat(rms_norm(embed(next id)), rms_norm(x0)))
x = x + mlp(rms_norm(x))
logits = head(rms_norm(x))                             a head of its own, over its own vocabulary
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.declaration import EagleDeclaration
from minicpm_mlc.compile.model.eagle import Eagle
from minicpm_mlc.compile.model.layers import MLP, Attention, Batch, Linear, Pools, RMSNorm
from minicpm_mlc.compile.model.parts import Plan
from minicpm_mlc.ops.concat import Concat

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


class Eagle3(Eagle):
    """The layer and what is around it."""

    def build(self, plan: Plan, at: str) -> None:
        hidden, layer = self.config.hidden_size, f"{at}midlayer"
        self.fc = Linear(plan, {f"{at}fc.weight": hidden}, self.config.feature_width)
        self.input_norm = RMSNorm(plan, f"{layer}.input_layernorm.weight")
        self.hidden_norm = RMSNorm(plan, f"{layer}.hidden_norm.weight")
        self.attention = Attention(plan, f"{layer}.self_attn", inputs=2 * hidden)
        self.mlp_norm = RMSNorm(
            plan, f"{layer}.post_attention_layernorm.weight", before_linears=True
        )
        self.mlp = MLP(plan, f"{layer}.mlp")
        self.norm = RMSNorm(plan, f"{at}norm.weight")

    def features(self, states: list[Tensor], norm: RMSNorm) -> list[Tensor]:
        return [self.joined([states[i] for i in self.config.feature_layers])]

    def entering(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def __call__(self, embedded: Tensor, hidden: Tensor, pools: Pools, batch: Batch) -> Tensor:
        x = self.joined([self.input_norm(embedded), self.hidden_norm(hidden)])
        x = self.attention(x, hidden, pools, batch, [])
        return self.mlp(self.mlp_norm(x, self.mlp.gate_up), x)

    def before_head(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Rows of f32[n, hidden] side by side."""
        return self.plan.kernels(Concat(self.config.hidden_size, len(parts)), *parts)


def default_layers(num_layers: int) -> tuple[int, ...]:
    """The layers whose inputs it reads, as its authors chose them: low, middle and high; of a
    model with fewer layers, those that are there.
    """
    return (min(2, num_layers), num_layers // 2, max(0, num_layers - 3))


def like(base: ModelConfig) -> dict[str, Any]:
    """A head without a config.json: its own vocabulary, no scalings, the published layers."""
    return {
        "residual_scale": 1.0,
        "own_head": True,
        "feature_layers": default_layers(base.num_layers),
    }


def read(keys: Keys, base: ModelConfig) -> dict[str, Any]:
    """`eagle_config` names the layers before those whose inputs it reads, by their outputs."""
    nested = Keys(keys.take("eagle_config", None) or {}, f"{keys.where}: eagle_config")
    if nested.take("use_aux_hidden_state", True) is not True:
        raise nested.refuse("use_aux_hidden_state", False, "true")
    found, after = keys.take(LAYER_IDS, None), nested.take(LAYER_IDS, None)
    nested.finish()
    layers = found if after is None else [i + 1 if type(i) is int else i for i in after]
    if layers is None:
        layers = list(default_layers(base.num_layers))
    if not _are_three_layers(layers, base.num_layers):
        raise keys.refuse(LAYER_IDS, layers, f"three layers of {base.name}'s {base.num_layers}")
    return like(base) | {"feature_layers": tuple(layers)}


def _are_three_layers(layers: Any, num_layers: int) -> bool:
    if not isinstance(layers, list) or len(layers) != 3:
        return False
    return all(type(i) is int and 0 <= i <= num_layers for i in layers)


DECLARATION = EagleDeclaration(
    mark="midlayer.hidden_norm.weight", like=like, read=read, part=Eagle3, token_offsets="d2t"
)
