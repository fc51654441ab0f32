"""Greedy answers with speculation against plain decoding, token by token, on the demo model's
held-out prompts.

    python bench/speculation_identity.py

Compiles what --work lacks: the demo with its EAGLE-3 head, and with a random EAGLE-2 head, whole
and cut by FR-Spec, each in w4 (int8 activations, where the processor multiplies int8) and in f32.
Each prompt draws its bundle, gear, drafter, tree and skill, each on its own, from one seeded
generator. Half of the prompts are fitted to end just below `dense_len`, so that the gear shifts in
the answer. The draft model is the demo in the other scheme.

An answer must have the tokens, the text and the end of plain decoding's. Where it hasn't, plain
logits at the first difference tell a tie (docs/architecture.md, Speculation) from a mistake. After
an answer that has, one plain step must give the logits of plain decoding ("drift" is the largest
difference), which shows what the cache holds. A mistake makes the exit status 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from demo import HEAD, SKILLS, compiled, data, prompt_of

from minicpm_mlc import Engine
from minicpm_mlc.base.text import plain_table
from minicpm_mlc.ops.formats.weights import SCHEMES

HEADS = {
    "eagle3": ["--draft", str(HEAD)],
    "eagle2": ["--draft", "random-eagle2"],
    "eagle2-frspec": ["--draft", "random-eagle2", "--frspec", str(HEAD / "freq_512.json")],
}
OTHER = {"w4": "f32", "f32": "w4"}  # scheme -> its draft model's
GEARS = {"dense": 1, "sparse": 1, "crossing": 2}  # how often each is drawn, relative to the others
DRAFTERS = ("eagle", "ngram", "draft", "auto")
LARGEST = 60  # nodes of a tree
DEEPEST = WIDEST = 8  # levels of a tree, guesses after a node
# share of prompts that ask for a tree size, and of those that ask for levels; the others leave it
# to the engine
CHOSEN = 0.75
LONG = {
    "recall, 2048 tokens": 0.2,
    "recall, 4096 tokens": 0.2,
}  # drawn less often, as reading them takes long
MARGIN = 10  # tokens before `dense_len` where a prompt that crosses it ends, at most


@dataclass(frozen=True)
class Case:
    """One prompt and how it is answered."""

    number: int
    head: str
    scheme: str
    gear: str
    drafter: str
    tree_size: int | None
    draft_depth: int | None
    draft_top_k: int | None
    skill: str

    @property
    def row(self) -> tuple[str, str, str]:
        return f"{self.head} {self.scheme}", self.drafter, self.gear

    @property
    def speculation(self) -> dict[str, Any]:
        """Options of the call."""
        return {"speculate": self.drafter} | {
            name: getattr(self, name) for name in ("tree_size", "draft_depth", "draft_top_k")
        }


@dataclass
class Differences:
    """What became of the prompts of one bundle, drafter and gear."""

    prompts: int = 0
    crossed: int = 0  # answers in which the gear shifted
    trees: int = 0
    nodes: int = 0
    accepted: int = 0
    different: int = 0
    ties: int = 0
    drift: float = 0.0  # the largest difference of logits after an answer

    @property
    def accept_length(self) -> float:
        return 1 + self.accepted / self.trees if self.trees else 0.0

    def cells(self) -> list[str]:
        means = [self.nodes / max(1, self.trees), self.accept_length]
        counts = [self.prompts, self.crossed, self.trees]
        return [
            *map(str, counts),
            *(f"{mean:.2f}" for mean in means),
            str(self.different),
            str(self.ties),
            f"{self.drift:.1e}",
        ]


@dataclass(frozen=True)
class Answer:
    """`tokens` are those in the cache: a last one that no token followed isn't among them."""

    text: str
    tokens: list[int]
    finish: str | None
    after: np.ndarray = field(
        compare=False, repr=False
    )  # logits float32 [vocab] of one plain step more


@dataclass
class Engines:
    """The demo's engines by head, scheme and gear, compiled and opened when first asked for."""

    work: Path
    threads: int | None
    opened: dict[tuple[str, str, str], Engine] = field(default_factory=dict)

    def get(self, head: str, scheme: str, gear: str) -> Engine:
        if (head, scheme, gear) not in self.opened:
            attention = "auto" if gear == "crossing" else gear
            draft = bundle("eagle3", OTHER[scheme], self.work)
            engine = Engine(
                bundle(head, scheme, self.work),
                attention=attention,
                draft=draft,
                threads=self.threads,
            )
            self.opened[head, scheme, gear] = engine
        return self.opened[head, scheme, gear]


def bundle(head: str, scheme: str, work: Path) -> Path:
    return compiled(work / f"demo-{head}-{scheme}", *HEADS[head], "--quant", scheme)


def cases(count: int, seed: int) -> Iterator[Case]:
    """Everything is drawn on its own, so that any value meets any other."""
    rng = random.Random(f"identity {seed}")
    for number in range(count):
        yield Case(
            number,
            rng.choice(list(HEADS)),
            rng.choice(list(OTHER)),
            rng.choices(list(GEARS), list(GEARS.values()))[0],
            rng.choice(DRAFTERS),
            rng.randint(1, LARGEST) if rng.random() < CHOSEN else None,
            *drawn_shape(rng),
            rng.choices(list(SKILLS), [LONG.get(skill, 1.0) for skill in SKILLS])[0],
        )


def drawn_shape(rng: random.Random) -> tuple[int, int] | tuple[None, None]:
    """The depth and width of a tree; None where they are not given."""
    if rng.random() < CHOSEN:
        return rng.randint(1, DEEPEST), rng.randint(1, WIDEST)
    return None, None


def prompt(engine: Engine, case: Case, seed: int) -> list[int]:
    """Token ids of a held-out prompt, the same for every way to answer it."""
    rng = random.Random(f"identity {seed} prompt {case.number}")
    ids = engine.tokenize(prompt_of(SKILLS[case.skill](rng)))
    if case.gear != "crossing":
        return ids
    dense_len = engine.gears.dense_len
    assert dense_len
    return fitted(
        ids,
        dense_len - rng.randint(1, MARGIN),
        engine.tokenize(data.document(rng, [], dense_len // 8), bos=False),
    )


def fitted(ids: list[int], length: int, filler: list[int]) -> list[int]:
    """The prompt with a text put before it, or with its beginning cut off; BOS stays first."""
    missing = length - len(ids)
    return [ids[0], *filler[:missing], *ids[1:]] if missing >= 0 else [ids[0], *ids[1 - length :]]


def answer(engine: Engine, ids: list[int], tokens: int, **options: Any) -> Answer:
    text = engine.generate(ids, max_tokens=tokens, temperature=0, **options)
    cached, finish = engine.cached_tokens, engine.stats.finish_reason
    after = engine.decode(ids[0]).copy()
    engine.truncate(len(cached))
    return Answer(text, cached[len(ids) :], finish, after)


def rounding(engine: Engine) -> float:
    """How far a logit may be moved by verifying trees instead of decoding (docs/architecture.md,
    Speculation).
    """
    integer_weights = SCHEMES[engine.manifest.scheme].takes_int8
    return 1e-3 if integer_weights and engine.manifest.activations == "f32" else 0.0


def is_tie(engine: Engine, ids: list[int], plain: list[int], other: list[int]) -> bool:
    """Whether rounding may have exchanged the first tokens that differ."""
    same = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if same is None:
        return False
    engine.truncate(0)
    logits = engine.prefill(ids)
    for token in plain[:same]:
        logits = engine.decode(token)
    return abs(float(logits[plain[same]] - logits[other[same]])) < 2 * rounding(engine)


def run(case: Case, engine: Engine, row: Differences, tokens: int, seed: int) -> None:
    """Answers one prompt plainly and with speculation."""
    ids = prompt(engine, case, seed)
    answer(engine, ids, 1, speculate="off")  # both answers begin with the same cache
    plain = answer(engine, ids, tokens, speculate="off")
    other = answer(engine, ids, tokens, **case.speculation)
    figures, dense_len = engine.stats.speculation, engine.gears.dense_len or 0
    drift = float(np.abs(plain.after - other.after).max())
    row.prompts += 1
    row.crossed += case.gear == "crossing" and len(ids) < dense_len <= len(ids) + len(other.tokens)
    row.trees += figures.rounds
    row.nodes += figures.nodes
    row.accepted += figures.accepted
    if plain == other:
        row.drift = max(row.drift, drift)
        tie, right = False, drift <= rounding(engine)
    else:
        tie = right = is_tie(engine, ids, plain.tokens, other.tokens)
    row.ties += tie
    row.different += not right
    if tie or not right:
        name = "tie" if tie else "DIFFERENT"
        print(
            f"{name}, drift {drift:.1e}: {case}\n  {plain}\n  became {other}",
            file=sys.stderr,
            flush=True,
        )


def total(rows: list[Differences]) -> Differences:
    counts = [sum(getattr(row, f.name) for row in rows) for f in fields(Differences)[:-1]]
    return Differences(*counts, drift=max((row.drift for row in rows), default=0.0))


def check(args: argparse.Namespace) -> int:
    engines, start = Engines(args.work, args.threads), time.monotonic()
    rows: dict[tuple[str, str, str], Differences] = collections.defaultdict(Differences)
    for case in cases(args.prompts, args.seed):
        run(
            case,
            engines.get(case.head, case.scheme, case.gear),
            rows[case.row],
            args.tokens,
            args.seed,
        )
        if (case.number + 1) % 50 == 0:
            seconds = time.monotonic() - start
            print(
                f"{case.number + 1} of {args.prompts} prompts, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    report(rows, args.json)
    return 1 if total(list(rows.values())).different else 0


def report(rows: dict[tuple[str, str, str], Differences], as_json: bool) -> None:
    if as_json:
        keys = ("bundle", "drafter", "gear")
        found = [(dict(zip(keys, key, strict=True)), row) for key, row in sorted(rows.items())]
        print(
            json.dumps(
                [names | vars(row) | {"accept_length": row.accept_length} for names, row in found],
                indent=1,
            )
        )
        return
    counts = [
        "prompts",
        "crossed",
        "trees",
        "nodes",
        "accept length",
        "differences",
        "ties",
        "drift",
    ]
    head = ["bundle", "drafter", "gear", *counts]
    lines = [[*key, *row.cells()] for key, row in sorted(rows.items())]
    print(plain_table([head, *lines, ["all", "", "", *total(list(rows.values())).cells()]]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where the bundles are kept"
    )
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=160, help="longest answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="instead of a table")
    sys.exit(check(parser.parse_args()))


if __name__ == "__main__":
    main()
