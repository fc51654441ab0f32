"""The tensors of a GGUF file by their published names: rows as float32, or in a bundle's scheme as
the file has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from minicpm_mlc.compile.checkpoint.gguf.blocks import GROUP, Floats
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile, Tensor
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
BESIDE = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
SAMPLED_ROWS = 64  # of a tensor, for the error of quantising it


class GgufWeights:
    """A checkpoint. Raises CheckpointError unless the file has exactly the config's tensors."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        self._config = config
        self._shapes = published_tensors(config)
        self._stored = {name: _stored_name(name) for name in self._shapes}
        self._check()

    def names(self) -> list[str]:
        """Every tensor, in layer order."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The published shape of a tensor."""
        return self._shapes[name]

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(self._tensor(name).nbytes for name in self._shapes)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 rows [start:stop) of a 1-D or 2-D tensor."""
        tensor = self._tensor(name)
        if len(tensor.shape) == 1:
            return self._file_numbers(tensor, self._file.raw(tensor.name))[0][start:stop]
        return self._file_numbers(tensor, self._raw_rows(name, start, stop))

    def carried(self, name: str, scheme: Scheme, start: int, stop: int) -> Parts | None:
        """Rows [start:stop) of a matrix in `scheme`, with the file's own integers and scales; None
        where it can't hold these.
        """
        tensor = self._tensor(name)
        if scheme.name not in tensor.block.carriers or scheme.group != GROUP:
            return None
        raw = self._raw_rows(name, start, stop)
        parts = tensor.block.carried(raw.reshape(-1, tensor.block.nbytes), scheme.name)
        if parts is None or not all(np.isfinite(parts[key]).all() for key in parts):
            return None
        return {key: part.reshape(len(raw), -1) for key, part in parts.items()}

    def schemes(self) -> tuple[str, str]:
        """The smallest schemes that hold what most weights of the layers, and the embedding with
        the head, are stored as.
        """
        ends = {EMBEDDING, HEAD} & self._shapes.keys()
        layers = [name for name in self._shapes if name not in ends and self._is_matrix(name)]
        return self._scheme_of(layers), self._scheme_of(ends)

    def notes(self, linear: Scheme, embedding: Scheme) -> list[str]:
        """What is quantised again, with the relative error of the weights over rows of each
        tensor.
        """
        errors: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for name in filter(self._is_matrix, self._shapes):
            scheme, block = (
                embedding if name in (EMBEDDING, HEAD) else linear,
                self._tensor(name).block,
            )
            if not isinstance(block, Floats) and scheme.name not in block.carriers:
                errors.setdefault((block.name, scheme.name), []).append(self._error(name, scheme))
        return [
            f"{len(found)} tensors of {stored} are quantised again, to {scheme}: relative error "
            f"of their weights {_relative(found):.2%}"
            for (stored, scheme), found in errors.items()
            if _relative(found) > 0
        ]

    def _error(self, name: str, scheme: Scheme) -> tuple[float, float]:
        """Squared error and square of a tensor's first rows."""
        rows = self.rows(name, 0, SAMPLED_ROWS)
        difference = scheme.dequantize(scheme.quantize(rows, name)) - rows
        return float(np.square(difference).sum()), float(np.square(rows).sum())

    def _scheme_of(self, names: Iterable[str]) -> str:
        count: Counter[str] = Counter()
        for name in names:
            block = self._tensor(name).block
            held = block.carriers or ("w4" if isinstance(block, Floats) else "w8",)
            count[held[0]] += self._tensor(name).nbytes
        if set(count) == {"w4", "w4a"}:
            return "w4a"
        return count.most_common(1)[0][0]

    def _is_matrix(self, name: str) -> bool:
        return len(self._shapes[name]) == 2

    def _tensor(self, name: str) -> Tensor:
        return self._file.tensors[self._stored[name]]

    def _file_numbers(self, tensor: Tensor, raw: np.ndarray) -> np.ndarray:
        numbers = tensor.block.numbers(raw.reshape(-1, tensor.block.nbytes))
        return numbers.reshape(len(raw), tensor.shape[-1])

    def _raw_rows(self, name: str, start: int, stop: int | None) -> np.ndarray:
        raw = self._file.raw(self._stored[name])
        if self._config.model_type not in PERMUTED_TYPES or not name.endswith(ROTARY):
            return raw[start:stop]
        return raw[_halves(len(raw), self._config.head_dim)[start:stop]]

    def _check(self) -> None:
        for name, stored in self._stored.items():
            if stored not in self._file.tensors:
                raise self._file.error(f"tensor {stored} is missing; download it again")
            found = self._file.tensors[stored].shape
            if found != self._shapes[name]:
                raise self._file.error(
                    f"tensor {stored} has shape {list(found)}, expected {list(self._shapes[name])} "
                    "from the metadata"
                )
        known = {*self._stored.values(), *BESIDE}
        if strays := [name for name in self._file.tensors if name not in known]:
            raise self._file.error(f"tensor {strays[0]} is not part of the model")


def _relative(errors: list[tuple[float, float]]) -> float:
    """Root of squared errors over squares."""
    error, size = (sum(column) for column in zip(*errors, strict=True))
    return (error / size) ** 0.5 if size else 0.0


def _stored_name(name: str) -> str:
    if name in TOP:
        return f"{TOP[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{LAYER[part.removesuffix('.weight')]}.weight"


def _halves(rows: int, head_dim: int) -> np.ndarray:
    """The stored row of each published one: a pair's rows lie side by side in the file, half a
    head apart as published.
    """
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
