"""EAGLE-2 for MiniCPM4 (MiniCPM4-8B-Eagle-FRSpec): one more decoder layer, which reads what the
base's head reads.

x = fc(concat(rms_norm(embed(next id) * scale_emb), rms_norm(f)))
x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))
logits = head(x * logit_scale)

f is the base's last norm, further down a draft its own x; s = scale_depth / sqrt(base layers + 1);
the head is the base's, or FR-Spec's rows of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from minicpm_mlc.compile.config.draft_config import take_same
from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.declaration import EagleDeclaration
from minicpm_mlc.compile.model.eagle import Eagle
from minicpm_mlc.compile.model.layers import Batch, Layer, Linear, Pools, RMSNorm
from minicpm_mlc.compile.model.parts import Plan, Vector
from minicpm_mlc.ops.concat import Concat
from minicpm_mlc.ops.repeat_row import RepeatRow

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor


class Bias(Vector):
    """A row that is added to every row, as a linear's residual."""

    def __call__(self, n: Any) -> Tensor:
        """float32 [n, width]."""
        return self.plan.kernels(RepeatRow(self.rows), self.values, n=n)


class Eagle2(Eagle):
    """The layer and what is before it."""

    def build(self, plan: Plan, at: str) -> None:
        hidden = plan.config.hidden_size
        self.embedding_norm = RMSNorm(plan, f"{at}input_norm1.weight")
        self.hidden_norm = RMSNorm(plan, f"{at}input_norm2.weight")
        self.fc = Linear(plan, {f"{at}fc.weight": hidden}, 2 * hidden, residual=self.config.bias)
        self.bias = Bias(plan, f"{at}fc.bias", hidden) if self.config.bias else None
        self.layer = Layer(plan, f"{at}layers.0")

    def features(self, states: list[Tensor], norm: RMSNorm) -> list[Tensor]:
        return [norm(states[-1])]

    def entering(self, features: Tensor) -> Tensor:
        return features

    def __call__(self, embedded: Tensor, hidden: Tensor, pools: Pools, batch: Batch) -> Tensor:
        pair = [self.embedding_norm(embedded), self.hidden_norm(hidden)]
        bias = [self.bias(embedded.shape[0])] if self.bias else []
        joined = self.plan.kernels(Concat(self.config.hidden_size, 2), *pair)
        return self.layer(self.fc(joined, *bias), pools, batch, [])

    def before_head(self, hidden: Tensor) -> Tensor:
        return hidden


def like(base: ModelConfig) -> dict[str, Any]:
    """Its layer counts as one more of the base's."""
    depth = base.scale_depth
    scale = depth / math.sqrt(base.num_layers + 1) if depth else 1.0
    return {"residual_scale": scale, "own_head": False}


def read(keys: Keys, base: ModelConfig) -> dict[str, Any]:
    """The muP scalings must be the base's."""
    for key in ("scale_emb", "scale_depth", "dim_model_base"):
        take_same(keys, key, getattr(base, key), base)
    return like(base)


DECLARATION = EagleDeclaration(mark="input_norm1.weight", like=like, read=read, part=Eagle2)
