"""MiniCPM4 and MiniCPM4.1 (and, with its scalings at 1, MiniCPM5) as a Relax module over paged key/value pools.

    x = embed(ids) * scale_emb
    x = x + residual_scale * attention(rms_norm(x));  x = x + residual_scale * mlp(rms_norm(x))     for every layer
    logits = head(rms_norm(x) * logit_scale)

All state is passed in: the pools are updated in place, one page table per sequence names a sequence's pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op, spec

from ...ops.quantize_rows import quantized_shape
from ...ops.weight_format import LANES, WeightFormat
from ...targets.cpu import CpuKernels
from ..config import ModelConfig, SparseConfig
from ..parameters import Precision, pool_layout


class Linear(nn.Module):
    """A packed [rows, columns] weight: (residual or 0) + scale * x @ W^T."""

    def __init__(
        self,
        kernels: CpuKernels,
        rows: int,
        columns: int,
        fmt: WeightFormat,
        *,
        scale: float = 1.0,
        residual: bool = False,
    ) -> None:
        self.width = -(-rows // LANES) * LANES  # of the output, padded
        self.weight = nn.Parameter(fmt.weight_shape(rows, columns), fmt.dtype)
        if fmt.group:
            self.scale = nn.Parameter(fmt.scale_shape(rows, columns), fmt.scale_dtype)
        int8 = fmt.layout == "rows16x4"
        linear = kernels.linear_int8 if int8 else kernels.linear
        self.kernel = linear(rows, columns, fmt, residual=residual, scale=scale)
        self.quantize, self.columns = kernels.quantize_rows(columns, fmt) if int8 else None, columns

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        rows = x.shape[0]
        if self.quantize:
            words = Tensor.placeholder(quantized_shape(rows, self.columns), "int32")
            x = op.tensor_ir_op(self.quantize, "quantize_rows", [x], words)
        return call(self.kernel, "linear", [x, *self.stored(), *residual], (rows, self.width))

    def stored(self) -> tuple[Tensor, Tensor]:
        """Weight and scales as kernels take them; without scales, the weight stands in their place."""
        return self.weight, getattr(self, "scale", self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) * weight * scale."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, scale: float = 1.0) -> None:
        self.weight = nn.Parameter((config.hidden_size,), "float32")
        self.kernel = kernels.rms_norm(config.hidden_size, config.rms_norm_eps, scale)

    def forward(self, x: Tensor) -> Tensor:
        return call(self.kernel, "rms_norm", [x, self.weight], x.shape)


@dataclass(frozen=True)
class Batch:
    """What every layer of one call shares: its rows' positions, angles and slots, their sequences' page tables, and
    whether they are decode rows (one per sequence) and read blocks sparsely."""

    positions: Tensor
    cos_sin: Tensor
    slots: Tensor
    page_tables: Tensor
    decode: bool
    sparse: bool


class BlockSelection:
    """InfLLM-v2: blocks are scored by the means of their 16-token segments, and only the best are attended to."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, sparse: SparseConfig, kv_dtype: str) -> None:
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        local, both = sparse.window_size // sparse.block_size, (False, True)
        self.kv_heads, self.budget = config.num_kv_heads, sparse.topk + local
        self.means = {d: kernels.segment_means(*heads[1:], kv_dtype, batched=d) for d in both}
        self.score = {d: kernels.score_blocks(*heads, batched=d) for d in both}
        self.select = kernels.select_blocks(config.num_kv_heads, sparse.topk, local, sparse.init_blocks)
        self.attend = {d: kernels.attend_blocks(*heads, kv_dtype, self.budget, batched=d) for d in both}

    def update(self, keys: Tensor, means: Tensor, batch: Batch) -> Tensor:
        """Writes the means of segments that this call finishes; in both gears, so that shifting costs nothing."""
        args = [batch.slots, batch.page_tables, keys, means]
        return op.tensor_ir_inplace_op(self.means[batch.decode], "segment_means", args, 3, like(means))

    def blocks(self, q: Tensor, means: Tensor, batch: Batch) -> Tensor:
        """Block numbers each row reads, i32[n, kv_heads, budget], ascending, then -1."""
        n, pages = q.shape[0], batch.page_tables.shape[1]
        args = [q, means, batch.page_tables, batch.positions]
        scores = call(self.score[batch.decode], "score_blocks", args, (n, self.kv_heads, pages))
        selected = Tensor.placeholder((n, self.kv_heads, self.budget), "int32")
        return op.tensor_ir_op(self.select, "select_blocks", [scores, batch.positions], selected)


class Attention(nn.Module):
    """Grouped-query attention over the paged pools; writes its keys and values, then reads all up to its slot."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, fmt: WeightFormat, kv_dtype: str) -> None:
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_shape = (config.num_heads, config.head_dim)
        self.qkv = Linear(kernels, width + 2 * kv_width, config.hidden_size, fmt)
        self.out = Linear(kernels, config.hidden_size, width, fmt, scale=config.residual_scale, residual=True)
        self.append = {decode: kernels.rope_append(*heads, kv_dtype, batched=decode) for decode in (False, True)}
        self.attend = {False: kernels.attend_prefill(*heads, kv_dtype), True: kernels.attend_decode(*heads, kv_dtype)}
        self.selection = BlockSelection(kernels, config, config.sparse, kv_dtype) if config.sparse else None

    def forward(self, x: Tensor, residual: Tensor, pools: list[Tensor], batch: Batch, selected: list[Tensor]) -> Tensor:
        """`selected` collects the blocks that a sparse layer reads."""
        n, (keys, values, *means) = x.shape[0], pools
        args = [self.qkv(x), batch.cos_sin, batch.slots, batch.page_tables, keys, values]
        outputs = [like(keys), like(values), Tensor.placeholder((n, *self.q_shape), "float32")]
        keys, values, q = op.tensor_ir_inplace_op(self.append[batch.decode], "rope_append", args, [4, 5, -1], outputs)
        kernel, args = self.attend[batch.decode], [q, keys, values, batch.page_tables, batch.slots]
        if self.selection:
            means = self.selection.update(keys, means[0], batch)
            if batch.sparse:
                selected.append(self.selection.blocks(q, means, batch))
                kernel, args = self.selection.attend[batch.decode], [*args, selected[-1]]
        return self.out(call(kernel, "attend", args, (n, self.q_shape[0] * self.q_shape[1])), residual)


class MLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, fmt: WeightFormat) -> None:
        self.width = config.intermediate_size
        self.gate_up = Linear(kernels, 2 * self.width, config.hidden_size, fmt)
        self.swiglu = kernels.swiglu(self.width)
        self.down = Linear(kernels, config.hidden_size, self.width, fmt, scale=config.residual_scale, residual=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        gated = call(self.swiglu, "swiglu", [self.gate_up(x)], (x.shape[0], self.width))
        return self.down(gated, residual)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, fmt: WeightFormat, kv_dtype: str) -> None:
        self.input_norm = RMSNorm(kernels, config)
        self.attention = Attention(kernels, config, fmt, kv_dtype)
        self.mlp_norm = RMSNorm(kernels, config)
        self.mlp = MLP(kernels, config, fmt)

    def forward(self, x: Tensor, pools: list[Tensor], batch: Batch, selected: list[Tensor]) -> Tensor:
        x = self.attention(self.input_norm(x), x, pools, batch, selected)
        return self.mlp(self.mlp_norm(x), x)


class MiniCPM(nn.Module):
    """The whole model. `prefill` takes a chunk of one sequence, `decode` one row of each of several sequences."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, precision: Precision) -> None:
        self.config, self.kv_dtype = config, precision.kv_dtype
        table_format, fmt = (WeightFormat.of(s, precision.layout(s)) for s in (precision.embedding, precision.linear))
        self.embedding = Linear(kernels, config.vocab_size, config.hidden_size, table_format)
        self.layers = nn.ModuleList([Layer(kernels, config, fmt, precision.kv_dtype) for _ in range(config.num_layers)])
        self.norm = RMSNorm(kernels, config, config.logit_scale)
        if not config.tie_word_embeddings:
            self.head = Linear(kernels, config.vocab_size, config.hidden_size, table_format)
        self.embed = kernels.embed(config.vocab_size, config.hidden_size, table_format, scale=config.scale_emb)
        self.gather = kernels.gather_rows(config.hidden_size)
        self.angles = kernels.rope_angles(config.head_dim, config.rope_attention_scale)

    def prefill(self, token_ids, positions, slots, page_table, logit_rows, pools) -> Tensor:
        """One chunk of one sequence -> logits f32[m, padded vocab] of the rows that `logit_rows` names."""
        return self._prefill(token_ids, positions, slots, page_table, logit_rows, pools, sparse=False)

    def prefill_sparse(self, token_ids, positions, slots, page_table, logit_rows, pools) -> Tensor:
        """The same with every row reading its selected blocks only."""
        return self._prefill(token_ids, positions, slots, page_table, logit_rows, pools, sparse=True)

    def decode(self, token_ids, positions, slots, page_tables, pools) -> Tensor:
        """One row of each of b sequences -> logits f32[b, padded vocab]."""
        return self.logits(self.hidden(token_ids, positions, slots, page_tables, pools, decode=True)[0])

    def decode_sparse(self, token_ids, positions, slots, page_tables, pools) -> tuple[Tensor, ...]:
        """The same over selected blocks -> logits, and per layer the blocks, i32[b, kv_heads, budget]."""
        x, selected = self.hidden(token_ids, positions, slots, page_tables, pools, decode=True, sparse=True)
        return self.logits(x), *selected

    def _prefill(self, token_ids, positions, slots, page_table, logit_rows, pools, *, sparse: bool) -> Tensor:
        x, _ = self.hidden(token_ids, positions, slots, page_table, pools, decode=False, sparse=sparse)
        shape = (logit_rows.shape[0], self.config.hidden_size)
        return self.logits(call(self.gather, "gather_rows", [x, logit_rows], shape))

    def logits(self, x: Tensor) -> Tensor:
        head = self.embedding if self.config.tie_word_embeddings else self.head
        return head(self.norm(x))

    def hidden(
        self, token_ids, positions, slots, page_tables, pools, *, decode: bool, sparse: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The residual stream after the last layer, f32[n, hidden], and the blocks each sparse layer read."""
        n, selected = token_ids.shape[0], []
        inv_freq = Tensor.from_const(self.config.inv_freq.astype(np.float32))
        cos_sin = call(self.angles, "rope_angles", [positions, inv_freq], (n, self.config.head_dim))
        batch = Batch(positions, cos_sin, slots, page_tables, decode, sparse)
        x = call(self.embed, "embed", [token_ids, *self.embedding.stored()], (n, self.config.hidden_size))
        for i, layer in enumerate(self.layers):
            x = layer(x, pools[i :: len(self.layers)], batch, selected)
        return x, selected

    def call_specs(self) -> dict[str, Any]:
        """Argument shapes and dtypes of every function, as `export_tvm` takes them."""
        pools = [
            spec.Tensor(["num_pages", *shape], dtype)
            for shape, dtype in pool_layout(self.config, self.kv_dtype).values()
            for _ in range(self.config.num_layers)
        ]
        state = {"pools": pools, "$": {"param_mode": "packed", "effect_mode": "none"}}

        def rows(n: str, names: str) -> dict[str, Any]:
            return {name: spec.Tensor([n], "int32") for name in names.split()}

        prefill = rows("n", "token_ids positions slots") | {"page_table": spec.Tensor([1, "p"], "int32")}
        prefill = prefill | rows("m", "logit_rows") | state
        decode = rows("b", "token_ids positions slots") | {"page_tables": spec.Tensor(["b", "p"], "int32")} | state
        gears = ("", "_sparse") if self.config.sparse else ("",)
        return {name + gear: dict(s) for name, s in (("prefill", prefill), ("decode", decode)) for gear in gears}


def call(kernel: Any, name: str, args: list[Any], shape: Any) -> Tensor:
    """Call a PrimFunc that writes one new float32 tensor."""
    return op.tensor_ir_op(kernel, name, args, Tensor.placeholder(shape, "float32"))


def like(pool: Tensor) -> Tensor:
    return Tensor.placeholder(pool.shape, pool.dtype)
