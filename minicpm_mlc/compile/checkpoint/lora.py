"""LoRA adapters of PEFT, merged into a base: W + s B A, in float32, before anything is quantised.

Of a module M with K inputs and N outputs, after `base_model.model.`:

    M.lora_A.weight [r, K], M.lora_B.weight [N, r]
    M.lora_embedding_A [r, N], M.lora_embedding_B [K, r]    of an embedding: s (B A)^T
    M.lora_magnitude_vector [N]                             DoRA: rows get these lengths
    M.weight                                                a whole tensor in the base's place
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.text import shown
from minicpm_mlc.compile.checkpoint.files import ADAPTER
from minicpm_mlc.compile.checkpoint.lora_config import LoraConfig
from minicpm_mlc.compile.checkpoint.packed import Numbers
from minicpm_mlc.compile.checkpoint.safetensors import STORED, SafetensorsFile
from minicpm_mlc.compile.checkpoint.tensor import Dense, Derived, Tensor
from minicpm_mlc.compile.checkpoint.torch_file import TorchFile
from minicpm_mlc.compile.checkpoint.weights import ENDS, Weights
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD

PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
PART = re.compile(rf"(.+)\.({'|'.join(PARTS)})(\.(?!weight$)[^.]+)?(\.weight)?")
WHOLE = re.compile(r"(.+?)(\.modules_to_save(\.[^.]+)?|\.base_layer)?\.weight")
HEAD_OF_BASE = (
    "the adapter changes the embedding alone, so the head, which was the same tensor, stays as it "
    "was in training and is stored beside it"
)

RESCALED = (
    "AWQ moves factors between norms and linears: an adapter that was trained on the unquantised "
    "base does not fit this one; compile that base with it"
)


@dataclass(frozen=True)
class Change:
    """What is added to a matrix: strength * left @ right, of sizes [N, r] and [r, K]; where there
    are `lengths` of rows, [N], each row then gets its own.
    """

    left: Numbers
    right: Numbers
    strength: float
    lengths: Numbers | None = None

    def applied(self, rows: np.ndarray, start: int) -> np.ndarray:
        """Rows of the matrix from `start` on, changed."""
        stop = start + len(rows)
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged numbers: told by the scheme
            changed = rows + np.float32(self.strength) * (self.left[start:stop] @ self.right[:])
            if self.lengths is None:
                return changed
            norms = np.linalg.norm(changed, axis=1, keepdims=True)
            share = self.lengths[start:stop][:, None] / np.where(norms == 0, 1, norms)
            return changed * share


@dataclass(frozen=True)
class Adapted(Derived):
    """A matrix of the base with a change."""

    change: Change

    @property
    def quantised(self) -> bool:
        return self.base.quantised

    @property
    def scheme(self) -> str:
        return self.base.scheme

    @property
    def form(self) -> str:
        return f"{self.base.form} with an adapter merged into them"

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.change.applied(self.base.rows(start, stop), start)


class Adapter:
    """An adapter's folder, with how strongly it is merged. Raises CheckpointError naming the key
    or the tensor that is not PEFT's LoRA.
    """

    def __init__(self, folder: Path, strength: float = 1.0) -> None:
        self.folder, self._strength = folder, strength
        self._config = LoraConfig.read(folder)
        self._file = _file(folder)
        self._parts: dict[str, dict[str, str]] = {}  # of a module: the stored name of each part
        self._whole: dict[str, str] = {}  # published name: the stored one
        for name, entry in self._file.entries.items():
            own = name.removeprefix(PREFIX)
            if not 1 <= len(entry.shape) <= 2:
                raise self._error(name, f"has {len(entry.shape)} sizes, expected 1 or 2")
            if match := PART.fullmatch(own):
                places, place = self._parts.setdefault(match[1], {}), match[2]
            elif match := WHOLE.fullmatch(own):
                places, place = self._whole, _weight(match[1])
            else:
                raise self._error(name, "is no part of a LoRA")
            if place in places:
                raise self._error(name, f"and {shown(places[place])} are two adapters; save one")
            places[place] = name

    def config(self, base: ModelConfig) -> ModelConfig:
        """The model that it makes of a base: a vocabulary may be resized, a head become its own."""
        sizes = {self._file.entries[self._whole[name]].shape[0] for name in self._ends()}
        if len(sizes) > 1:
            raise self._error(self._whole[HEAD], f"and the embedding have {sorted(sizes)} rows")
        config = replace(base, vocab_size=sizes.pop()) if sizes else base
        return replace(config, tie_word_embeddings=base.tie_word_embeddings and self._tied(base))

    def weights(self, base: Weights, config: ModelConfig) -> Weights:
        """The base's weights with it; `config` is the model that it makes."""
        tensors = dict(base.tensors)
        if HEAD not in tensors and not config.tie_word_embeddings:
            tensors[HEAD] = tensors[EMBEDDING]
        for name in (*self._whole, *map(_weight, self._parts)):
            if name not in tensors and name != HEAD:
                raise CheckpointError(f"{self._file.path}: the base has no {shown(name)} to change")
        for name, stored in self._whole.items():
            if name in tensors:
                tensors[name] = self._replaced(name, stored, tensors[name], config)
        for module, parts in self._parts.items():
            if (name := _weight(module)) in tensors:
                change = self._change(module, parts, tensors[name].shape)
                tensors[name] = Adapted(tensors[name], change)
        for name in ENDS:
            if name in tensors and tensors[name].shape[0] != config.vocab_size:
                rows = f"{tensors[name].shape[0]} rows, and the adapter's other {config.vocab_size}"
                raise CheckpointError(f"{self._file.path}: {name} of the base has {rows}")
        rescaled = any(tensor.form == "AWQ" for tensor in base.tensors.values())
        return Weights(tensors, [*base.remarks, *([RESCALED] if rescaled else [])])

    def notes(self, base: ModelConfig) -> list[str]:
        """What a user should know of it on this base."""
        untied = base.tie_word_embeddings and not self.config(base).tie_word_embeddings
        changes_head = HEAD in self._whole or "lm_head" in self._parts
        return [f"{self.folder}: {HEAD_OF_BASE}"] if untied and not changes_head else []

    def _ends(self) -> list[str]:
        """Embedding and head, where they are replaced."""
        return [name for name in ENDS if name in self._whole]

    def _tied(self, base: ModelConfig) -> bool:
        """Whether the head of a tied base is the embedding still."""
        touched = {*self._whole, *map(_weight, self._parts)}
        if not touched & set(ENDS) or self._config.keeps_tied:
            return True
        if HEAD in self._whole and EMBEDDING in self._whole:
            head, embedding = (self._file.raw(self._whole[name]) for name in (HEAD, EMBEDDING))
            return not self._parts.keys() & {"lm_head", "model.embed_tokens"} and np.array_equal(
                head, embedding
            )
        resized = [self._file.entries[self._whole[name]].shape[0] for name in self._ends()]
        return any(rows != base.vocab_size for rows in resized)

    def _replaced(self, name: str, stored: str, base: Tensor, config: ModelConfig) -> Dense:
        shape = (config.vocab_size, *base.shape[1:]) if name in ENDS else base.shape
        self._file.expect(stored, tuple(STORED), shape)
        return Dense(self._file, stored)

    def _change(self, module: str, parts: dict[str, str], shape: tuple[int, ...]) -> Change:
        """The change of a module's matrix [N, K]."""
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if missing := [end for end in ends if end not in parts]:
            other = next(iter(parts.values()))
            raise self._error(other, f"has no {missing[0]} beside it")
        if len(shape) != 2:
            raise self._error(parts[ends[0]], f"changes a vector, of {shape[0]} numbers")
        rank = self._file.entries[parts[ends[0]]].shape[0]
        n, k = shape[::-1] if embedding else shape
        down = self._numbers(parts[ends[0]], (rank, k))
        up = self._numbers(parts[ends[1]], (n, rank))
        left, right = (down.transposed(), up.transposed()) if embedding else (up, down)
        strength = self._strength * self._config.scaling(module, rank)
        return Change(left, right, strength, self._lengths(parts, n, embedding))

    def _lengths(self, parts: Mapping[str, str], n: int, embedding: bool) -> Numbers | None:
        name = parts.get("lora_magnitude_vector")
        if self._config.dora != (name is not None) or (embedding and name):
            wrong = "belongs to DoRA, and use_dora is not set" if name else "has no magnitudes"
            raise self._error(name or next(iter(parts.values())), wrong)
        return self._numbers(name, (n,)) if name else None

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Numbers:
        self._file.expect(name, tuple(STORED), shape)
        return Numbers(self._file.array(name))

    def _error(self, name: str, wrong: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: tensor {shown(name)} {wrong}")


def _weight(module: str) -> str:
    return f"{module}.weight"


def _file(folder: Path) -> SafetensorsFile:
    for reader, suffix in ((SafetensorsFile, ".safetensors"), (TorchFile, ".bin")):
        if (path := folder / f"{ADAPTER}{suffix}").is_file():
            return reader(path)
    raise CheckpointError(
        f"--adapter {folder} has no {ADAPTER}.safetensors and no {ADAPTER}.bin; download it again"
    )
