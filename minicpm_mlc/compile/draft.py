"""The draft head of a bundle: where its weights come from, what they are called in the library,
which tokens it proposes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import CheckpointError, CompileError, ConfigError
from minicpm_mlc.base.files import read_json
from minicpm_mlc.compile.checkpoint import (
    Checkpoint,
    RandomCheckpoint,
    Weights,
    assembled,
    find_tensors,
)
from minicpm_mlc.compile.checkpoint.beside import BesideCheckpoint, HeadRows
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.compile.config.draft_config import DraftConfig
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.frspec import read_list
from minicpm_mlc.compile.model.decoder import EMBEDDING, HEAD
from minicpm_mlc.compile.model.registry import (
    draft_config_like,
    eagles,
    published_tensors,
    read_draft_config,
)

RANDOM = "random-"  # before a kind: a head of random weights
# of vLLM's layout of EAGLE-2: it scales residuals by mup_denominator, not by the base's layers
VLLM = "eagle_layers."
UNUSED = (
    "embed_tokens.weight",
    "t2d",
    "d2t",
)  # published beside the weights; the base's embedding is used


@dataclass(frozen=True)
class DraftHead:
    """A head that fits its base. `token_ids` int32 [vocab]: the base's token of each id of the
    head's vocabulary.

    With `frspec` the head is cut to the rows of these tokens; the rows are the base's where the
    weights have none.
    """

    config: DraftConfig
    weights: Checkpoint
    token_ids: np.ndarray
    frspec: bool = False

    def beside(self, base: Checkpoint, tied: bool) -> Checkpoint:
        """The base's tensors and, behind a prefix, the head's."""
        if not self.frspec:
            return BesideCheckpoint(base, self.weights)
        own = HEAD in self.weights.names()
        whole = (self.weights, HEAD) if own else (base, EMBEDDING if tied else HEAD)
        return BesideCheckpoint(base, HeadRows(self.weights, *whole, self.token_ids))


def open_draft(
    source: str | Path, base: ModelConfig, frspec: str | Path | None = None
) -> DraftHead:
    """A head's folder as published, or "random-eagle2" or "random-eagle3", with ":ROWS" for a
    smaller vocabulary.

    `frspec`: a list of the tokens to propose. Raises ConfigError, CheckpointError or CompileError
        for a head that does
    not fit the base, by the name of what doesn't, and CompileError for a base that verifies no
    trees.
    """
    if base.lightning_layers:
        raise CompileError(
            f"--draft {source}: {base.name} keeps state per sequence, which can't be taken back to "
            "verify drafts; leave it out"
        )
    name, _, rows = str(source).partition(":")
    if (kind := name.removeprefix(RANDOM)) != name and kind in eagles():
        return _random(kind, base, rows, frspec)
    head = _read(Path(source), base)
    if frspec is None:
        return head
    if head.config.vocab_size != base.vocab_size:
        raise CompileError(
            f"--frspec: {source} has a draft vocabulary of its own, of {head.config.vocab_size}; "
            "leave it out"
        )
    return _with_vocabulary(head, read_list(frspec, base.vocab_size), base)


def _random(kind: str, base: ModelConfig, rows: str, frspec: str | Path | None) -> DraftHead:
    config = draft_config_like(base, kind)
    head = DraftHead(
        config, RandomCheckpoint(config, seed=1), np.arange(base.vocab_size, dtype=np.int32)
    )
    if rows and frspec is not None:
        raise CompileError(
            f"--draft random-{kind}:{rows} and --frspec {frspec} both choose its tokens; leave "
            f":{rows} out"
        )
    if rows and not (rows.isdigit() and 0 < int(rows) <= base.vocab_size):
        raise CompileError(
            f"--draft random-{kind}:{rows}: give a number of tokens up to {base.vocab_size}"
        )
    if not rows and frspec is None:
        return head
    ids = read_list(frspec, base.vocab_size) if frspec else head.token_ids[: int(rows)]
    return _with_vocabulary(head, ids, base)


def _with_vocabulary(head: DraftHead, token_ids: np.ndarray, base: ModelConfig) -> DraftHead:
    """The head cut to some tokens, with the base's logit scale where its rows are the base's."""
    scale = head.config.logit_scale if head.config.own_head else base.logit_scale
    config = replace(head.config, vocab_size=len(token_ids), own_head=True, logit_scale=scale)
    return replace(head, config=config, token_ids=token_ids, frspec=True)


def _read(folder: Path, base: ModelConfig) -> DraftHead:
    _check_folder(folder)
    tensors = find_tensors(folder)
    where, kind = folder / "config.json", _kind(folder, tensors)
    config = read_draft_config(_json(where), kind, "fc.bias" in tensors, base, str(where))
    shapes = published_tensors(config)
    weights = Weights(assembled(folder, tensors, shapes, optional=UNUSED))
    return DraftHead(config, weights, _token_ids(config, tensors, base))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        random = " or ".join(RANDOM + kind for kind in eagles())
        raise CheckpointError(
            f"--draft {folder} is not a folder; give a draft head's folder, or {random}"
        )
    inner = sorted(folder.glob("*/config.json"))
    if inner and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"--draft {folder}: the head is in a folder inside; give {inner[0].parent}"
        )


def _kind(folder: Path, tensors: dict[str, SafetensorsFile]) -> str:
    """The one kind of head whose mark is among the tensors."""
    if any(VLLM in name for name in tensors):
        raise CheckpointError(
            f"{folder} has tensors {VLLM}*: it is in vLLM's layout (MiniCPM4-8B-Eagle-vLLM), "
            "whose maths is not implemented; "
            "give a head in the layout of MiniCPM4-8B-Eagle-FRSpec, with tensors layers.0.*"
        )
    kinds = [kind for kind, eagle in eagles().items() if eagle.mark in tensors]
    if len(kinds) != 1:
        marks = " or ".join(eagle.mark for eagle in eagles().values())
        raise CheckpointError(
            f"{folder} is no EAGLE head for MiniCPM: none of its tensors is {marks}"
        )
    return kinds[0]


def _token_ids(
    config: DraftConfig, tensors: dict[str, SafetensorsFile], base: ModelConfig
) -> np.ndarray:
    """The base's token of each id of the head's vocabulary, int32 [vocab].

    The tensor of offsets (d2t) holds, for each id, how far above it the base's id is.
    """
    own = np.arange(config.vocab_size)
    name = eagles()[config.kind].token_offsets
    if config.vocab_size == base.vocab_size or name is None:
        return own.astype(np.int32)
    if name not in tensors:
        raise CheckpointError(
            f"the draft head has {config.vocab_size} of {base.vocab_size} tokens and no tensor "
            f"{name}"
        )
    file = tensors[name]
    ids = own + _offsets(file, name, config.vocab_size)
    if ids.min() < 0 or ids.max() >= base.vocab_size or len(np.unique(ids)) != len(ids):
        raise CheckpointError(
            f"{file.path}: tensor {name} names a token twice, or one outside {base.name}'s "
            "vocabulary"
        )
    return ids.astype(np.int32)


def _offsets(file: SafetensorsFile, name: str, size: int) -> np.ndarray:
    """Whole numbers [size]."""
    entry = file.entries[name]
    if entry.shape != (size,) or entry.dtype not in ("I64", "I32"):
        raise CheckpointError(
            f"{file.path}: tensor {name} is {entry.dtype} {list(entry.shape)}, expected I64 "
            f"{[size]}"
        )
    return file.raw(name).view("<i8" if entry.dtype == "I64" else "<i4")


def _json(path: Path) -> object:
    try:
        return read_json(path, ConfigError, "download it again")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no config.json; download it beside the draft head's weights"
        ) from None
