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
    SafetensorsCheckpoint,
    check_tensors,
    find_tensors,
)
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.compile.checkpoint.torch_file import TorchFile
from minicpm_mlc.compile.config.draft_config import (
    EAGLE2,
    EAGLE3,
    HEAD,
    DraftConfig,
    read_draft_config,
)
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.convert import Param
from minicpm_mlc.compile.frspec import read_list
from minicpm_mlc.compile.parameters import (
    Precision,
    layer_parameters,
    matrix,
    table_parameter,
    vector,
)

PREFIX = "draft/"  # of the head's tensors beside the base's
RANDOM = {f"random-{kind}": kind for kind in (EAGLE2, EAGLE3)}
TORCH = "pytorch_model.bin"
MARKS = {
    EAGLE2: "input_norm1.weight",
    EAGLE3: "midlayer.hidden_norm.weight",
}  # tensors that only one kind has
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
        whole = (
            (self.weights, HEAD) if own else (base, "model.embed_tokens.weight" if tied else HEAD)
        )
        return BesideCheckpoint(base, HeadRows(self.weights, *whole, self.token_ids))

    def parameters(self, stored: Precision) -> list[Param]:
        """The checkpoint tensors behind every parameter, in the library's order, after the
        base's.
        """
        c, hidden = self.config, self.config.hidden_size
        if c.kind == EAGLE3:
            first, *rest = layer_parameters(
                c, "draft.", PREFIX + "midlayer.", stored, inputs=2 * hidden
            )
            body = [matrix("draft.fc", (PREFIX + "fc.weight",), hidden, 3 * hidden, stored), first]
            body += [
                vector("draft.hidden_norm", PREFIX + "midlayer.hidden_norm.weight", hidden),
                *rest,
            ]
            body.append(vector("draft.norm", PREFIX + "norm.weight", hidden))
        else:
            norms = {
                "draft.embedding_norm": "input_norm1.weight",
                "draft.hidden_norm": "input_norm2.weight",
            }
            body = [vector(name, PREFIX + source, hidden) for name, source in norms.items()]
            body.append(matrix("draft.fc", (PREFIX + "fc.weight",), hidden, 2 * hidden, stored))
            body += [vector("draft.bias", PREFIX + "fc.bias", hidden)] if c.bias else []
            body += layer_parameters(c, "draft.layer.", PREFIX + "layers.0.", stored)
        head = table_parameter("draft_head", PREFIX + HEAD, c.vocab_size, hidden, stored)
        return [*body, head] if c.own_head else body


@dataclass(frozen=True)
class HeadRows:
    """A checkpoint whose head is some rows of another's tensor."""

    checkpoint: Checkpoint
    whole: Checkpoint
    name: str
    picked: np.ndarray

    def names(self) -> list[str]:
        return [*(name for name in self.checkpoint.names() if name != HEAD), HEAD]

    def shape(self, name: str) -> tuple[int, ...]:
        return (
            (len(self.picked), *self.whole.shape(self.name)[1:])
            if name == HEAD
            else self.checkpoint.shape(name)
        )

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name != HEAD:
            return self.checkpoint.rows(name, start, stop)
        return np.concatenate(
            [self.whole.rows(self.name, i, i + 1) for i in map(int, self.picked[start:stop])]
        )

    @property
    def bytes(self) -> int:
        return self.checkpoint.bytes


@dataclass(frozen=True)
class BesideCheckpoint:
    """The base's tensors, and the head's by their prefixed names."""

    base: Checkpoint
    draft: Checkpoint

    def names(self) -> list[str]:
        return [*self.base.names(), *(PREFIX + name for name in self.draft.names())]

    def shape(self, name: str) -> tuple[int, ...]:
        of, own = self._place(name)
        return of.shape(own)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        of, own = self._place(name)
        return of.rows(own, start, stop)

    @property
    def bytes(self) -> int:
        return self.base.bytes + self.draft.bytes

    def _place(self, name: str) -> tuple[Checkpoint, str]:
        return (
            (self.draft, name.removeprefix(PREFIX))
            if name.startswith(PREFIX)
            else (self.base, name)
        )


def open_draft(
    source: str | Path, base: ModelConfig, frspec: str | Path | None = None
) -> DraftHead:
    """A head's folder as published, or "random-eagle2" or "random-eagle3", with ":ROWS" for a
    smaller vocabulary.

    `frspec`: a list of the tokens to propose. Raises ConfigError, CheckpointError or CompileError
        for a head that does
    not fit the base, by the name of what doesn't.
    """
    kind, _, rows = str(source).partition(":")
    if kind in RANDOM:
        return _random(RANDOM[kind], base, rows, frspec)
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
    config = DraftConfig.like(base, kind)
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
    if not folder.is_dir():
        raise CheckpointError(
            f"--draft {folder} is not a folder; give a draft head's folder, or "
            f"{' or '.join(RANDOM)}"
        )
    where = folder / "config.json"
    if not where.is_file() and (inner := sorted(folder.glob("*/config.json"))):
        raise CheckpointError(
            f"--draft {folder}: the head is in a folder inside; give {inner[0].parent}"
        )
    only_torch = (folder / TORCH).is_file() and not any(folder.glob("*.safetensors"))
    tensors = _torch_tensors(folder / TORCH) if only_torch else find_tensors(folder)
    if any(VLLM in name for name in tensors):
        raise CheckpointError(
            f"{folder} has tensors {VLLM}*: it is in vLLM's layout (MiniCPM4-8B-Eagle-vLLM), "
            "whose maths is not implemented; "
            "give a head in the layout of MiniCPM4-8B-Eagle-FRSpec, with tensors layers.0.*"
        )
    kinds = [kind for kind, mark in MARKS.items() if mark in tensors]
    if len(kinds) != 1:
        raise CheckpointError(
            f"{folder} is no EAGLE head for MiniCPM: none of its tensors is "
            f"{' or '.join(MARKS.values())}"
        )
    config = read_draft_config(_json(where), kinds[0], "fc.bias" in tensors, base, str(where))
    check_tensors(folder, tensors, config.tensor_shapes(), optional=UNUSED)
    weights = SafetensorsCheckpoint({name: tensors[name] for name in config.tensor_shapes()})
    return DraftHead(config, weights, _token_ids(config, tensors, base))


def _torch_tensors(path: Path) -> dict[str, SafetensorsFile]:
    file = TorchFile(path)
    return dict.fromkeys(file.entries, file)


def _token_ids(
    config: DraftConfig, tensors: dict[str, SafetensorsFile], base: ModelConfig
) -> np.ndarray:
    """d2t holds, for each id of the draft vocabulary, how far above it the base's id is."""
    own = np.arange(config.vocab_size)
    if config.vocab_size == base.vocab_size or config.kind != EAGLE3:
        return own.astype(np.int32)
    if "d2t" not in tensors:
        raise CheckpointError(
            f"the draft head has {config.vocab_size} of {base.vocab_size} tokens and no tensor d2t"
        )
    file = tensors["d2t"]
    entry = file.entries["d2t"]
    if entry.shape != own.shape or entry.dtype not in ("I64", "I32"):
        raise CheckpointError(
            f"{file.path}: tensor d2t is {entry.dtype} {list(entry.shape)}, expected I64 "
            f"{list(own.shape)}"
        )
    ids = own + file.raw("d2t").view("<i8" if entry.dtype == "I64" else "<i4")
    if ids.min() < 0 or ids.max() >= base.vocab_size or len(np.unique(ids)) != len(ids):
        raise CheckpointError(
            f"{file.path}: tensor d2t names a token twice, or one outside {base.name}'s vocabulary"
        )
    return ids.astype(np.int32)


def _json(path: Path) -> object:
    try:
        return read_json(path, ConfigError, "download it again")
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent} has no config.json; download it beside the draft head's weights"
        ) from None
