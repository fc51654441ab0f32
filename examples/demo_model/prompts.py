"""Held-out prompts as JSON lines, for `minicpm-mlc bench --prompt-file`: `python prompts.py 5 >
prompts.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random

import data
from evaluate import SKILLS


def prompts(count: int) -> list[list[dict[str, str]]]:
    """`count` conversations of each skill that the accuracy table has, up to the assistant's last
    turn.
    """
    made = [
        make(random.Random(f"prompt {skill} {i}"))
        for skill, make in SKILLS.items()
        for i in range(count)
    ]
    return [data.messages(sample)[:-1] for sample in made]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="prompts of each skill")
    for messages in prompts(parser.parse_args().count):
        print(json.dumps(messages))
