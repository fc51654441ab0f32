"""A GGUF file as a checkpoint: its weights, and the small files that its metadata stands for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_small
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.bundle.small_files import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SmallFiles,
)
from minicpm_mlc.compile.checkpoint.gguf.config import config_json, generation_json
from minicpm_mlc.compile.checkpoint.gguf.container import MAGIC, GgufFile
from minicpm_mlc.compile.checkpoint.gguf.metadata import Metadata
from minicpm_mlc.compile.checkpoint.gguf.parts import one_file, open_whole, whole_name
from minicpm_mlc.compile.checkpoint.gguf.tokenizer import tokenizer_config_json, tokenizer_json
from minicpm_mlc.compile.checkpoint.gguf.weights import GgufWeights
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.model.registry import read_config, sparse_settings

SUFFIX = ".gguf"
LONGEST_NAME = 80  # characters
OTHERS = re.compile(r"[^A-Za-z0-9._-]+")  # characters that names of models don't have
TYPE = re.compile(r"[-._](I?Q\d\w*|B?F16|F32)$", re.IGNORECASE)  # ends a file's name
NO_SPARSE = (
    "a GGUF file has no sparse_config: the published settings are used in long contexts; "
    "--sparse-config FILE gives others, --attention dense leaves them out"
)


class RebuiltFiles(SmallFiles):
    """The small files of a checkpoint folder, made of a GGUF file's metadata."""

    def __init__(self, path: Path, contents: dict[str, Any]) -> None:
        super().__init__(path, CheckpointError, "convert the model again")
        self._rebuilt = contents

    def _read(self, name: str) -> bytes | None:
        if (found := self._rebuilt.get(name)) is None:
            return None
        return found if isinstance(found, bytes) else json.dumps(found, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Gguf:
    """A file's config and small files, its weights, and what a user should know of them."""

    config: ModelConfig
    files: SmallFiles
    weights: GgufWeights
    notes: list[str]


def find_gguf(source: Path) -> Path | None:
    """The GGUF file that is meant: the source itself, or the only one in a folder without a
    config.json, or its first part. Raises CheckpointError where there are several.
    """
    if source.is_file():
        return source if source.suffix.lower() == SUFFIX or _begins_as_gguf(source) else None
    if not source.is_dir() or (source / CONFIG).is_file():
        return None
    found = sorted(file for file in source.iterdir() if file.suffix.lower() == SUFFIX)
    if found and not one_file(found):
        names = ", ".join(file.name for file in found[:8])
        raise CheckpointError(f"{source} has several GGUF files ({names:.200}); give one of them")
    return found[0] if found else None


def _begins_as_gguf(source: Path) -> bool:
    """Whether a file without the suffix is one, as in the store of ollama."""
    with open(source, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_gguf(path: Path, sparse: object = None) -> Gguf:
    """Maps a file, with its other parts if it was split, and checks it whole; `sparse` is the
    `sparse_config` that it can't have. Raises CheckpointError or ConfigError naming the key or the
    tensor that is missing, damaged or not read.
    """
    file = open_whole(path)
    metadata = Metadata(file)
    raw, notes = config_json(metadata)
    where = f"{path}: config.json, made of its metadata"
    config = read_config(raw, _name(path, metadata), where, sparse)
    if config.sparse is None and sparse_settings(config):
        notes.append(NO_SPARSE)
    contents: dict[str, Any] = {
        CONFIG: raw if sparse is None else raw | {"sparse_config": sparse},
        GENERATION_CONFIG: generation_json(metadata, raw),
        TOKENIZER: _tokenizer(file),
        TOKENIZER_CONFIG: tokenizer_config_json(file),
    }
    return Gguf(config, RebuiltFiles(path, contents), GgufWeights(file, config), notes)


def _tokenizer(file: GgufFile) -> bytes | dict[str, Any]:
    """The file beside it, or the one within, else rebuilt."""
    try:
        return read_small(file.path.parent / TOKENIZER, CheckpointError, "download it again")
    except FileNotFoundError:
        pass
    whole = file.metadata.get("tokenizer.huggingface.json")
    return str(whole).encode() if isinstance(whole, str) else tokenizer_json(file)


def _name(path: Path, metadata: Metadata) -> str:
    """The file's name without its type; the name within of a file that ollama keeps by a hash."""
    if path.suffix.lower() == SUFFIX:
        return whole_characters(TYPE.sub("", whole_name(path))) or "model"
    within = metadata.file.metadata.get("general.name")
    told = OTHERS.sub("-", within).strip("-.") if isinstance(within, str) else ""
    return told[:LONGEST_NAME] or whole_characters(path.name)
