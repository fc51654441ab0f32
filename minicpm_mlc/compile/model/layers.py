"""The layers of a decoder: linears, norms, attention over paged pools, the gated MLP.

x = x + residual_scale * attention(rms_norm(x))
x = x + residual_scale * mlp(rms_norm(x))

x is the residual stream, float32 [n, hidden_size]. Names of published tensors are given where a
weight is declared; `at` is what the names of a layer's tensors begin with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from minicpm_mlc.compile.model.parts import Part, Plan, Vector, Weight
from minicpm_mlc.ops import attend, linear
from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill
from minicpm_mlc.ops.attend_tree import AttendTree
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.ops.linear_int8 import LinearInt8
from minicpm_mlc.ops.linear_swiglu import LinearSwigluInt8
from minicpm_mlc.ops.move_rows import MoveRows
from minicpm_mlc.ops.norm_linear import LONGEST, NormLinearInt8, NormLinearSwigluInt8
from minicpm_mlc.ops.quantize_rows import QuantizeRows
from minicpm_mlc.ops.rms_norm import RmsNorm, RmsNormInt8
from minicpm_mlc.ops.rope_append import RopeAppend
from minicpm_mlc.ops.swiglu import Swiglu

if TYPE_CHECKING:
    from tvm.relax.frontend.nn import Tensor

    from minicpm_mlc.compile.config.draft_config import DraftConfig
    from minicpm_mlc.compile.config.model_config import ModelConfig


Attend = TypeVar("Attend", bound=attend.Attention)


class Linear(Weight):
    """(residual or 0) + scale * x @ W^T."""

    def __init__(
        self,
        plan: Plan,
        sources: Mapping[str, int],
        columns: int,
        *,
        scale: float = 1.0,
        residual: bool = False,
        scheme: Scheme | None = None,
    ) -> None:
        super().__init__(plan, sources, columns, scheme)
        self.scale = scale
        self.residual = residual

    def __call__(self, x: Tensor | Unnormed, *residual: Tensor) -> Tensor:
        """x [n, columns] float32, quantised by the operator before, or to be normalised by this one
        -> float32 [n, rows], padded to whole blocks of rows.
        """
        kernels, shape = self.plan.kernels, (self.rows, self.columns, self.scheme)
        epilogue = {"residual": self.residual, "scale": self.scale}
        if isinstance(x, Unnormed):
            factor = self.plan.sum_factor(self.scheme)
            fused = NormLinearInt8(*shape, **epilogue, sum_factor=factor, eps=x.eps)
            return kernels(fused, x.rows, x.weight, *self.stored(), *residual)
        if not self.int8:
            return kernels(linear.Linear(*shape, **epilogue), x, *self.stored(), *residual)
        factor = self.plan.sum_factor(self.scheme)
        rounded = QuantizeRows(self.columns, factor)
        words = kernels(rounded, x) if x.dtype == "float32" else x
        operator = LinearInt8(*shape, **epilogue, sum_factor=factor)
        return kernels(operator, words, *self.stored(), *residual)


def vocabulary_table(plan: Plan, config: ModelConfig | DraftConfig, source: str) -> Linear:
    """The embedding or the head that is published as `source`, [vocab_size, hidden_size]."""
    size, scheme = {source: config.vocab_size}, plan.precision.tables
    return Linear(plan, size, config.hidden_size, scale=config.logit_scale, scheme=scheme)


@dataclass(frozen=True)
class Unnormed:
    """Rows that the linear which reads them normalises itself: x / rms(x) * weight."""

    rows: Tensor
    weight: Tensor
    eps: float


class RMSNorm(Vector):
    """x / rms(x) * weight, over the residual stream."""

    def __init__(self, plan: Plan, source: str, *, before_linears: bool = False) -> None:
        """`before_linears`: only linears read it, so that it is quantised where they want it so."""
        super().__init__(plan, source, plan.config.hidden_size)
        self.quantising = before_linears and plan.int8

    def __call__(self, x: Tensor, reader: Linear | None = None) -> Any:
        """float32 [n, hidden_size] -> the same shape, or what the linear that reads it takes: int8
        words, or rows that it normalises.
        """
        kernels = self.plan.kernels
        shape = (self.rows, self.plan.config.rms_norm_eps)
        if self.quantising:
            factor = self.plan.sum_factor(reader.scheme if reader else self.plan.scheme)
            if reader and reader.columns <= LONGEST and kernels.traits.normalises:
                return Unnormed(x, self.values, self.plan.config.rms_norm_eps)
            return kernels(RmsNormInt8(*shape, factor), x, self.values)
        return kernels(RmsNorm(*shape), x, self.values)


Pools = dict[str, "Tensor"]  # one layer's, by their names in the state table


@dataclass(frozen=True)
class Batch:
    """What every layer of one call shares: its rows' positions, angles and slots, their sequences'
    page tables, and whether they are decode rows (one per sequence) and read blocks sparsely. Rows
    of a token tree have its first slot and their ancestor masks."""

    positions: Tensor
    cos_sin: Tensor
    slots: Tensor
    page_tables: Tensor
    decode: bool
    sparse: bool
    tree: tuple[Tensor, Tensor] | None


class Mixer(Part):
    """The part of a layer that tokens see each other by."""

    @property
    def reader(self) -> Linear:
        """The linear that reads the layer's normalised rows."""
        raise NotImplementedError

    def __call__(
        self, x: Tensor, residual: Tensor, pools: Pools, batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        """x as linears want it -> residual + residual_scale * what is mixed, float32.

        `pools` are the layer's own, by name. `selected` collects the blocks that a sparse layer
        reads.
        """
        raise NotImplementedError

    def commit(self, sources: Tensor, slots: Tensor, page_table: Tensor, pools: Pools) -> Pools:
        """Moves a token tree's accepted rows to their slots -> the pools; of models without state
        per sequence.
        """
        raise NotImplementedError


class Attention(Mixer):
    """Grouped-query attention over paged pools; writes its keys and values, then reads all up to
    its slot.
    """

    def __init__(self, plan: Plan, at: str, inputs: int | None = None) -> None:
        """`inputs`: columns of its input, where they aren't the residual stream's."""
        c = plan.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        projections = {"q": queries, "k": keys, "v": keys}
        self.plan = plan
        self.heads = (c.num_heads, c.num_kv_heads, c.head_dim)
        self.qkv = Linear(
            plan,
            {f"{at}.{name}_proj.weight": rows for name, rows in projections.items()},
            inputs or c.hidden_size,
        )
        self.out = Linear(
            plan,
            {f"{at}.o_proj.weight": c.hidden_size},
            queries,
            scale=c.residual_scale,
            residual=True,
        )

    def __call__(
        self, x: Tensor, residual: Tensor, pools: Pools, batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        q, pools = self.append(self.project(x), pools, batch)
        return self.out(self.attend(q, pools, batch, selected, rounded=self.out.int8), residual)

    @property
    def reader(self) -> Linear:
        return self.qkv

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of every row, side by side, before RoPE."""
        return self.qkv(x)

    def append(self, qkv: Tensor, pools: Pools, batch: Batch) -> tuple[Tensor, Pools]:
        """Turns queries and keys, and writes keys and values to their slots -> queries float32
        [n, heads, head_dim], and the pools.
        """
        operator = RopeAppend(*self.heads, self.plan.kv, batch.decode)
        place = batch.slots, batch.page_tables
        keys, values, q = self.plan.kernels(
            operator, qkv, batch.cos_sin, *place, pools["keys"], pools["values"]
        )
        return q, pools | {"keys": keys, "values": values}

    def attend(
        self,
        q: Tensor,
        pools: Pools,
        batch: Batch,
        selected: list[Tensor],
        rounded: bool = False,
    ) -> Tensor:
        """What each query reads of all keys up to its slot, float32 [n, heads * head_dim]; where
        the target rounds it in the same launches and that is wanted, as `out` reads it.
        """
        kind, place = AttendDecode if batch.decode else AttendPrefill, (batch.slots,)
        if batch.tree:
            kind, place = AttendTree, batch.tree
        cached = pools["keys"], pools["values"], batch.page_tables
        operator = self.rounding(kind(*self.heads, self.plan.kv), rounded)
        return self.plan.kernels(operator, q, *cached, *place)

    def rounding(self, operator: Attend, rounded: bool) -> Attend:
        """The operator, with outputs as `out` reads them if they are to be `rounded` and the target
        has such kernels.
        """
        if not rounded:
            return operator
        rounding = replace(operator, sum_factor=self.plan.sum_factor(self.out.scheme))
        return rounding if rounding.fits(self.plan.kernels.traits) else operator

    def commit(self, sources: Tensor, slots: Tensor, page_table: Tensor, pools: Pools) -> Pools:
        operator, place = MoveRows(*self.heads[1:], self.plan.kv), (sources, slots, page_table)
        keys, values = self.plan.kernels(operator, *place, pools["keys"], pools["values"])
        return pools | {"keys": keys, "values": values}


class MLP(Part):
    """down(silu(gate) * up)."""

    def __init__(self, plan: Plan, at: str) -> None:
        c = plan.config
        sources = dict.fromkeys(
            (f"{at}.gate_proj.weight", f"{at}.up_proj.weight"), c.intermediate_size
        )
        self.plan = plan
        self.gate_up = Linear(plan, sources, c.hidden_size)
        self.down = Linear(
            plan,
            {f"{at}.down_proj.weight": c.hidden_size},
            c.intermediate_size,
            scale=c.residual_scale,
            residual=True,
        )

    def __call__(self, x: Tensor | Unnormed, residual: Tensor) -> Tensor:
        """x as linears want it -> residual + residual_scale * mlp(x), float32."""
        return self.down(self.gated(x), residual)

    def gated(self, x: Tensor | Unnormed) -> Tensor:
        """silu(gate) * up, as linears want it."""
        kernels, width = self.plan.kernels, self.plan.config.intermediate_size
        gate_up = self.gate_up
        if self.plan.int8 and read_alike(self.plan, gate_up, self.down):
            factor = self.plan.sum_factor(gate_up.scheme)
            shape = width, gate_up.columns, gate_up.scheme, factor
            if isinstance(x, Unnormed):
                fused = NormLinearSwigluInt8(*shape, x.eps)
                return kernels(fused, x.rows, x.weight, *gate_up.stored())
            return kernels(LinearSwigluInt8(*shape), x, *gate_up.stored())
        return kernels(Swiglu(width), gate_up(x))


def read_alike(plan: Plan, *linears: Linear) -> bool:
    """Whether linears of int8 activations read rows that are quantised alike."""
    return len({plan.sum_factor(linear.scheme) for linear in linears}) == 1


class Layer(Part):
    """One decoder layer."""

    def __init__(self, plan: Plan, at: str) -> None:
        self.input_norm = RMSNorm(plan, f"{at}.input_layernorm.weight", before_linears=True)
        self.attention = self.attention_part(plan, f"{at}.self_attn")
        self.mlp_norm = RMSNorm(plan, f"{at}.post_attention_layernorm.weight", before_linears=True)
        self.mlp = MLP(plan, f"{at}.mlp")

    def attention_part(self, plan: Plan, at: str) -> Mixer:
        """The layer's attention; a model with another one overrides this."""
        return Attention(plan, at)

    def __call__(self, x: Tensor, pools: Pools, batch: Batch, selected: list[Tensor]) -> Tensor:
        """The residual stream before the layer -> after it, float32 [n, hidden_size]."""
        x = self.attention(self.input_norm(x, self.attention.reader), x, pools, batch, selected)
        return self.mlp(self.mlp_norm(x, self.mlp.gate_up), x)
