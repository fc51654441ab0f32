"""What every decoder shares: embedding, layers, last norm, head, and the functions of a library.

x = embed(ids) * scale_emb
x = layer(x)                               for every layer (layers.py)
logits = head(rms_norm(x) * logit_scale)   the head is the embedding where they are tied

All state is passed in: the pools are updated in place, and a page table per sequence names the
sequence's pages. Arguments of the functions are listed in docs/architecture.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.layers import Batch, Layer, Pools, RMSNorm, vocabulary_table
from minicpm_mlc.compile.model.parts import Part, Plan
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.state import layer_pools, model_state
from minicpm_mlc.ops.candidates import Candidates
from minicpm_mlc.ops.embed import Embed
from minicpm_mlc.ops.gather_rows import GatherRows
from minicpm_mlc.ops.likeliest import Likeliest
from minicpm_mlc.ops.rope_angles import RopeAngles

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

    from minicpm_mlc.compile.kernels import Kernels
    from minicpm_mlc.compile.model.eagle import Eagle

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Decoder(Part):
    """A whole model. `prefill` takes a chunk of one sequence, `decode` one row of each of several
    sequences, `verify` a token tree behind one sequence, of which `commit` keeps a path.

    With a `draft` head these also return what the head reads of the residual stream.
    """

    layer_part: type[Layer] = Layer  # a model whose layers are others has its own

    def __init__(
        self, config: ModelConfig, precision: Precision, kernels: Kernels | None = None
    ) -> None:
        """Without `kernels` the model can be described, not run."""
        plan = Plan(config, precision, kernels)
        self.plan = plan
        self.config = config
        self.embedding = vocabulary_table(plan, config, EMBEDDING)
        self.layers = [self.layer(plan, i) for i in range(config.num_layers)]
        self.norm = RMSNorm(plan, "model.norm.weight")
        self.head = None if config.tie_word_embeddings else vocabulary_table(plan, config, HEAD)
        self.state = model_state(config, precision.kv)
        self.draft: Eagle | None = None

    def layer(self, plan: Plan, number: int) -> Layer:
        """A layer by its number; a model whose layers differ overrides this."""
        return self.layer_part(plan, f"model.layers.{number}")

    def prefill(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_table: Tensor,
        logit_rows: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """One chunk of one sequence -> logits f32[m, padded vocab] of the rows that `logit_rows`
        names.
        """
        batch = self.batch(positions, slots, page_table)
        return self.chunk(token_ids, logit_rows, batch, pools)

    def prefill_sparse(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_table: Tensor,
        logit_rows: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """The same with every row reading its selected blocks only."""
        batch = self.batch(positions, slots, page_table, sparse=True)
        return self.chunk(token_ids, logit_rows, batch, pools)

    def decode(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_tables: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """One row of each of b sequences -> logits f32[b, padded vocab]."""
        return self.rows(token_ids, self.batch(positions, slots, page_tables, decode=True), pools)

    def decode_sparse(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_tables: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """The same over selected blocks -> logits, and per layer the blocks, i32[b, kv_heads,
        budget].
        """
        batch = self.batch(positions, slots, page_tables, decode=True, sparse=True)
        return self.rows(token_ids, batch, pools)

    def verify(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        base: Tensor,
        page_table: Tensor,
        ancestors: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """n nodes of a token tree that begins at slot `base` -> logits f32[n, padded vocab]."""
        batch = self.batch(positions, slots, page_table, tree=(base, ancestors))
        return self.rows(token_ids, batch, pools)

    def verify_sparse(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        base: Tensor,
        page_table: Tensor,
        ancestors: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """The same over selected blocks -> logits, and per layer the blocks, i32[n, kv_heads,
        budget].
        """
        batch = self.batch(positions, slots, page_table, sparse=True, tree=(base, ancestors))
        return self.rows(token_ids, batch, pools)

    def commit(
        self, sources: Tensor, slots: Tensor, page_table: Tensor, pools: list[Tensor]
    ) -> Tensor:
        """Keeps the rows at `sources` of a token tree by moving them to `slots`, behind the
        sequence -> slots.
        """
        for i, layer in enumerate(self.layers):
            layer.attention.commit(sources, slots, page_table, self.pools_of(i, pools))
        return slots

    def chunk(
        self, token_ids: Tensor, logit_rows: Tensor, batch: Batch, pools: list[Tensor]
    ) -> Any:
        """The outputs of a prefill: logits of some rows, without the blocks that were read."""
        states, _ = self.hidden(token_ids, batch, pools)
        return self.outputs(self.gathered(states[-1], logit_rows), states, [])

    def rows(self, token_ids: Tensor, batch: Batch, pools: list[Tensor]) -> Any:
        """The outputs of a call that has logits of all its rows."""
        states, selected = self.hidden(token_ids, batch, pools)
        return self.outputs(states[-1], states, selected)

    def outputs(self, last: Tensor, states: list[Tensor], selected: list[Tensor]) -> Any:
        """What a call returns: logits of the `last` states, then what else there is."""
        logits = self.logits(self.norm(last))
        features = self.draft.features(states, self.norm) if self.draft else []
        out = (logits, *features, *selected)
        return out if len(out) > 1 else out[0]

    def logits(self, normed: Tensor) -> Tensor:
        """Normed hidden states f32[n, hidden] -> logits f32[n, padded vocab]."""
        return (self.head or self.embedding)(normed)

    def likeliest(self, logits: Tensor) -> Any:
        """Logits of `decode` -> the likeliest tokens i32[n], and their logits f32[n]."""
        return self.plan.kernels(Likeliest(self.config.vocab_size), logits)

    def candidates(self, logits: Tensor, temperatures: Tensor) -> Any:
        """Logits, and temperatures f32[n] -> the k likeliest tokens i32[n, k], their logits
        f32[n, k], and what their shares are of, f32[n].
        """
        return self.plan.kernels(Candidates.of(self.config.vocab_size), logits, temperatures)

    def batch(
        self,
        positions: Tensor,
        slots: Tensor,
        page_tables: Tensor,
        *,
        decode: bool = False,
        sparse: bool = False,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> Batch:
        """What the layers of one call share, with RoPE's angles of its positions."""
        from tvm.relax.frontend.nn import Tensor  # imports TVM

        c = self.config
        angles = RopeAngles(c.head_dim, c.rope_attention_scale)
        frequencies = Tensor.from_const(c.inv_freq.astype(np.float32))
        cos_sin = self.plan.kernels(angles, positions, frequencies)
        return Batch(positions, cos_sin, slots, page_tables, decode, sparse, tree)

    def embedded(self, token_ids: Tensor) -> Tensor:
        """Embeddings f32[n, hidden], scaled."""
        c = self.config
        operator = Embed(c.vocab_size, c.hidden_size, self.embedding.scheme, c.scale_emb)
        return self.plan.kernels(operator, token_ids, *self.embedding.stored())

    def gathered(self, states: Tensor, rows: Tensor) -> Tensor:
        """Some rows of f32[n, hidden]."""
        return self.plan.kernels(GatherRows(self.config.hidden_size), states, rows)

    def hidden(
        self, token_ids: Tensor, batch: Batch, pools: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The residual stream before each layer and after the last, f32[n, hidden], and the blocks
        that each layer read.
        """
        states = [self.embedded(token_ids)]
        selected: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            states.append(layer(states[-1], self.pools_of(i, pools), batch, selected))
        return states, selected

    def pools_of(self, layer: int, pools: list[Tensor]) -> Pools:
        """The pools of one layer by name, of all those that the library's functions take."""
        return layer_pools(self.state, pools, layer)
