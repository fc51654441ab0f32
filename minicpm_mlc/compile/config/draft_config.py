"""DraftConfig: the shape of an EAGLE head, read from its own config.json and checked against the
base model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minicpm_mlc.base.errors import ConfigError
from minicpm_mlc.bundle.manifest import MAX_DRAFT_TOP_K
from minicpm_mlc.compile.config.keys import HARMLESS, Keys, check_fixed, read_rope
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.config.rope_lists import longer_list, same_factors

EAGLE2, EAGLE3 = "eagle2", "eagle3"
UNUSED = frozenset(  # what the base decides, or the tensors
    "architectures model_type bos_token_id eos_token_id pad_token_id tie_word_embeddings "
    "sparse_config bias".split()
)
HEAD = "lm_head.weight"
PROJECTIONS = {"q_proj": 0, "k_proj": 1, "v_proj": 1}  # whether it projects to keys and values


@dataclass(frozen=True)
class DraftConfig:
    """One decoder layer that reads the base's features and guesses its next tokens.

    EAGLE-2 reads the base's last norm and shares its head, or has a copy of some of its rows
    (`own_head`). EAGLE-3 reads the residual stream that enters three of its layers
    (`feature_layers`) and has a trained head. `vocab_size` is that of its head; `bias` is fc's.
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

    @classmethod
    def like(cls, base: ModelConfig, kind: str) -> DraftConfig:
        """The head that was published for a base of this shape, or would be."""
        eagle3, layers = kind == EAGLE3, base.num_layers
        return cls(
            kind,
            base.hidden_size,
            base.intermediate_size,
            base.num_heads,
            base.num_kv_heads,
            base.head_dim,
            base.rms_norm_eps,
            residual_scale=1.0 if eagle3 else _residual_scale(base),
            vocab_size=base.vocab_size,
            own_head=eagle3,
            feature_layers=default_layers(layers) if eagle3 else (),
        )

    @property
    def top_k(self) -> int:
        """Tokens that it proposes after each row."""
        return min(MAX_DRAFT_TOP_K, self.vocab_size)

    @property
    def feature_width(self) -> int:
        """Columns of what the base hands to it."""
        return self.hidden_size * (len(self.feature_layers) or 1)

    @property
    def parameters(self) -> int:
        """How many numbers its checkpoint holds."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that it reads from its checkpoint, by its published name; linears are [out,
        in].
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        eagle3 = self.kind == EAGLE3
        layer, inputs = ("midlayer", 2 * hidden) if eagle3 else ("layers.0", hidden)
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norms = ("midlayer.hidden_norm", "norm") if eagle3 else ("input_norm1", "input_norm2")
        vectors = [*norms, f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (hidden,) for name in vectors}
        shapes["fc.weight"] = (hidden, 3 * hidden if eagle3 else 2 * hidden)
        shapes |= {
            f"{layer}.self_attn.{name}.weight": ((queries, keys)[kv], inputs)
            for name, kv in PROJECTIONS.items()
        }
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        if self.bias:
            shapes["fc.bias"] = (hidden,)
        return shapes | ({HEAD: (self.vocab_size, hidden)} if eagle3 else {})


def default_layers(num_layers: int) -> tuple[int, ...]:
    """The layers whose inputs EAGLE-3 reads, as its authors chose them: low, middle and high."""
    return (2, num_layers // 2, num_layers - 3)


def read_draft_config(
    raw: object, kind: str, bias: bool, base: ModelConfig, where: str
) -> DraftConfig:
    """From a parsed config.json; `kind` and `bias` follow from the tensors beside it.

    Raises ConfigError naming the key that asks for other maths, or that doesn't fit the base.
    """
    keys = Keys(raw, where)
    check_fixed(keys)
    _check_rope(keys, base)
    heads = keys.integer("num_attention_heads")
    same = {
        "hidden_size": base.hidden_size,
        "vocab_size": base.vocab_size,
        "target_hidden_size": base.hidden_size,
    }
    for key, expected in same.items():
        _same(keys, key, expected, base, required=key != "target_hidden_size")
    keys.left["head_dim"] = keys.left.get("head_dim") or base.hidden_size // heads
    _same(keys, "head_dim", base.head_dim, base)
    if keys.integer("num_hidden_layers", 1) != 1:
        raise ConfigError(
            f"{where}: num_hidden_layers is not 1; draft heads of one layer are implemented"
        )
    for key in ("scale_emb", "scale_depth", "dim_model_base") if kind == EAGLE2 else ():
        _same(keys, key, getattr(base, key), base)
    config = DraftConfig(
        kind=kind,
        hidden_size=base.hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=keys.integer("num_key_value_heads", heads),
        head_dim=base.head_dim,
        rms_norm_eps=keys.positive("rms_norm_eps", 1e-6),
        residual_scale=_residual_scale(base) if kind == EAGLE2 else 1.0,
        vocab_size=keys.integer("draft_vocab_size", base.vocab_size, high=base.vocab_size),
        own_head=kind == EAGLE3,
        feature_layers=_feature_layers(keys, base) if kind == EAGLE3 else (),
        bias=bias,
    )
    keys.finish(HARMLESS | UNUSED)
    return config


def _residual_scale(base: ModelConfig) -> float:
    """EAGLE-2's layer counts as one more of the base's: scale_depth / sqrt(layers + 1)."""
    return base.scale_depth / math.sqrt(base.num_layers + 1) if base.scale_depth else 1.0


def _same(keys: Keys, key: str, expected: object, base: ModelConfig, required: bool = True) -> None:
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
        return _same(keys, "rope_theta", base.rope_theta, base, required=False)
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


def _feature_layers(keys: Keys, base: ModelConfig) -> tuple[int, ...]:
    """The three layers whose inputs the head reads. `eagle_config` names the layers before them, by
    their outputs.
    """
    nested = Keys(keys.take("eagle_config", None) or {}, f"{keys.where}: eagle_config")
    if nested.take("use_aux_hidden_state", True) is not True:
        raise nested.refuse("use_aux_hidden_state", False, "true")
    key = "eagle_aux_hidden_state_layer_ids"
    found, after = keys.take(key, None), nested.take(key, None)
    nested.finish()
    layers = found if after is None else [i + 1 if type(i) is int else i for i in after]
    if layers is None:
        layers = list(default_layers(base.num_layers))
    fits = (
        isinstance(layers, list)
        and len(layers) == 3
        and all(type(i) is int and 0 <= i <= base.num_layers for i in layers)
    )
    if not fits:
        raise keys.refuse(key, layers, f"three layers of {base.name}'s {base.num_layers}")
    return tuple(layers)
