"""Perplexity of a text file: python examples/perplexity.py BUNDLE FILE"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import minicpm_mlc

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", help="folder written by minicpm-mlc compile")
parser.add_argument("file", type=Path, help="UTF-8 text")
parser.add_argument(
    "--window", type=int, default=512, help="tokens that are read at once, BOS not counted"
)
args = parser.parse_args()


def surprise(logits: np.ndarray, token_ids: list[int]) -> np.ndarray:
    """-log p of each token, given the logits before it: float64 [n]."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return log_sum - logits[np.arange(len(token_ids)), token_ids]


with minicpm_mlc.Engine(args.bundle, context=args.window + 1) as engine:
    first, *ids = [
        engine.tokenizer.bos_token_id or 0,
        *engine.tokenize(args.file.read_text("utf-8"), bos=False),
    ]
    windows = [ids[start : start + args.window] for start in range(0, len(ids), args.window)]
    losses = [surprise(engine.logits([first, *window])[:-1], window) for window in windows]

print(
    f"perplexity {np.exp(np.concatenate(losses).mean()):.3f} over {len(ids)} tokens in windows "
    f"of {args.window}"
)
