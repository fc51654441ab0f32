"""MiniCPM4 and MiniCPM4.1 (and, with its scalings at 1, MiniCPM5) as a Relax module over paged
key/value pools.

    x = embed(ids) * scale_emb
    x = x + residual_scale * attention(rms_norm(x));  x = x + residual_scale * mlp(rms_norm(x))
    for every layer logits = head(rms_norm(x) * logit_scale)

All state is passed in: the pools are updated in place, one page table per sequence names a
sequence's pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op, spec

from minicpm_mlc.compile.config.model_config import LayerConfig, ModelConfig, SparseConfig
from minicpm_mlc.compile.parameters import Precision, pool_layout
from minicpm_mlc.ops.cpu.quantize_rows import quantized_shape
from minicpm_mlc.ops.cpu.segment_means import SEGMENTS
from minicpm_mlc.ops.formats.tree import MASK_WORDS, TAIL_PAGES
from minicpm_mlc.ops.formats.weights import LANES
from minicpm_mlc.ops.formats.weights.base import Scheme
from minicpm_mlc.targets.cpu import CpuKernels


class Weight(nn.Module):
    """A packed [rows, columns] matrix."""

    def __init__(self, rows: int, columns: int, fmt: Scheme) -> None:
        tensors = fmt.tensors(rows, columns)
        self.names = [tensor.name for tensor in tensors]
        for tensor in tensors:
            setattr(self, tensor.name, nn.Parameter(tensor.shape, tensor.dtype))

    def stored(self) -> list[Tensor]:
        """The stored tensors as kernels take them."""
        return [getattr(self, name) for name in self.names]


class Linear(Weight):
    """(residual or 0) + scale * x @ W^T."""

    def __init__(
        self,
        kernels: CpuKernels,
        rows: int,
        columns: int,
        fmt: Scheme,
        *,
        scale: float = 1.0,
        residual: bool = False,
    ) -> None:
        super().__init__(rows, columns, fmt)
        self.width = -(-rows // LANES) * LANES  # of the output, padded
        linear = kernels.linear_int8 if fmt.int8 else kernels.linear
        self.kernel = linear(rows, columns, fmt, residual=residual, scale=scale)
        self.quantize, self.columns = (
            kernels.quantize_rows(columns, fmt) if fmt.int8 else None,
            columns,
        )

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        """x float32, or quantised by the operator before."""
        if self.quantize and x.dtype == "float32":
            x = call_words(self.quantize, "quantize_rows", [x], x.shape[0], self.columns)
        return call(self.kernel, "linear", [x, *self.stored(), *residual], (x.shape[0], self.width))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, quantised where linears of the format `into` want it so."""

    def __init__(
        self, kernels: CpuKernels, config: LayerConfig, into: Scheme | None = None
    ) -> None:
        self.weight = nn.Parameter((config.hidden_size,), "float32")
        shape = (config.hidden_size, config.rms_norm_eps)
        self.int8 = into is not None and into.int8
        self.kernel = kernels.rms_norm_int8(*shape, into) if self.int8 else kernels.rms_norm(*shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.int8:
            return call_words(self.kernel, "rms_norm_int8", [x, self.weight], *x.shape)
        return call(self.kernel, "rms_norm", [x, self.weight], x.shape)


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


class BlockSelection:
    """InfLLM-v2: blocks are scored by the means of their 16-token segments, and only the best are
    attended to.
    """

    def __init__(
        self, kernels: CpuKernels, config: LayerConfig, sparse: SparseConfig, kv_dtype: str
    ) -> None:
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        local, both = sparse.window_size // sparse.block_size, (False, True)
        self.kv_heads, self.budget = config.num_kv_heads, sparse.topk + local
        self.means = {d: kernels.segment_means(*heads[1:], kv_dtype, batched=d) for d in both}
        self.score = {d: kernels.score_blocks(*heads, batched=d) for d in both}
        self.select = kernels.select_blocks(
            config.num_kv_heads, sparse.topk, local, sparse.init_blocks
        )
        self.attend = {
            d: kernels.attend_blocks(*heads, kv_dtype, self.budget, batched=d) for d in both
        }
        self.path_means, self.means_shape = (
            kernels.path_means(*heads[1:], kv_dtype),
            (TAIL_PAGES, heads[1], SEGMENTS, heads[2]),
        )
        self.score_tree = kernels.score_tree(*heads)
        self.attend_tree = kernels.attend_tree_blocks(*heads, kv_dtype, self.budget)

    def update(
        self, keys: Tensor, means: Tensor, slots: Tensor, page_tables: Tensor, decode: bool
    ) -> Tensor:
        """Writes the means of segments that these slots finish; in both gears, so that shifting
        costs nothing.
        """
        args = [slots, page_tables, keys, means]
        return op.tensor_ir_inplace_op(self.means[decode], "segment_means", args, 3, like(means))

    def blocks(self, q: Tensor, keys: Tensor, means: Tensor, batch: Batch) -> Tensor:
        """Block numbers each row reads, i32[n, kv_heads, budget], ascending, then -1."""
        n, pages = q.shape[0], batch.page_tables.shape[1]
        kernel, args = self.score[batch.decode], [q, means, batch.page_tables, batch.positions]
        if batch.tree:
            base, ancestors = batch.tree
            path_args = [keys, means, batch.page_tables, base, ancestors]
            path_means = call(self.path_means, "path_means", path_args, (n, *self.means_shape))
            kernel, args = (
                self.score_tree,
                [q, means, path_means, batch.page_tables, batch.positions, base],
            )
        scores = call(kernel, "score_blocks", args, (n, self.kv_heads, pages))
        selected = Tensor.placeholder((n, self.kv_heads, self.budget), "int32")
        return op.tensor_ir_op(self.select, "select_blocks", [scores, batch.positions], selected)


class Attention(nn.Module):
    """Grouped-query attention over the paged pools; writes its keys and values, then reads all up
    to its slot.
    """

    def __init__(
        self,
        kernels: CpuKernels,
        config: LayerConfig,
        fmt: Scheme,
        kv_dtype: str,
        inputs: int | None = None,
    ) -> None:
        """`inputs`: columns of its input, where they aren't the residual stream's."""
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_shape = (config.num_heads, config.head_dim)
        self.qkv = Linear(kernels, width + 2 * kv_width, inputs or config.hidden_size, fmt)
        self.out = Linear(
            kernels, config.hidden_size, width, fmt, scale=config.residual_scale, residual=True
        )
        self.append = {
            decode: kernels.rope_append(*heads, kv_dtype, batched=decode)
            for decode in (False, True)
        }
        self.attend = {
            False: kernels.attend_prefill(*heads, kv_dtype),
            True: kernels.attend_decode(*heads, kv_dtype),
        }
        self.attend_tree, self.move = (
            kernels.attend_tree(*heads, kv_dtype),
            kernels.move_rows(*heads[1:], kv_dtype),
        )
        self.selection = (
            BlockSelection(kernels, config, config.sparse, kv_dtype) if config.sparse else None
        )

    def forward(
        self, x: Tensor, residual: Tensor, pools: list[Tensor], batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        """`selected` collects the blocks that a sparse layer reads."""
        n, (keys, values, *means) = x.shape[0], pools
        args = [self.qkv(x), batch.cos_sin, batch.slots, batch.page_tables, keys, values]
        outputs = [like(keys), like(values), Tensor.placeholder((n, *self.q_shape), "float32")]
        keys, values, q = op.tensor_ir_inplace_op(
            self.append[batch.decode], "rope_append", args, [4, 5, -1], outputs
        )
        kernel, place = self.attend[batch.decode], (batch.slots,)
        if batch.tree:
            kernel, place = self.attend_tree, batch.tree
        args = [q, keys, values, batch.page_tables, *place]
        if self.selection:
            if not batch.tree:
                means = [
                    self.selection.update(
                        keys, means[0], batch.slots, batch.page_tables, batch.decode
                    )
                ]
            if batch.sparse:
                selected.append(self.selection.blocks(q, keys, means[0], batch))
                kernel = (
                    self.selection.attend_tree
                    if batch.tree
                    else self.selection.attend[batch.decode]
                )
                args = [*args, selected[-1]]
        return self.out(
            call(kernel, "attend", args, (n, self.q_shape[0] * self.q_shape[1])), residual
        )

    def commit(
        self, sources: Tensor, slots: Tensor, page_table: Tensor, pools: list[Tensor]
    ) -> None:
        """Moves a token tree's accepted rows to their slots, and writes the means of the segments
        they finish.
        """
        keys, values, *means = pools
        args = [sources, slots, page_table, keys, values]
        keys, _ = op.tensor_ir_inplace_op(
            self.move, "move_rows", args, [3, 4], [like(keys), like(values)]
        )
        if self.selection:
            self.selection.update(keys, means[0], slots, page_table, decode=False)


class MLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, kernels: CpuKernels, config: LayerConfig, fmt: Scheme) -> None:
        self.width, self.int8 = config.intermediate_size, fmt.int8
        shape = (2 * self.width, config.hidden_size, fmt)
        if fmt.int8:
            self.gate_up: Weight = Weight(*shape)
            self.swiglu = kernels.linear_swiglu_int8(self.width, config.hidden_size, fmt)
        else:
            self.gate_up, self.swiglu = Linear(kernels, *shape), kernels.swiglu(self.width)
        self.down = Linear(
            kernels, config.hidden_size, self.width, fmt, scale=config.residual_scale, residual=True
        )

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x as linears of the format want it: float32, or quantised by the norm before."""
        shape = (x.shape[0], self.width)
        if self.int8:
            args = [x, *self.gate_up.stored()]
            return self.down(call_words(self.swiglu, "linear_swiglu_int8", args, *shape), residual)
        return self.down(call(self.swiglu, "swiglu", [self.gate_up(x)], shape), residual)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(
        self, kernels: CpuKernels, config: LayerConfig, fmt: Scheme, kv_dtype: str
    ) -> None:
        self.input_norm = RMSNorm(kernels, config, fmt)
        self.attention = Attention(kernels, config, fmt, kv_dtype)
        self.mlp_norm = RMSNorm(kernels, config, fmt)
        self.mlp = MLP(kernels, config, fmt)

    def forward(
        self, x: Tensor, pools: list[Tensor], batch: Batch, selected: list[Tensor]
    ) -> Tensor:
        x = self.attention(self.input_norm(x), x, pools, batch, selected)
        return self.mlp(self.mlp_norm(x), x)


class MiniCPM(nn.Module):
    """The whole model. `prefill` takes a chunk of one sequence, `decode` one row of each of several
    sequences, `verify` a token tree behind one sequence, of which `commit` keeps a path."""

    def __init__(self, kernels: CpuKernels, config: ModelConfig, precision: Precision) -> None:
        self.config, self.kv_dtype = config, precision.kv_dtype
        table_format, fmt = precision.tables, precision.matrices
        table = (kernels, config.vocab_size, config.hidden_size, table_format)
        self.embedding = Linear(*table, scale=config.logit_scale)  # the head too, if they are tied
        layers: list[Any] = [
            Layer(kernels, config, fmt, precision.kv_dtype) for _ in range(config.num_layers)
        ]
        self.layers: Any = nn.ModuleList(layers)
        self.norm = RMSNorm(kernels, config)
        if not config.tie_word_embeddings:
            self.head = Linear(*table, scale=config.logit_scale)
        self.embed = kernels.embed(
            config.vocab_size, config.hidden_size, table_format, scale=config.scale_emb
        )
        self.gather = kernels.gather_rows(config.hidden_size)
        self.angles = kernels.rope_angles(config.head_dim, config.rope_attention_scale)

    def prefill(self, token_ids, positions, slots, page_table, logit_rows, pools) -> Any:
        """One chunk of one sequence -> logits f32[m, padded vocab] of the rows that `logit_rows`
        names.
        """
        return self._prefill(
            token_ids, positions, slots, page_table, logit_rows, pools, sparse=False
        )

    def prefill_sparse(self, token_ids, positions, slots, page_table, logit_rows, pools) -> Any:
        """The same with every row reading its selected blocks only."""
        return self._prefill(
            token_ids, positions, slots, page_table, logit_rows, pools, sparse=True
        )

    def decode(self, token_ids, positions, slots, page_tables, pools) -> Any:
        """One row of each of b sequences -> logits f32[b, padded vocab]."""
        return self._rows(token_ids, self.batch(positions, slots, page_tables, decode=True), pools)

    def decode_sparse(self, token_ids, positions, slots, page_tables, pools) -> Any:
        """The same over selected blocks -> logits, and per layer the blocks, i32[b, kv_heads,
        budget].
        """
        return self._rows(
            token_ids, self.batch(positions, slots, page_tables, decode=True, sparse=True), pools
        )

    def verify(self, token_ids, positions, slots, base, page_table, ancestors, pools) -> Any:
        """n nodes of a token tree that begins at slot `base` -> logits f32[n, padded vocab]."""
        return self._rows(
            token_ids, self.batch(positions, slots, page_table, tree=(base, ancestors)), pools
        )

    def verify_sparse(self, token_ids, positions, slots, base, page_table, ancestors, pools) -> Any:
        """The same over selected blocks -> logits, and per layer the blocks, i32[n, kv_heads,
        budget].
        """
        batch = self.batch(positions, slots, page_table, sparse=True, tree=(base, ancestors))
        return self._rows(token_ids, batch, pools)

    def commit(self, sources, slots, page_table, pools) -> Tensor:
        """Keeps the rows at `sources` of a token tree by moving them to `slots`, behind the
        sequence -> slots.
        """
        for i, layer in enumerate(self.layers):
            layer.attention.commit(sources, slots, page_table, pools[i :: len(self.layers)])
        return slots

    def _prefill(
        self, token_ids, positions, slots, page_table, logit_rows, pools, *, sparse: bool
    ) -> Any:
        states, _ = self.hidden(
            token_ids, self.batch(positions, slots, page_table, sparse=sparse), pools
        )
        shape = (logit_rows.shape[0], self.config.hidden_size)
        return self.outputs(
            call(self.gather, "gather_rows", [states[-1], logit_rows], shape), states, []
        )

    def _rows(self, token_ids, batch: Batch, pools) -> Any:
        states, selected = self.hidden(token_ids, batch, pools)
        return self.outputs(states[-1], states, selected)

    def outputs(self, last: Tensor, states: list[Tensor], selected: list[Tensor]) -> Any:
        """What a call returns: logits of the `last` states, then what else there is."""
        out = (self.logits(last), *self.features(states), *selected)
        return out if len(out) > 1 else out[0]

    def logits(self, x: Tensor) -> Tensor:
        return self.to_vocabulary(self.norm(x))

    def to_vocabulary(self, x: Tensor) -> Tensor:
        """Normed hidden states -> logits."""
        return (self.embedding if self.config.tie_word_embeddings else self.head)(x)

    def features(self, states: list[Tensor]) -> list[Tensor]:
        """What a draft head reads of the residual stream before each layer and after the last;
        nothing without one.
        """
        return []

    def batch(
        self, positions, slots, page_tables, *, decode=False, sparse=False, tree=None
    ) -> Batch:
        inv_freq = Tensor.from_const(self.config.inv_freq.astype(np.float32))
        cos_sin = call(
            self.angles,
            "rope_angles",
            [positions, inv_freq],
            (positions.shape[0], self.config.head_dim),
        )
        return Batch(positions, cos_sin, slots, page_tables, decode, sparse, tree)

    def embedded(self, token_ids: Tensor) -> Tensor:
        """Embeddings f32[n, hidden], scaled."""
        return call(
            self.embed,
            "embed",
            [token_ids, *self.embedding.stored()],
            (token_ids.shape[0], self.config.hidden_size),
        )

    def hidden(
        self, token_ids: Tensor, batch: Batch, pools: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The residual stream before each layer and after the last, f32[n, hidden], and the blocks
        each layer read.
        """
        states, selected = [self.embedded(token_ids)], []
        for i, layer in enumerate(self.layers):
            states.append(layer(states[-1], pools[i :: len(self.layers)], batch, selected))
        return states, selected

    def call_specs(self) -> dict[str, Any]:
        """Argument shapes and dtypes of every function, as `export_tvm` takes them."""
        pools = pool_specs(self.config, self.kv_dtype)
        state = pools | PARAMS
        one_table = {"page_table": spec.Tensor([1, "p"], "int32")}
        prefill = ids("n", "token_ids positions slots") | one_table | ids("m", "logit_rows") | state
        decode = (
            ids("b", "token_ids positions slots")
            | {"page_tables": spec.Tensor(["b", "p"], "int32")}
            | state
        )
        verify = ids("t", "token_ids positions slots") | tree_specs("t") | state
        kinds = {"prefill": prefill, "decode": decode, "verify": verify}
        gears = ("", "_sparse") if self.config.sparse else ("",)
        specs = {
            kind + gear: dict(arguments) for kind, arguments in kinds.items() for gear in gears
        }
        return specs | {"commit": ids("t", "sources slots") | one_table | pools | NO_PARAMS}


PARAMS: dict[str, Any] = {"$": {"param_mode": "packed", "effect_mode": "none"}}
NO_PARAMS: dict[str, Any] = {"$": {"param_mode": "none", "effect_mode": "none"}}


def ids(n: str, names: str) -> dict[str, Any]:
    """Arguments that are rows of int32."""
    return {name: spec.Tensor([n], "int32") for name in names.split()}


def tree_specs(n: str) -> dict[str, Any]:
    """Arguments that place n nodes of a token tree."""
    tables = {"base": spec.Tensor([1], "int32"), "page_table": spec.Tensor([1, "p"], "int32")}
    return tables | {"ancestors": spec.Tensor([n, MASK_WORDS], "int32")}


def pool_specs(config: LayerConfig, kv_dtype: str) -> dict[str, Any]:
    """The argument that is all layers' pools."""
    kinds = pool_layout(config, kv_dtype).values()
    return {
        "pools": [
            spec.Tensor(["num_pages", *shape], dtype)
            for shape, dtype in kinds
            for _ in range(config.num_layers)
        ]
    }


def call(kernel: Any, name: str, args: list[Any], shape: Any) -> Tensor:
    """Call a PrimFunc that writes one new float32 tensor."""
    return op.tensor_ir_op(kernel, name, args, Tensor.placeholder(shape, "float32"))


def call_words(kernel: Any, name: str, args: list[Any], rows: Any, columns: Any) -> Tensor:
    """Call a PrimFunc that writes [rows, columns] quantised as linear_int8 takes them."""
    return op.tensor_ir_op(
        kernel, name, args, Tensor.placeholder(quantized_shape(rows, columns), "int32")
    )


def like(pool: Tensor) -> Tensor:
    return Tensor.placeholder(pool.shape, pool.dtype)
