"""Greedy answers with speculation against plain decoding, token by token, on the demo model's prompts.

    python bench/speculation_identity.py --bundle build/demo --prompts 2000

Every prompt runs in one gear (dense, sparse, or shifting on the way) with one drafter and one tree size, in turn, and
must give the tokens that plain decoding gives. Where it doesn't, plain logits at the first difference tell a tie (the two
tokens within 1e-3 of each other, so that rounding decides) from a mistake; a mistake makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from minicpm_mlc import Engine

DEMO = Path(__file__).parents[1] / "examples" / "demo_model"
TREE_SIZES = (1, 2, 3, 5, 8, 12, 16, 24, 33, 48, 60, None)
GEARS = ("dense", "sparse", "auto")
SPEED_SKILLS = ("recall, 2048 tokens", "recall, 4096 tokens")  # the same skill at length; a few are enough
TIE = 1e-3


def prompts(engine: Engine, count: int, seed: int) -> list[tuple[str, list[int]]]:
    """(skill, token ids) of held-out prompts, skills in turn."""
    sys.path.insert(0, str(DEMO))
    import data
    from evaluate import SKILLS

    made = []
    for i, (skill, make) in zip(range(count), itertools.cycle(SKILLS.items()), strict=False):
        if skill in SPEED_SKILLS and i % 5:
            skill, make = "recall, 512 tokens", SKILLS["recall, 512 tokens"]
        messages = data.messages(make(random.Random(f"identity {seed} {i}")))[:-1]
        made.append((skill, engine.template.prompt(engine.tokenizer.raw, messages, None).ids))
    return made


def answer(engine: Engine, prompt: list[int], tokens: int, **options: Any) -> list[int]:
    """The greedy answer's token ids, as they are in the cache."""
    engine.generate(prompt, max_tokens=tokens + 1, temperature=0, **options)
    return engine.cached_tokens[len(prompt) :][:tokens]


def is_tie(engine: Engine, prompt: list[int], plain: list[int], other: list[int]) -> bool:
    """Whether the first tokens that differ have plain logits closer than TIE."""
    same = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if same is None:
        return False
    logits = replay(engine, prompt, plain[:same])
    return abs(float(logits[plain[same]] - logits[other[same]])) < TIE


def replay(engine: Engine, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """Plain logits after the prompt and these tokens."""
    engine.truncate(0)
    logits = engine.prefill(prompt)
    for token in tokens:
        logits = engine.decode(token)
    return logits


def check(args: argparse.Namespace) -> int:
    engines = {gear: Engine(args.bundle, attention=gear, draft=args.draft_model, threads=args.threads) for gear in GEARS}
    drafters = ["auto", *engines["auto"].drafters]
    settings = list(itertools.product(drafters, TREE_SIZES))
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    start = time.time()
    for i, (skill, prompt) in enumerate(prompts(engines["auto"], args.prompts, args.seed)):
        gear, (drafter, size) = GEARS[i % len(GEARS)], settings[i // len(GEARS) % len(settings)]
        engine = engines[gear]
        plain = answer(engine, prompt, args.tokens, speculate="off")
        options = {"speculate": drafter} if drafter == "auto" else {"speculate": drafter, "tree_size": size}
        other = answer(engine, prompt, args.tokens, **options)
        figures = engine.stats.speculation
        kind = "same" if plain == other else "tie" if is_tie(engine, prompt, plain, other) else "different"
        counts[f"{drafter}, {gear}"].update([kind], trees=figures.rounds, accepted=figures.accepted, tokens=len(other))
        if kind == "different":
            print(f"prompt {i} ({skill}), {gear}, {options}: {plain} became {other}", flush=True)
        if (i + 1) % 100 == 0:
            print(f"\r{i + 1}/{args.prompts}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return report(counts, time.time() - start)


def report(counts: dict[str, collections.Counter[str]], seconds: float) -> int:
    """Prints one line a drafter and gear; returns the exit status."""
    names = ("same", "tie", "different", "tokens", "trees", "accepted")
    print("drafter, gear".ljust(18) + "".join(name.rjust(11) for name in names))
    total: collections.Counter[str] = collections.Counter()
    for setting, counter in sorted(counts.items()):
        print(setting.ljust(18) + "".join(f"{counter[name]:11}" for name in names))
        total += counter
    print("all".ljust(18) + "".join(f"{total[name]:11}" for name in names) + f"   {seconds:.0f} s")
    return 1 if total["different"] else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="the demo checkpoint's bundle")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=160, help="longest answer")
    parser.add_argument("--draft-model", help="a second bundle to draft with")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(check(parser.parse_args()))


if __name__ == "__main__":
    main()
