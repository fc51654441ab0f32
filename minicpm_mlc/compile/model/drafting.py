"""A MiniCPM with an EAGLE head: its calls also return what the head reads, and the head has two
calls of its own.
"""

from __future__ import annotations

from typing import Any

from tvm.relax.frontend.nn import Tensor, op, spec

from minicpm_mlc.compile.config.draft_config import EAGLE3, DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.eagle2 import Eagle2
from minicpm_mlc.compile.model.eagle3 import Eagle3
from minicpm_mlc.compile.model.minicpm import (
    PARAMS,
    Linear,
    MiniCPM,
    call,
    ids,
    pool_specs,
    tree_specs,
)
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.targets.cpu import CpuKernels


class DraftingMiniCPM(MiniCPM):
    """The base and its head. `draft_extend` takes rows of the sequence, `draft_step` nodes of a
    draft tree.
    """

    def __init__(
        self,
        kernels: CpuKernels,
        config: ModelConfig,
        precision: Precision,
        draft: DraftConfig,
        stored: Precision,
    ) -> None:
        super().__init__(kernels, config, precision)
        fmt, head_fmt = stored.matrices, stored.tables
        self.draft_config = draft
        self.draft = (Eagle3 if draft.kind == EAGLE3 else Eagle2)(
            kernels, draft, fmt, stored.kv_dtype
        )
        if draft.own_head:
            self.draft_head = Linear(
                kernels, draft.vocab_size, draft.hidden_size, head_fmt, scale=draft.logit_scale
            )
        self.join = kernels.concat(config.hidden_size, 3)
        self.top_k = kernels.top_k(draft.vocab_size, draft.top_k)

    def features(self, states: list[Tensor]) -> list[Tensor]:
        """f32[n, F]: the residual stream that enters three layers, or the last norm's output."""
        if self.draft_config.kind != EAGLE3:
            return [self.norm(states[-1])]
        parts = [states[i] for i in self.draft_config.feature_layers]
        return [
            call(self.join, "concat", parts, (parts[0].shape[0], self.draft_config.feature_width))
        ]

    def draft_extend(
        self, token_ids, features, positions, slots, page_table, logit_rows, pools
    ) -> Any:
        """Rows of one sequence, each the base's features and the token that follows -> the
        likeliest tokens i32[m, k] of the head's vocabulary, their log-probabilities f32[m, k] and
        hidden states f32[m, hidden] of the rows that `logit_rows` names."""
        batch = self.batch(positions, slots, page_table)
        x = self.draft(self.embedded(token_ids), self.draft.entering(features), pools, batch)
        x = call(
            self.gather,
            "gather_rows",
            [x, logit_rows],
            (logit_rows.shape[0], self.config.hidden_size),
        )
        return *self.proposed(x), x

    def draft_step(
        self, token_ids, hidden, positions, slots, base, page_table, ancestors, pools
    ) -> Any:
        """Nodes of a draft tree that begins at slot `base`, each the hidden state that proposed it
        and its token -> the same of all n nodes."""
        batch = self.batch(positions, slots, page_table, tree=(base, ancestors))
        x = self.draft(self.embedded(token_ids), hidden, pools, batch)
        return *self.proposed(x), x

    def proposed(self, hidden: Tensor) -> Any:
        """The likeliest tokens after each row, the likeliest first, and their log-probabilities."""
        x, shape = self.draft.before_head(hidden), (hidden.shape[0], self.draft_config.top_k)
        logits = self.draft_head(x) if self.draft_config.own_head else self.to_vocabulary(x)
        outputs = [Tensor.placeholder(shape, dtype) for dtype in ("int32", "float32")]
        return op.tensor_ir_op(self.top_k, "top_k", [logits], outputs)

    def call_specs(self) -> dict[str, Any]:
        pools = pool_specs(self.draft_config, self.kv_dtype)
        table = {"page_table": spec.Tensor([1, "p"], "int32")}
        features = {"features": spec.Tensor(["n", self.draft_config.feature_width], "float32")}
        hidden = {"hidden": spec.Tensor(["t", self.config.hidden_size], "float32")}
        extend = (
            ids("n", "token_ids")
            | features
            | ids("n", "positions slots")
            | table
            | ids("m", "logit_rows")
        )
        step = ids("t", "token_ids") | hidden | ids("t", "positions slots") | tree_specs("t")
        return super().call_specs() | {
            "draft_extend": extend | pools | PARAMS,
            "draft_step": step | pools | PARAMS,
        }
