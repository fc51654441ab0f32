"""Streams the continuation of a text: python examples/complete.py BUNDLE "Once upon a time" """

from __future__ import annotations

import argparse

import minicpm_mlc

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", help="folder written by minicpm-mlc compile")
parser.add_argument("prompt", help="text to go on from, without a chat template")
parser.add_argument("--max-tokens", type=int, default=64)
parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
args = parser.parse_args()

with minicpm_mlc.Engine(args.bundle) as engine:
    print(args.prompt, end="", flush=True)
    for piece in engine.generate(
        args.prompt, stream=True, max_tokens=args.max_tokens, temperature=args.temperature
    ):
        print(piece, end="", flush=True)
    print(f"\n\n{engine.stats.generated_tokens} tokens, {engine.stats.decode_rate:.1f} tokens/s")
