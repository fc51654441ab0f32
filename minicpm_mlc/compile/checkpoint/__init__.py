"""Checkpoint readers: float32 rows by tensor name, read lazily, checked against the config when
opened.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.compile.checkpoint.random import RandomCheckpoint
from minicpm_mlc.compile.checkpoint.safetensors import STORED, SafetensorsFile, cut
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.compile.model.registry import published_tensors

__all__ = [
    "Checkpoint",
    "RandomCheckpoint",
    "SafetensorsCheckpoint",
    "check_tensors",
    "find_tensors",
    "open_checkpoint",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint(Protocol):
    """Weights by their published names; a tied head is not among them."""

    def names(self) -> list[str]:
        """Every tensor, in layer order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The published shape of a tensor. Raises KeyError for one that is not there."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 rows [start:stop) of a 1-D or 2-D tensor, in memory of their own."""
        ...

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        ...


class SafetensorsCheckpoint(Checkpoint):
    """A folder of safetensors; `files` maps each tensor of the config to the file that holds it."""

    def __init__(self, files: dict[str, SafetensorsFile]):
        self._files = files

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].entries[name].shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._files[name].rows(name, start, stop)

    @property
    def bytes(self) -> int:
        return sum(file.entries[name].nbytes for name, file in self._files.items())


def open_checkpoint(folder: str | Path, config: ModelConfig) -> Checkpoint:
    """Maps the folder's safetensors and checks that they hold exactly `config`'s tensors.

    Raises CheckpointError naming the file and the tensor that is missing, extra, mis-shaped,
    damaged or of a dtype that isn't BF16, F16 or F32.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; give the folder that holds config.json and the weights"
        )
    shapes = published_tensors(config)
    found = find_tensors(path)
    check_tensors(path, found, shapes, optional=[HEAD] if config.tie_word_embeddings else [])
    if config.tie_word_embeddings and HEAD in found:
        _check_tensor(found[HEAD], HEAD, shapes[EMBEDDING])
        _check_alias(found[EMBEDDING], found[HEAD])
    return SafetensorsCheckpoint({name: found[name] for name in shapes})


def find_tensors(folder: Path) -> dict[str, SafetensorsFile]:
    """The file of each tensor in a folder. Raises CheckpointError for damaged files, or none."""
    if (folder / SINGLE).is_file():
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file.entries, file)
    if (folder / INDEX).is_file():
        return _follow_index(folder / INDEX)
    raise _no_weights(folder)


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(file.name for file in folder.iterdir())
    if shards := [name for name in names if name.endswith(".safetensors")]:
        return CheckpointError(
            f"{folder} has {shards[0]} but neither {SINGLE} nor {INDEX}; download the index too"
        )
    if others := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf"))]:
        return CheckpointError(
            f"{folder} has {others[0]} but no {SINGLE}; download the safetensors files, "
            "or convert with transformers: model.save_pretrained(FOLDER)"
        )
    return CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}; download the weights into it")


def _follow_index(index: Path) -> dict[str, SafetensorsFile]:
    """Every tensor the index names; what index and files hold must agree exactly."""
    places = _read_index(index)
    files: dict[str, SafetensorsFile] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index} names {cut(name)}, which is not in the folder; download it"
            )
        files[name] = SafetensorsFile(index.parent / name)
    for tensor, name in places.items():
        if tensor not in files[name].entries:
            raise CheckpointError(
                f"{index} places tensor {cut(tensor)} in {cut(name)}, which doesn't hold it; "
                "download both again"
            )
    for name, file in files.items():
        if strays := [tensor for tensor in file.entries if places.get(tensor) != name]:
            raise CheckpointError(
                f"{file.path} holds tensor {cut(strays[0])}, which {INDEX} doesn't place there"
            )
    return {tensor: files[name] for tensor, name in places.items()}


def _read_index(index: Path) -> dict[str, str]:
    advice = "it must be an object with a weight_map; download it again"
    places = read_json_object(index, CheckpointError, advice).get("weight_map")
    if not isinstance(places, dict) or not all(_is_file_name(name) for name in places.values()):
        raise CheckpointError(f"{index}: weight_map must map tensors to names of files beside it")
    return places


def _is_file_name(name: object) -> bool:
    # a path could lead out of the folder
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")


def check_tensors(
    folder: Path,
    found: dict[str, SafetensorsFile],
    shapes: dict[str, tuple[int, ...]],
    optional: Collection[str] = (),
) -> None:
    """Raises CheckpointError unless the folder's tensors are those of `shapes`, and perhaps
    optional ones.
    """
    listed = next((folder / name for name in (SINGLE, INDEX) if (folder / name).is_file()), folder)
    missing = [name for name in shapes if name not in found]
    if missing:
        raise CheckpointError(f"{listed}: tensor {missing[0]} is missing{_and_more(missing)}")
    known = {*shapes, *optional}
    # older exports carry RoPE's frequencies; they follow from the config
    extra = [
        name for name in found if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    if extra:
        raise CheckpointError(
            f"{found[extra[0]].path}: tensor {cut(extra[0])} is not part of the "
            f"model{_and_more(extra)}"
        )
    for name, shape in shapes.items():
        _check_tensor(found[name], name, shape)


def _and_more(names: list[str]) -> str:
    return f" and so are {len(names) - 1} others" if len(names) > 1 else ""


def _check_tensor(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> None:
    entry = file.entries[name]
    if entry.shape != shape:
        raise CheckpointError(
            f"{file.path}: tensor {name} has shape {list(entry.shape)}, expected {list(shape)} "
            "from config.json"
        )
    if entry.dtype not in STORED:
        raise CheckpointError(
            f"{file.path}: tensor {name} has dtype {entry.dtype}, expected BF16, F16 or F32"
        )


def _check_alias(embedding: SafetensorsFile, head: SafetensorsFile, block: int = 4096) -> None:
    """config.json says the head is the embedding, so a stored head must be the same numbers."""
    for start in range(0, embedding.entries[EMBEDDING].shape[0], block):
        stop = start + block
        if not np.array_equal(
            embedding.rows(EMBEDDING, start, stop), head.rows(HEAD, start, stop), equal_nan=True
        ):
            raise CheckpointError(
                f"{head.path}: tensor {HEAD} differs from {EMBEDDING} although config.json ties "
                "them; "
                "set tie_word_embeddings to false"
            )
