"""Accuracy of the demo model per skill, on held-out prompts: `python evaluate.py [--bundle DIR]`.

Without --bundle the checkpoint is computed by torch (float32); with it the compiled bundle answers.
`--needle` is recall at 1, 2, 4 and 8 times the bundle's dense_len, dense and sparse side by side.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import data

if TYPE_CHECKING:
    from minicpm_mlc import Engine

HERE = Path(__file__).parent
RECALL_LENGTHS = (256, 512, 1024, 2048, 4096)
NEEDLE_TIMES = (1, 2, 4, 8)  # dense_len
MAX_ANSWER = 160  # tokens
TOKENS_PER_SENTENCE = 15
Answer = Callable[[str, int], str]


def _arithmetic(op: str, think: bool) -> Callable[[random.Random], data.Sample]:
    def make(rng: random.Random) -> data.Sample:
        turn = data.arithmetic(rng, held=True, think=think, op=op)
        return data.Sample((turn,), must=(turn.answer,))

    return make


def _recall(tokens: int) -> Callable[[random.Random], data.Sample]:
    """One fact to find among 8 per thousand tokens (at least 3), somewhere in a text of that many
    tokens.
    """

    def make(rng: random.Random) -> data.Sample:
        count = max(3, tokens // 128)
        sentences = max(1, round((tokens - 20) / TOKENS_PER_SENTENCE) - count)
        return data.recall(rng, True, sentences, count, questions=1)

    return make


def _one_turn(kind: Callable) -> Callable[[random.Random], data.Sample]:
    def make(rng: random.Random) -> data.Sample:
        turn, must = kind(rng, True)
        return data.Sample((turn,), must=must)

    return make


SKILLS: dict[str, Callable[[random.Random], data.Sample]] = {
    "add, thinking": _arithmetic("+", True),
    "subtract, thinking": _arithmetic("-", True),
    "add, no thinking": _arithmetic("+", False),
    "subtract, no thinking": _arithmetic("-", False),
    **{f"recall, {tokens} tokens": _recall(tokens) for tokens in RECALL_LENGTHS},
    "recall in a conversation": lambda rng: data.conversation(rng, True, rng.randint(4, 10)),
    "project questions": _one_turn(data.about),
    "refusals": _one_turn(data.refuse),
}


def prompt_of(sample: data.Sample) -> str:
    """The rendered conversation up to its last answer; without thinking, the empty think block is
    already there.
    """
    text = data.render(sample)
    head = text[: text.rindex("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")]
    return head if sample.turns[-1].think is not None else head + data.NO_THINK


def right(sample: data.Sample, answer: str) -> bool:
    said = answer.split("</think>")[-1]
    return all(part in said for part in sample.must)


def samples_of(
    skill: str, make: Callable[[random.Random], data.Sample], count: int
) -> list[data.Sample]:
    rng = random.Random(f"evaluate {skill}")
    return [make(rng) for _ in range(count)]


def accuracy(answer: Answer, samples: list[data.Sample]) -> float:
    return sum(right(sample, answer(prompt_of(sample), MAX_ANSWER)) for sample in samples) / len(
        samples
    )


def from_checkpoint(folder: Path) -> Answer:
    import model
    from tokenizers import Tokenizer

    tokenizer, network = Tokenizer.from_file(str(folder / "tokenizer.json")), model.load(folder)
    return lambda prompt, limit: tokenizer.decode(
        network.greedy(tokenizer.encode(prompt).ids, limit)
    )


def from_engine(engine: Engine) -> Answer:
    return lambda prompt, limit: engine.generate(
        engine.tokenize(prompt), max_tokens=limit, temperature=0, stream=False
    )


def from_bundle(folder: Path, attention: str) -> Answer:
    from minicpm_mlc import Engine

    return from_engine(Engine(folder, attention=attention))


def needles(folder: Path, count: int) -> list[dict[str, float]]:
    """Per length: prompts' mean tokens, recall in each gear, the blocks that a sparse row reads and
    those there are.
    """
    from minicpm_mlc import Engine
    from minicpm_mlc.base.errors import EngineError
    from minicpm_mlc.bundle.manifest import Manifest

    dense_len = Manifest.load(folder).dense_len
    if dense_len is None:
        raise EngineError(
            f"--needle compares two gears, and {folder} has no sparse one; compile it without "
            "--attention dense"
        )
    rows: dict[int, dict[str, float]] = {}
    for gear in ("dense", "sparse"):
        with Engine(folder, attention=gear) as engine:
            for times in NEEDLE_TIMES:
                length = times * dense_len
                samples = samples_of(f"recall, {length} tokens", _recall(length), count)
                row = rows.setdefault(times, {"dense_lens": times})
                row["tokens"] = round(
                    sum(len(engine.tokenize(prompt_of(sample))) for sample in samples) / count
                )
                row[gear] = accuracy(from_engine(engine), samples)
                row["blocks_read"], row["blocks"] = engine.gears.blocks(int(row["tokens"]))
    return list(rows.values())


def needle_table(rows: list[dict[str, float]]) -> str:
    lines = [
        "| tokens (x dense_len) | dense | sparse | blocks read by a sparse row |",
        "|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['tokens']} ({row['dense_lens']}x) | {row['dense']:.1%} | {row['sparse']:.1%} "
            f"| {row['blocks_read']} of {row['blocks']} |"
        )
    return "\n".join(lines)


def skills(answer: Answer, names: list[str], count: int, quiet: bool) -> dict[str, float]:
    table: dict[str, float] = {}
    for skill in names:
        begun = time.monotonic()
        table[skill] = accuracy(answer, samples_of(skill, SKILLS[skill], count))
        if not quiet:
            print(
                f"{skill:26} {table[skill]:6.1%}   {count} prompts, "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=HERE / "MiniCPM4.1-demo")
    parser.add_argument("--bundle", type=Path, help="compiled bundle to ask instead")
    parser.add_argument(
        "--attention",
        choices=["auto", "dense", "sparse"],
        default="auto",
        help="of the bundle: auto is sparse from dense_len on",
    )
    parser.add_argument("--per-skill", type=int, default=100, help="prompts per skill or length")
    parser.add_argument(
        "--skill", action="append", choices=list(SKILLS), help="only this one (repeatable)"
    )
    parser.add_argument(
        "--needle", action="store_true", help="recall by length in both gears of a bundle"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.needle and not args.bundle:
        parser.error("--needle compares the gears of a compiled bundle: give --bundle")
    if args.needle:
        from minicpm_mlc.base.errors import MiniCPMError

        try:
            found = needles(args.bundle, args.per_skill)
        except MiniCPMError as error:
            parser.error(str(error))
        print(json.dumps(found, indent=2) if args.json else needle_table(found))
        return
    answer = (
        from_bundle(args.bundle, args.attention)
        if args.bundle
        else from_checkpoint(args.checkpoint)
    )
    table = skills(answer, args.skill or list(SKILLS), args.per_skill, quiet=args.json)
    if args.json:
        json.dump(table, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
