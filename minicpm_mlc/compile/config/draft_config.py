"""DraftConfig: the shape of an EAGLE head, read from its own config.json and checked against the
base model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.bundle.manifest_schema import MAX_DRAFT_TOP_K
from minicpm_mlc.compile.config.keys import Keys, check_fixed
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.rope import read_rope
from minicpm_mlc.compile.config.rope_lists import longer_list, same_factors

UNUSED = frozenset(  # what the base decides, or the tensors
    "architectures model_type bos_token_id eos_token_id pad_token_id tie_word_embeddings "
    "sparse_config bias".split()
)


@dataclass(frozen=True)
class DraftConfig:
    """One decoder layer that reads the base's features and guesses its next tokens.

    `kind` names the file in compile/model that builds it. It shares the base's head, or has one of
    its own (`own_head`) over `vocab_size` tokens, and reads the base's last norm, or the residual
    stream that enters `feature_layers`. `bias` is fc's.
    """

    kind: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    residual_scale: float
    vocab_size: int
    own_head: bool
    feature_layers: tuple[int, ...] = ()
    bias: bool = False
    num_layers: int = 1
    sparse: None = None
    scale_emb: float = 1.0
    logit_scale: float = 1.0

    @property
    def top_k(self) -> int:
        """Tokens that it proposes after each row."""
        return min(MAX_DRAFT_TOP_K, self.vocab_size)

    @property
    def feature_width(self) -> int:
        """Columns of what the base hands to it."""
        return self.hidden_size * (len(self.feature_layers) or 1)


def base_fields(base: ModelConfig) -> dict[str, Any]:
    """The fields of DraftConfig that a head of the base's own shape shares with it."""
    shared = "hidden_size intermediate_size num_heads num_kv_heads head_dim rms_norm_eps vocab_size"
    return {name: getattr(base, name) for name in shared.split()}


def draft_fields(keys: Keys, base: ModelConfig) -> dict[str, Any]:
    """The fields of DraftConfig that heads of every kind have.

    Raises ConfigError naming the key that asks for other maths, or that doesn't fit the base.
    """
    check_fixed(keys)
    _check_rope(keys, base)
    heads = keys.integer("num_attention_heads")
    take_same(keys, "hidden_size", base.hidden_size, base)
    take_same(keys, "vocab_size", base.vocab_size, base)
    take_same(keys, "target_hidden_size", base.hidden_size, base, required=False)
    keys.left["head_dim"] = keys.left.get("head_dim") or base.hidden_size // heads
    take_same(keys, "head_dim", base.head_dim, base)
    if keys.integer("num_hidden_layers", 1) != 1:
        raise ConfigError(
            f"{keys.where}: num_hidden_layers is not 1; draft heads of one layer are implemented"
        )
    return {
        "hidden_size": base.hidden_size,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": base.head_dim,
        "rms_norm_eps": keys.positive("rms_norm_eps", 1e-6),
        "vocab_size": keys.integer("draft_vocab_size", base.vocab_size, high=base.vocab_size),
    }


def take_same(
    keys: Keys, key: str, expected: object, base: ModelConfig, required: bool = True
) -> None:
    """Takes a key that must be as the base has it; unless `required` it may be absent. Raises
    ConfigError.
    """
    value = keys.take(key) if required else keys.take(key, expected)
    if value != expected:
        raise keys.refuse(
            key, value, f"{expected}, as {base.name} has; a draft head belongs to one model"
        )


def _check_rope(keys: Keys, base: ModelConfig) -> None:
    """The head turns its keys as the base does. A config that says nothing of it says that too."""
    if not (keys.left.get("rope_scaling") or keys.left.get("rope_parameters")):
        for key in (
            "rope_scaling",
            "rope_parameters",
            "max_position_embeddings",
            "original_max_position_embeddings",
        ):
            keys.take(key, None)
        return take_same(keys, "rope_theta", base.rope_theta, base, required=False)
    rope = read_rope(keys, base.head_dim)
    longer = longer_list(base.rope_factors)  # a head is published with its base's native list
    same = same_factors(rope["rope_factors"], base.rope_factors) or (
        longer and longer == longer_list(rope["rope_factors"])
    )
    if (
        not same
        or rope["rope_theta"] != base.rope_theta
        or rope["rope_attention_scale"] != base.rope_attention_scale
    ):
        raise ConfigError(
            f"{keys.where}: rope_scaling is not {base.name}'s; a draft head belongs to one model"
        )
