"""EAGLE-3 (MiniCPM4.1-8B-Eagle3): a decoder layer that reads the residual stream entering three of
the base's layers.

x0 = fc(concat(low, mid, high))                                        further down the layer's own
x x = x0 + attention(concat(rms_norm(embed(next id)), rms_norm(x0)))
x = x + mlp(rms_norm(x))
logits = head(rms_norm(x))                                             a head of its own, over its
own vocabulary
"""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.model.minicpm import MLP, Attention, Batch, Linear, RMSNorm, call
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets.cpu import CpuKernels


class Eagle3(nn.Module):
    """The layer and what is around it; pools are those of one layer."""

    def __init__(
        self, kernels: CpuKernels, config: DraftConfig, fmt: Scheme, kv_dtype: str
    ) -> None:
        hidden = config.hidden_size
        self.width, self.concat = hidden, kernels.concat(hidden, 2)
        self.fc = Linear(kernels, hidden, 3 * hidden, fmt)
        self.input_norm, self.hidden_norm = RMSNorm(kernels, config), RMSNorm(kernels, config)
        self.attention = Attention(kernels, config, fmt, kv_dtype, inputs=2 * hidden)
        self.mlp_norm = RMSNorm(kernels, config, fmt)
        self.mlp = MLP(kernels, config, fmt)
        self.norm = RMSNorm(kernels, config)

    def entering(self, features: Tensor) -> Tensor:
        """The base's features fused to one hidden state."""
        return self.fc(features)

    def forward(
        self, embedded: Tensor, hidden: Tensor, pools: list[Tensor], batch: Batch
    ) -> Tensor:
        """Embeddings of the next tokens and hidden states, f32[n, hidden] -> the next hidden
        states.
        """
        pair = [self.input_norm(embedded), self.hidden_norm(hidden)]
        x = call(self.concat, "concat", pair, (embedded.shape[0], 2 * self.width))
        x = self.attention(x, hidden, pools, batch, [])
        return self.mlp(self.mlp_norm(x), x)

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the head takes."""
        return self.norm(hidden)
