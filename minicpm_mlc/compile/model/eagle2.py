"""EAGLE-2 for MiniCPM4 (MiniCPM4-8B-Eagle-FRSpec): one more decoder layer, which reads what the
base's head reads.

x = fc(concat(rms_norm(embed(next id) * scale_emb), rms_norm(f)))      f: the base's last norm;
further down its own x x = x + s * attention(rms_norm(x));  x = x + s * mlp(rms_norm(x))      s =
scale_depth / sqrt(base layers + 1) logits = head(x * logit_scale)
the base's head, or FR-Spec's rows of it
"""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.model.minicpm import Batch, Layer, Linear, RMSNorm, call
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets.cpu import CpuKernels


class Bias(nn.Module):
    """A row that is added to every row, as a linear's residual."""

    def __init__(self, kernels: CpuKernels, width: int) -> None:
        self.weight = nn.Parameter((width,), "float32")
        self.kernel, self.width = kernels.repeat_row(width), width

    def forward(self, n: Any) -> Tensor:
        return call(self.kernel, "repeat_row", [self.weight], (n, self.width))


class Eagle2(nn.Module):
    """The layer and what is before it; pools are those of one layer."""

    def __init__(
        self, kernels: CpuKernels, config: DraftConfig, fmt: Scheme, kv_dtype: str
    ) -> None:
        hidden = config.hidden_size
        self.width, self.concat = hidden, kernels.concat(hidden, 2)
        self.embedding_norm, self.hidden_norm = RMSNorm(kernels, config), RMSNorm(kernels, config)
        self.fc = Linear(kernels, hidden, 2 * hidden, fmt, residual=config.bias)
        self.bias = Bias(kernels, hidden) if config.bias else None
        self.layer = Layer(kernels, config, fmt, kv_dtype)

    def entering(self, features: Tensor) -> Tensor:
        """The base's features as they stand for a hidden state of its own."""
        return features

    def forward(
        self, embedded: Tensor, hidden: Tensor, pools: list[Tensor], batch: Batch
    ) -> Tensor:
        """Embeddings of the next tokens and hidden states, f32[n, hidden] -> the next hidden
        states.
        """
        n = embedded.shape[0]
        pair = [self.embedding_norm(embedded), self.hidden_norm(hidden)]
        bias = [self.bias(n)] if self.bias else []
        x = self.fc(call(self.concat, "concat", pair, (n, 2 * self.width)), *bias)
        return self.layer(x, pools, batch, [])

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the head takes."""
        return hidden
