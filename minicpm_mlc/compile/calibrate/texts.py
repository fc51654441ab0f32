"""The text that a model is calibrated on, as sequences of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from minicpm_mlc.base.errors import CompileError
from minicpm_mlc.bundle.small_files import TOKENIZER, SmallFiles
from minicpm_mlc.compile.config.model_config import ModelConfig

MIX = Path(__file__).parent / "mix"
LENGTH = 512  # tokens of a sequence
MOST = 24576  # tokens of text that are read

Ids = np.ndarray  # int32 [tokens]


def calibration_sequences(
    files: SmallFiles, config: ModelConfig, texts: Sequence[Path]
) -> list[Ids]:
    """Of the texts, or of the shipped ones if there are none, by the tokenizer among `files`.

    Without a tokenizer (random weights) tokens are drawn. Raises CompileError for a text that can't
    be read or is shorter than a sequence.
    """
    tokenizer = files.content(TOKENIZER)
    if tokenizer is None:
        rng = np.random.default_rng(0)
        stream = rng.integers(0, config.vocab_size, MOST).astype(np.int32)
    else:
        stream = _tokens(Tokenizer.from_buffer(tokenizer), texts or sorted(MIX.glob("*.txt")))
    if len(stream) < LENGTH:
        raise CompileError(
            f"--calibrate: the text has {len(stream)} tokens, expected at least {LENGTH}; add more"
        )
    return [stream[start : start + LENGTH] for start in range(0, len(stream), LENGTH)]


def said_of(sequences: Sequence[Ids]) -> dict[str, Any]:
    """What a manifest says of them: the SHA-256 of the token ids, and their number."""
    ids = np.concatenate(sequences).astype("<i4")
    return {"sha256": hashlib.sha256(ids.tobytes()).hexdigest(), "tokens": len(ids)}


def _tokens(tokenizer: Tokenizer, texts: Sequence[Path]) -> Ids:
    """The texts one after the other; the same part of each where they are too long together."""
    ids = [
        np.array(tokenizer.encode(_read(text), add_special_tokens=False).ids, np.int32)
        for text in texts
    ]
    total = sum(map(len, ids))
    return np.concatenate([one[: len(one) * MOST // max(total, MOST)] for one in ids])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "another encoding"
        raise CompileError(
            f"--calibrate {path} can't be read as UTF-8 text ({why}); give a text file"
        ) from None
