"""Accuracy of the demo model per skill, on held-out prompts: `python evaluate.py [--bundle DIR]`.

Without --bundle the checkpoint is computed by torch (float32); with it the compiled bundle answers.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import data

HERE = Path(__file__).parent
RECALL_LENGTHS = (256, 512, 1024, 2048, 4096)
TOKENS_PER_SENTENCE = 15
Answer = Callable[[str, int], str]


def _arithmetic(op: str, think: bool) -> Callable[[random.Random], data.Sample]:
    def make(rng: random.Random) -> data.Sample:
        turn = data.arithmetic(rng, held=True, think=think, op=op)
        return data.Sample((turn,), must=(turn.answer,))

    return make


def _recall(tokens: int) -> Callable[[random.Random], data.Sample]:
    """One fact to find among 8 per thousand tokens (at least 3), somewhere in a text of that many tokens."""

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
    """The rendered conversation up to its last answer; without thinking, the empty think block is already there."""
    text = data.render(sample)
    head = text[: text.rindex("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")]
    return head if sample.turns[-1].think is not None else head + data.NO_THINK


def right(sample: data.Sample, answer: str) -> bool:
    said = answer.split("</think>")[-1]
    return all(part in said for part in sample.must)


def accuracy(answer: Answer, skill: str, count: int) -> float:
    rng = random.Random(f"evaluate {skill}")
    samples = [SKILLS[skill](rng) for _ in range(count)]
    return sum(right(sample, answer(prompt_of(sample), 160)) for sample in samples) / count


def from_checkpoint(folder: Path) -> Answer:
    import model
    from tokenizers import Tokenizer

    tokenizer, network = Tokenizer.from_file(str(folder / "tokenizer.json")), model.load(folder)
    return lambda prompt, limit: tokenizer.decode(network.greedy(tokenizer.encode(prompt).ids, limit))


def from_bundle(folder: Path, attention: str) -> Answer:
    import minicpm_mlc

    engine = minicpm_mlc.Engine(folder, attention=attention)

    def answer(prompt: str, limit: int) -> str:
        return engine.generate(engine.tokenize(prompt), max_tokens=limit, temperature=0, stream=False)

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "MiniCPM4.1-demo")
    parser.add_argument("--bundle", type=Path, help="compiled bundle to ask instead")
    parser.add_argument(
        "--attention",
        choices=["auto", "dense", "sparse"],
        default="auto",
        help="of the bundle: auto is sparse from dense_len on",
    )
    parser.add_argument("--per-skill", type=int, default=100, help="prompts per skill")
    parser.add_argument("--skill", action="append", choices=list(SKILLS), help="only this one (repeatable)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    answer = from_bundle(args.bundle, args.attention) if args.bundle else from_checkpoint(args.checkpoint)
    table: dict[str, float] = {}
    for skill in args.skill or SKILLS:
        begun = time.monotonic()
        table[skill] = accuracy(answer, skill, args.per_skill)
        if not args.json:
            print(
                f"{skill:26} {table[skill]:6.1%}   {args.per_skill} prompts, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
    if args.json:
        json.dump(table, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
