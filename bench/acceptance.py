"""A record of acceptance for `minicpm-mlc bench --replay`, from published rates: chains of as many
guesses as there are rates.

    # MiniCPM4.1-8B-Eagle3 in vLLM (PR 24243), 3 guesses
    python bench/acceptance.py 0.58,0.34,0.22 > published.json
    minicpm-mlc bench BUNDLE --speculate eagle --replay published.json
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict

from minicpm_mlc.bench.replay import Record


def record(rates: list[float], rounds: int = 200) -> Record:
    """`rates`: the share of chains accepted to each depth, falling. The shares are met exactly, in
    shuffled order.
    """
    if not rates or not all(1 >= a >= b >= 0 for a, b in zip([1.0, *rates], rates, strict=False)):
        raise SystemExit(
            f"{rates} are no shares that fall with the depth; give for example 0.58,0.34,0.22"
        )
    chain = list(range(-1, len(rates)))
    counts = [round(rate * rounds) for rate in rates]
    paths = [list(range(1 + sum(number < count for count in counts))) for number in range(rounds)]
    random.Random(0).shuffle(paths)
    return Record(
        "eagle",
        [chain] * rounds,
        paths,
        len(rates),
        1,
        f"chains accepted as {', '.join(map(str, rates))}",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rates", help="the share of chains accepted to each depth, such as 0.58,0.34,0.22"
    )
    print(
        json.dumps(asdict(record([float(rate) for rate in parser.parse_args().rates.split(",")])))
    )
