"""How long sequences and how large prefills a bundle is compiled for."""

from __future__ import annotations

from minicpm_mlc.base.choices import COMPILED_ATTENTION
from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.base.text import any_of, human_bytes
from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.compile.config.model_config import ModelConfig, SparseConfig
from minicpm_mlc.compile.model.registry import sparse_settings

PREFILL_CHUNK = 512  # tokens: enough to reach the kernels' peak, small enough for the caches
# of a chunk's block scores; with 16 threads' logits of windows beside them, under 64 MiB
SCORE_BYTES = 48 << 20


def choose_context(config: ModelConfig, asked: int | None) -> int:
    """The longest context in tokens, by default the model's own. Raises CompileError."""
    return _positive("--context", asked, config.max_position_embeddings)


def choose_sparse(config: ModelConfig, attention: str, longest: int) -> SparseConfig | None:
    """What to compile in for up to `longest` tokens: "auto" is what the model was trained for,
    "dense" nothing. Raises CompileError.
    """
    if attention not in COMPILED_ATTENTION:
        raise CompileError(
            f"--attention {attention}: choose {any_of(COMPILED_ATTENTION)}; a chat can force "
            "sparse attention"
        )
    sparse = sparse_settings(config) if attention == "auto" else None
    if sparse and (sparse.block_size != PAGE_SIZE or sparse.use_nope):
        seen = f"block_size {sparse.block_size}, use_nope {sparse.use_nope}"
        raise CompileError(
            f"sparse_config has {seen}; 64 and false are implemented; compile with --attention "
            "dense"
        )
    return sparse and sparse.within(longest)


def choose_prefill_chunk(config: ModelConfig, longest: int, asked: int | None) -> int:
    """Rows of a prefill call. Sparse ones score every block of `longest` tokens for each KV head,
    in float32. Raises CompileError where the scores would take too much memory.
    """
    if config.sparse is None:
        return _positive("--prefill-chunk", asked, PREFILL_CHUNK)
    row_bytes = 4 * config.num_kv_heads * -(-longest // PAGE_SIZE)
    largest = max(SCORE_BYTES // row_bytes, 1)
    chunk = _positive("--prefill-chunk", asked, min(PREFILL_CHUNK, largest))
    if chunk > largest:
        size = human_bytes(chunk * row_bytes)
        raise CompileError(
            f"--prefill-chunk {chunk}: block scores of so many rows take {size} at {longest} "
            "tokens of context; "
            f"give --prefill-chunk {largest} or less"
        )
    return chunk


def _positive(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise CompileError(f"{option} {value}: it must be at least 1")
    return default if value is None else value
