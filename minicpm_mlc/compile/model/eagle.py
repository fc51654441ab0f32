"""What EAGLE heads share: what they read of the base, and how they propose tokens.

A head pairs the features of a token with the token that follows. It has one decoder layer with
pools of its own, attends densely, and is published as a checkpoint of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.model.decoder import HEAD, Decoder
from minicpm_mlc.compile.model.layers import Batch, Pools, RMSNorm, vocabulary_table
from minicpm_mlc.compile.model.parts import Part, Plan
from minicpm_mlc.compile.parameters import Precision
from minicpm_mlc.compile.state import attention_state, layer_pools
from minicpm_mlc.ops.choose_nodes import ChooseNodes
from minicpm_mlc.ops.top_k import TopK

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

    from minicpm_mlc.compile.kernels import Kernels

DRAFT = "draft/"  # what the names of its tensors begin with beside the base's


class Eagle(Part):
    """A draft head. Its file builds the layer and what is around it."""

    def __init__(
        self,
        config: DraftConfig,
        precision: Precision,
        kernels: Kernels | None = None,
        at: str = "",
    ) -> None:
        """`at`: what the names of its tensors begin with. Without `kernels` it can be described,
        not run.
        """
        self.plan = Plan(config, precision, kernels)
        self.config = config
        self.state = attention_state(config, precision.kv)
        self.build(self.plan, at)
        self.head = vocabulary_table(self.plan, config, at + HEAD) if config.own_head else None

    def build(self, plan: Plan, at: str) -> None:
        """Sets the parts that come before the head."""
        raise NotImplementedError

    def features(self, states: list[Tensor], norm: RMSNorm) -> list[Tensor]:
        """What it reads of the base, one tensor f32[n, feature_width].

        `states`: the residual stream before each layer and after the last; `norm`: the last norm.
        """
        raise NotImplementedError

    def entering(self, features: Tensor) -> Tensor:
        """Features as they stand for a hidden state of its own, f32[n, hidden]."""
        raise NotImplementedError

    def __call__(self, embedded: Tensor, hidden: Tensor, pools: Pools, batch: Batch) -> Tensor:
        """Embeddings of the next tokens and hidden states, f32[n, hidden] -> the next hidden
        states. `pools` are those of its layer.
        """
        raise NotImplementedError

    def before_head(self, hidden: Tensor) -> Tensor:
        """Hidden states as the head takes them, f32[n, hidden]."""
        raise NotImplementedError


class EagleCalls:
    """The functions of a base with its head: `draft_extend` takes rows of the sequence,
    `draft_step` nodes of a draft tree. `draft_choose` and `draft_level` are how a tree grows
    without its host.
    """

    def __init__(self, base: Decoder, draft: Eagle) -> None:
        self.base = base
        self.draft = draft

    def draft_extend(
        self,
        token_ids: Tensor,
        features: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_table: Tensor,
        logit_rows: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """Rows of one sequence, each the base's features and the token that follows -> the
        likeliest tokens i32[m, k] of the head's vocabulary, their log-probabilities f32[m, k] and
        hidden states f32[m, hidden] of the rows that `logit_rows` names.
        """
        batch = self.base.batch(positions, slots, page_table)
        embedded = self.base.embedded(token_ids)
        x = self.draft(embedded, self.draft.entering(features), self.own(pools), batch)
        x = self.base.gathered(x, logit_rows)
        return *self.proposed(x), x

    def draft_step(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        base: Tensor,
        page_table: Tensor,
        ancestors: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """Nodes of a draft tree that begins at slot `base`, each the hidden state that proposed it
        and its token -> the same of all n nodes.
        """
        batch = self.base.batch(positions, slots, page_table, tree=(base, ancestors))
        x = self.draft(self.base.embedded(token_ids), hidden, self.own(pools), batch)
        return *self.proposed(x), x

    def draft_choose(
        self,
        ids: Tensor,
        values: Tensor,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        base: Tensor,
        ancestors: Tensor,
        vocabulary: Tensor,
        tree: Tensor,
    ) -> Any:
        """What the head gave after the nodes of one level goes into the `tree` i32[s, 3, n] in
        place -> the next level: tokens i32[n], hidden states f32[n, hidden], positions, slots and
        ancestors.
        """
        c = self.draft.config
        operator = ChooseNodes(c.vocab_size, c.hidden_size, c.top_k)
        level = ids, values, hidden, positions, slots, base, ancestors, vocabulary, tree
        _, *chosen = self.base.plan.kernels(operator, *level)
        return tuple(chosen)

    def draft_level(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        base: Tensor,
        page_table: Tensor,
        ancestors: Tensor,
        vocabulary: Tensor,
        tree: Tensor,
        pools: list[Tensor],
    ) -> Any:
        """A level of n nodes -> the next one: `draft_step`, then `draft_choose`."""
        nodes = token_ids, hidden, positions, slots
        ids, values, after = self.draft_step(*nodes, base, page_table, ancestors, pools)
        level = ids, values, after, positions, slots, base, ancestors
        return self.draft_choose(*level, vocabulary, tree)

    def own(self, pools: list[Tensor]) -> Pools:
        """The pools of the head's one layer by name."""
        return layer_pools(self.draft.state, pools, 0)

    def proposed(self, hidden: Tensor) -> list[Tensor]:
        """The likeliest tokens after each row, the likeliest first, and their log-probabilities."""
        c, x = self.draft.config, self.draft.before_head(hidden)
        logits = self.draft.head(x) if self.draft.head else self.base.logits(x)
        return self.base.plan.kernels(TopK(c.vocab_size, c.top_k), logits)
