"""Which rule accepts more at temperature 1: fixed guesses and sample-and-match, or sampled guesses
and rejection sampling.

    python bench/acceptance_rules.py build/demo-eagle

Takes the distributions of a base model and its head along answers that the base samples to held-out
prompts (examples/demo_model/prompts.py), and computes of both rules how many guesses are kept:

- match: the guesses are the head's likeliest tokens, in every draw the same; one is kept if the
  base's own sample is it.
- rejection: the guesses are drawn from the head without replacement (SpecInfer, EAGLE); each is
  kept with min(1, p/q), else p becomes what p has beyond q, and q loses the guess.

"1 of n" is the chance that one of n guesses after a token is kept; the tokens of a chain are the
head's after its own guesses. The head gives its 16 likeliest tokens, scaled here to sum to 1. Drawn
guesses are averaged. The second table is of the places where the base is unsure: its likeliest
token has less than 0.9 of the chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from demo import prompts

from minicpm_mlc import Engine
from minicpm_mlc.base.text import plain_table
from minicpm_mlc.runtime_py.speculative.eagle import EagleDrafter

GUESSES = (1, 2, 4, 8)  # after one token
DEPTH = 5  # of a chain
CHAINS = 8  # drawn at each place
DRAWS = 64  # of guesses after one token, at each place
UNSURE = 0.9  # the base's chance of its likeliest token, below which it counts as unsure


@dataclass
class Found:
    """Sums over places: the chance that one of GUESSES is kept, and of each depth that a chain is
    kept down to it.
    """

    kind: str

    places: int = 0
    mass: float = 0.0  # of the head's distribution in the tokens that it gives
    match: np.ndarray = field(default_factory=lambda: np.zeros(len(GUESSES)))
    rejection: np.ndarray = field(default_factory=lambda: np.zeros(len(GUESSES)))
    match_chain: np.ndarray = field(default_factory=lambda: np.zeros(DEPTH))
    rejection_chain: np.ndarray = field(default_factory=lambda: np.zeros(DEPTH))

    def add(
        self, mass: float, match: np.ndarray, rejection: np.ndarray, chains: np.ndarray
    ) -> None:
        """One place. `chains` [1 + drawn ones, DEPTH]: the chance that the likeliest chain, or a
        drawn one, is kept so far.
        """
        self.places += 1
        self.mass += mass
        self.match += match
        self.rejection += rejection
        self.match_chain += chains[0]
        self.rejection_chain += chains[1:].mean(0)

    def rows(self) -> dict[str, dict[str, Any]]:
        rules = {
            "match": (self.match, self.match_chain),
            "rejection": (self.rejection, self.rejection_chain),
        }
        return {
            name: {
                "after_one_token": (one / max(1, self.places)).tolist(),
                "chain": float(chain.sum() / max(1, self.places)),
            }
            for name, (one, chain) in rules.items()
        }


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One place of each row [n, k]."""
    edges = probs.cumsum(-1)
    return np.minimum(
        (rng.random((len(probs), 1)) * edges[:, -1:] >= edges).sum(-1), probs.shape[-1] - 1
    )


def kept_by_rejection(p: np.ndarray, q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The chance that one of GUESSES drawn guesses is kept. p, q [k]: of the head's tokens; p may
    have more elsewhere.
    """
    p, q = np.tile(p, (DRAWS, 1)), np.tile(q, (DRAWS, 1))
    elsewhere, lost, rows = 1 - p.sum(1), np.ones(DRAWS), np.arange(DRAWS)
    kept = []
    for _ in range(min(max(GUESSES), p.shape[1])):
        guess = draw(q, rng)
        lost *= 1 - np.minimum(1, p[rows, guess] / np.maximum(q[rows, guess], 1e-300))
        kept.append(1 - lost.mean())
        p = np.maximum(0, p - q)
        left = np.maximum(p.sum(1) + elsewhere, 1e-300)
        p, elsewhere = p / left[:, None], elsewhere / left
        q[rows, guess] = 0
        q /= np.maximum(q.sum(1, keepdims=True), 1e-300)
    return np.array([kept[min(count, len(kept)) - 1] for count in GUESSES])


class Walk:
    """The base and its head along one sampled answer."""

    def __init__(self, engine: Engine, rng: np.random.Generator) -> None:
        drafter = engine.drafters["eagle"]
        assert isinstance(drafter, EagleDrafter)
        self.model, self.head, self.rng = engine.model, drafter._head, rng

    def chains(
        self, root: int, features: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(tokens of the likeliest chain and of CHAINS drawn ones, int [1 + CHAINS, DEPTH]; q of
        each; the head's tokens and q after the root, [k])."""
        proposed = self.head.extend(root, features)
        first, rows, tokens, chances = proposed, np.zeros(1 + CHAINS, int), [], []
        for level in range(DEPTH):
            q = np.exp(proposed.values.astype(np.float64))
            q = (q / q.sum(1, keepdims=True))[rows]
            places = np.concatenate([[0], draw(q[1:], self.rng)])
            tokens.append(proposed.tokens[rows, places])
            chances.append(q[np.arange(1 + CHAINS), places])
            if level < DEPTH - 1:
                parents = (
                    [-1] * len(rows)
                    if not level
                    else [(level - 1) * len(rows) + row for row in rows]
                )
                proposed = self.head.step(tokens[-1].tolist(), proposed.hidden[rows], parents)
                rows = np.arange(1 + CHAINS)
        return (
            np.array(tokens).T,
            np.array(chances).T,
            first.tokens[0],
            np.exp(first.values[0].astype(np.float64)),
        )

    def place(self, root: int, features: np.ndarray, found: list[Found]) -> None:
        """Counts what both rules would keep after the text and the root."""
        tokens, chances, head_tokens, head_q = self.chains(root, features)
        parents = [
            -1,
            *(
                0 if level == 0 else chain * DEPTH + level
                for chain in range(1 + CHAINS)
                for level in range(DEPTH)
            ),
        ]
        logits, _ = self.model.verify([root, *tokens.ravel().tolist()], parents)
        p = softmax(np.asarray(logits))
        base = p[np.array(parents[1:]).reshape(tokens.shape), tokens]
        chains = np.concatenate([base[:1], np.minimum(1, base[1:] / chances[1:])]).cumprod(1)
        likeliest = p[0, head_tokens].cumsum()[np.minimum(GUESSES, len(head_tokens)) - 1]
        rejection = kept_by_rejection(p[0, head_tokens], head_q / head_q.sum(), self.rng)
        for each in found[: 1 + int(p[0].max() < UNSURE)]:
            each.add(head_q.sum(), likeliest, rejection, chains)

    def answer(
        self, ids: list[int], limit: int, ends: frozenset[int], chunk: int, found: list[Found]
    ) -> None:
        """Samples an answer at temperature 1 and counts at each of its tokens."""
        self.model.sequence.truncate(0)
        self.head.truncate(0)
        logits = [rows for _, rows in self.model.prefill(ids, chunk)][-1][-1]
        for _ in range(limit):
            root = int(draw(softmax(logits)[None], self.rng)[0])
            if root in ends:
                break
            assert self.model.features is not None
            self.place(root, self.model.features.copy(), found)
            logits = self.model.decode(root)


def measure(bundle: Path, count: int, limit: int, seed: int) -> list[Found]:
    """Figures of all places, and of those where the base is unsure."""
    found, rng = [Found("all places"), Found("unsure places")], np.random.default_rng(seed)
    with Engine(bundle, threads=1) as engine:
        if "eagle" not in engine.drafters:
            sys.exit(
                f"{bundle} has no draft head; compile it with one: minicpm-mlc compile "
                "CHECKPOINT --draft HEAD"
            )
        walk = Walk(engine, rng)
        for ids in prompts(engine, count):
            walk.answer(ids, limit, frozenset(engine.eos_token_ids), engine.prefill_chunk, found)
    return found


def report(found: Found) -> str:
    counts = [f"1 of {count}" for count in GUESSES]
    lines = []
    for name, row in found.rows().items():
        lines.append(
            [name, *(f"{share:.4f}" for share in row["after_one_token"]), f"{row['chain']:.3f}"]
        )
    mass = found.mass / max(1, found.places)
    note = f"{found.places} places; the head's 16 tokens have {mass:.4f} of its distribution"
    return "\n".join([plain_table([[found.kind, *counts, f"of a chain of {DEPTH}"], *lines]), note])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="the demo checkpoint's bundle with a draft head")
    parser.add_argument("--count", type=int, default=5, help="prompts of each skill")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="instead of a table")
    args = parser.parse_args()
    found = measure(args.bundle, args.count, args.tokens, args.seed)
    if args.json:
        names = {"guesses": GUESSES, "depth": DEPTH}
        print(
            json.dumps(
                [
                    {"kind": each.kind, "places": each.places} | names | each.rows()
                    for each in found
                ],
                indent=1,
            )
        )
    else:
        print("\n\n".join(map(report, found)))


if __name__ == "__main__":
    main()
