"""Checkpoint readers: tensors by published name, in whatever form they are stored, read lazily and
checked against the config when opened.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.text import shown
from minicpm_mlc.compile.checkpoint.files import Found, find_tensors, listing
from minicpm_mlc.compile.checkpoint.forms import Reader, Shapes, open_form
from minicpm_mlc.compile.checkpoint.random import RandomCheckpoint
from minicpm_mlc.compile.checkpoint.safetensors import STORED, SafetensorsFile
from minicpm_mlc.compile.checkpoint.stated import stated_form
from minicpm_mlc.compile.checkpoint.tensor import Dense, Tensor
from minicpm_mlc.compile.checkpoint.ternary import LATENT, Ternary, with_ternary
from minicpm_mlc.compile.checkpoint.weights import Checkpoint, Weights
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.compile.model.registry import published_tensors

__all__ = [
    "Checkpoint",
    "RandomCheckpoint",
    "Weights",
    "assembled",
    "find_tensors",
    "open_checkpoint",
]

FREQUENCIES = "rotary_emb.inv_freq"


def open_checkpoint(folder: str | Path, config: ModelConfig, ternary: int | None = None) -> Weights:
    """Maps the folder's weights and checks that they hold exactly `config`'s tensors. `ternary`:
    columns of a group in which linears are rounded to three values.

    Raises CheckpointError naming the file and the tensor that is missing, extra, mis-shaped,
    damaged or of a dtype that isn't BF16, F16 or F32, and the key of a quantisation that is not
    read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; give the folder that holds config.json and the weights"
        )
    shapes = published_tensors(config)
    found = find_tensors(path)
    stated = stated_form(path, found)
    reader = open_form(stated, found) if stated else None
    tied = config.tie_word_embeddings
    tensors = assembled(path, found, shapes, reader, optional=[HEAD] if tied else [])
    if tied and HEAD in found:
        _check_alias(tensors[EMBEDDING], _dense(found[HEAD], HEAD, shapes[EMBEDDING]))
    remarks = list(reader.remarks) if reader else []
    seen = with_ternary(tensors, ternary)
    if "BitCPM" in config.name and reader is None and not any(map(_is_ternary, seen.values())):
        remarks.append(LATENT)
    return Weights(seen, remarks)


def _is_ternary(tensor: Tensor) -> bool:
    return isinstance(tensor, Ternary)


def assembled(
    folder: Path,
    found: Found,
    shapes: Shapes,
    reader: Reader | None = None,
    optional: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of `shapes`, made of the stored ones. Raises CheckpointError unless these are
    exactly what is needed, and perhaps optional ones.
    """
    tensors: dict[str, Tensor] = {}
    missing: list[str] = []
    for name, shape in shapes.items():
        if reader and len(shape) == 2 and (tensor := reader.tensor(name, shapes)):
            tensors[name] = tensor
        elif name in found:
            tensors[name] = _dense(found[name], name, shape)
        else:
            missing.append(name)
    if missing:
        where = listing(folder)
        raise CheckpointError(f"{where}: tensor {missing[0]} is missing{_and_more(missing)}")
    known = {*optional}.union(*(tensor.stored for tensor in tensors.values()))
    # older exports carry RoPE's frequencies; they follow from the config
    beside = (FREQUENCIES, *(reader.beside if reader else ()))
    extra = [name for name in found if name not in known and not name.endswith(beside)]
    if extra:
        raise CheckpointError(
            f"{found[extra[0]].path}: tensor {shown(extra[0])} is not part of the "
            f"model{_and_more(extra)}"
        )
    return tensors


def _and_more(names: list[str]) -> str:
    return f" and so are {len(names) - 1} others" if len(names) > 1 else ""


def _dense(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> Dense:
    file.expect(name, tuple(STORED), shape)
    return Dense(file, name)


def _check_alias(embedding: Tensor, head: Dense, block: int = 4096) -> None:
    """config.json says the head is the embedding, so a stored head must be the same numbers."""
    for start in range(0, embedding.shape[0], block):
        rows = [tensor.rows(start, start + block) for tensor in (embedding, head)]
        if not np.array_equal(*rows, equal_nan=True):
            raise CheckpointError(
                f"{head.file.path}: tensor {HEAD} differs from {EMBEDDING} although config.json "
                "ties them; set tie_word_embeddings to false"
            )
