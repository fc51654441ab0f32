"""The tensors of a GGUF file by their published names: rows as float32, or in a bundle's scheme as
the file has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.blocks import Floats
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile
from minicpm_mlc.compile.checkpoint.gguf.container import Tensor as FileTensor
from minicpm_mlc.compile.checkpoint.gguf.rope import FREQUENCIES, LONG, SHORT
from minicpm_mlc.compile.checkpoint.tensor import Tensor
from minicpm_mlc.compile.checkpoint.weights import Weights
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.compile.model.registry import published_tensors
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme

TOP = {EMBEDDING: "token_embd", HEAD: "output", "model.norm.weight": "output_norm"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROTARY = ("q_proj.weight", "k_proj.weight")
PERMUTED_TYPES = ("llama", "minicpm4")  # their rotary pairs lie side by side in the file
BESIDE = {f"{name}.weight" for name in (FREQUENCIES, LONG, SHORT)}


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A tensor of blocks. `order` is the stored row of each published one; None: the same."""

    file: GgufFile
    place: FileTensor
    order: np.ndarray | None

    @property
    def quantised(self) -> bool:
        return not isinstance(self.place.block, Floats)

    @property
    def form(self) -> str:
        return self.place.block.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    @property
    def nbytes(self) -> int:
        return self.place.nbytes

    @property
    def holders(self) -> tuple[str, ...]:
        return self.place.block.carriers

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        if len(self.shape) == 1:
            return self._numbers(self.file.raw(self.place.name))[0][start:stop]
        return self._numbers(self._raw(start, stop))

    def carried(self, scheme: Scheme, start: int, stop: int) -> Parts | None:
        block = self.place.block
        if scheme.name not in block.carriers or scheme.group != block.group:
            return None
        raw = self._raw(start, stop)
        parts = block.carried(raw.reshape(-1, block.nbytes), scheme.name)
        if parts is None or not all(np.isfinite(parts[key]).all() for key in parts):
            return None
        return {key: part.reshape(len(raw), -1) for key, part in parts.items()}

    def _raw(self, start: int, stop: int | None) -> np.ndarray:
        raw = self.file.raw(self.place.name)
        return raw[start:stop] if self.order is None else raw[self.order[start:stop]]

    def _numbers(self, raw: np.ndarray) -> np.ndarray:
        numbers = self.place.block.numbers(raw.reshape(-1, self.place.block.nbytes))
        return numbers.reshape(len(raw), self.shape[-1])


class GgufWeights(Weights):
    """A file's tensors. Raises CheckpointError unless they are exactly the config's."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        shapes = published_tensors(config)
        stored = {name: _stored_name(name) for name in shapes}
        for name, place in stored.items():
            _check(file, place, shapes[name])
        known = {*stored.values(), *BESIDE}
        if strays := [name for name in file.tensors if name not in known]:
            raise file.error(f"tensor {strays[0]} is not part of the model")
        super().__init__(
            {
                name: GgufTensor(file, file.tensors[place], _order(config, name, shapes[name]))
                for name, place in stored.items()
            }
        )


def _check(file: GgufFile, name: str, shape: tuple[int, ...]) -> None:
    if name not in file.tensors:
        raise file.error(f"tensor {name} is missing; download it again")
    found = file.tensors[name].shape
    if found != shape:
        raise file.error(
            f"tensor {name} has shape {list(found)}, expected {list(shape)} from the metadata"
        )


def _stored_name(name: str) -> str:
    if name in TOP:
        return f"{TOP[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{LAYER[part.removesuffix('.weight')]}.weight"


def _order(config: ModelConfig, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored row of each published one: a pair's rows lie side by side in the file, half a
    head apart as published.
    """
    if config.model_type not in PERMUTED_TYPES or not name.endswith(ROTARY):
        return None
    pairs = np.arange(shape[0]).reshape(-1, config.head_dim // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)
