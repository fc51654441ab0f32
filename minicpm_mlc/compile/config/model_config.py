"""ModelConfig: everything about a model that decides its logits, and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.compile.config.keys import Keys


@dataclass(frozen=True)
class SparseConfig:
    """InfLLM-v2's settings, in tokens except `init_blocks` and `topk`, which count blocks. Dense
    runs ignore them.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    init_blocks: int = 1
    block_size: int = 64
    window_size: int = 2048
    topk: int = 64
    use_nope: bool = False
    dense_len: int = 8192

    @classmethod
    def from_dict(cls, raw: object) -> SparseConfig:
        """From config.json's `sparse_config`; absent keys have the published defaults. Raises
        ConfigError.
        """
        keys = Keys(raw, "sparse_config")
        config = cls(
            kernel_size=keys.integer("kernel_size", cls.kernel_size),
            kernel_stride=keys.integer("kernel_stride", cls.kernel_stride),
            init_blocks=keys.integer("init_blocks", cls.init_blocks, low=0),
            block_size=keys.integer("block_size", cls.block_size),
            window_size=keys.integer("window_size", cls.window_size, low=0),
            topk=keys.integer("topk", cls.topk),
            use_nope=keys.boolean("use_nope", cls.use_nope),
            dense_len=keys.integer("dense_len", cls.dense_len, low=-1),
        )
        keys.finish()
        config._check()
        return config

    def _check(self) -> None:
        if (self.kernel_size, self.block_size) != (2 * self.kernel_stride, 4 * self.kernel_stride):
            raise ConfigError(
                f"sparse_config: kernel_size {self.kernel_size}, kernel_stride "
                f"{self.kernel_stride} and block_size "
                f"{self.block_size} must be in the ratio 2 : 1 : 4, as the published 32, 16 and "
                "64 are"
            )
        if self.window_size % self.block_size:
            raise ConfigError(
                f"sparse_config: window_size {self.window_size} is not a multiple of block_size "
                f"{self.block_size}"
            )
        if self.topk <= self.init_blocks:
            raise ConfigError(
                f"sparse_config: topk {self.topk} must exceed init_blocks {self.init_blocks}; a "
                "query's own block needs a place"
            )

    def within(self, tokens: int) -> SparseConfig:
        """Settings that choose the same in sequences of up to `tokens`, with a budget of no more
        blocks than those have.
        """
        blocks = -(-tokens // self.block_size)
        local = min(self.window_size // self.block_size, blocks - 1)
        topk = min(self.topk, blocks - local)
        return replace(
            self,
            window_size=local * self.block_size,
            topk=topk,
            init_blocks=min(self.init_blocks, topk - 1),
        )

    def num_windows(self, tokens: int) -> int:
        """Complete windows of `kernel_size` keys, one every `kernel_stride`, in `tokens` keys (n1
        of InfLLM-v2).
        """
        return _windows(tokens, self.kernel_size, self.kernel_stride)

    def num_coarse_windows(self, tokens: int) -> int:
        """The same for windows four times as long and as far apart (n2), which only normalise the
        scores.
        """
        return _windows(tokens, 4 * self.kernel_size, 4 * self.kernel_stride)


def _windows(tokens: int, size: int, stride: int) -> int:
    return 0 if tokens < size else (tokens - size) // stride + 1


class LayerConfig(Protocol):
    """What decides one decoder layer, of a model or of a draft head."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def residual_scale(self) -> float: ...
    @property
    def sparse(self) -> SparseConfig | None: ...
    @property
    def num_layers(self) -> int: ...


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of any model: `model_type` names the file in compile/model that builds it.

    The muP scalings are 1 unless the model has them, `sparse` is None unless it has InfLLM-v2;
    `lightning_layers` keep a state of fixed size in place of keys and values.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...]
    rope_attention_scale: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None  # None: no token begins a text
    eos_token_ids: tuple[int, ...]
    scale_emb: float = 1.0
    scale_depth: float | None = None
    dim_model_base: float | None = None
    sparse: SparseConfig | None = None
    lightning_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "num_attention_heads": (self.num_heads, self.num_kv_heads, "num_key_value_heads"),
            "hidden_size": (self.hidden_size, 32, "the 4-bit group"),
            "intermediate_size": (self.intermediate_size, 32, "the 4-bit group"),
            "num_attention_heads * head_dim": (
                self.num_heads * self.head_dim,
                32,
                "the 4-bit group",
            ),
            "head_dim": (self.head_dim, 2, "a rotary pair"),
        }
        for key, (value, divisor, reason) in checks.items():
            if value % divisor:
                raise ConfigError(
                    f"config.json: {key} is {value}, expected a multiple of {divisor} ({reason})"
                )
        for key, token in [
            ("bos_token_id", self.bos_token_id),
            *(("eos_token_id", i) for i in self.eos_token_ids),
        ]:
            if token is not None and token >= self.vocab_size:
                raise ConfigError(
                    f"config.json: {key} {token} is outside the vocabulary of {self.vocab_size}"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields for the manifest; `from_manifest` gives back an equal config."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_manifest(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ConfigError for missing or unknown fields."""
        values = {"lightning_layers": [], **values}  # bundles made before the field lack it
        wrong = {f.name for f in fields(cls)} ^ set(values)
        if wrong:
            raise ConfigError(
                f"manifest.json: model has missing or unknown fields: {', '.join(sorted(wrong))}"
            )
        sparse = values["sparse"]
        tuples = ("rope_factors", "eos_token_ids", "lightning_layers")
        lists = {key: tuple(values[key]) for key in tuples}
        return cls(
            **{**values, **lists, "sparse": None if sparse is None else SparseConfig(**sparse)}
        )

    @property
    def residual_scale(self) -> float:
        """Multiplies each sub-layer's output before it is added to the residual: scale_depth /
        sqrt(layers).
        """
        return self.scale_depth / math.sqrt(self.num_layers) if self.scale_depth else 1.0

    @property
    def logit_scale(self) -> float:
        """Multiplies the last norm's output before the head, tied or not: dim_model_base /
        hidden_size.
        """
        return self.dim_model_base / self.hidden_size if self.dim_model_base else 1.0

    @property
    def inv_freq(self) -> np.ndarray:
        """float32 [head_dim / 2]: 1 / (factor * theta^(2i / head_dim)), computed in float64."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        return (1.0 / (np.asarray(self.rope_factors) * self.rope_theta**exponents)).astype(
            np.float32
        )

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that one token adds over all layers that have some."""
        layers = self.num_layers - len(self.lightning_layers)
        return 2 * layers * self.num_kv_heads * self.head_dim * dtype_bytes
