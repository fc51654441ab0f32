"""native/engine's sampler, for this machine and as WebAssembly: from the same logits it draws the
tokens that Python's draws with NumPy's numbers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO
from engine_process import built
from web_process import web_probe

from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.sampler import Sampler

PROBE = Path(__file__).with_name("engine_probe.cc")
STEPS = 60
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1, "seed": 0},
    {"temperature": 2.5, "seed": 2**63 - 1},
    {"temperature": 0.7, "top_p": 0.9, "seed": 3},
    {"temperature": 1.5, "top_p": 0.99, "min_p": 0.001, "seed": 4},
    {"temperature": 0.9, "top_k": 7, "seed": 2**32},
    {"temperature": 1.1, "top_k": 50, "top_p": 0.8, "seed": 6},
    {"temperature": 1, "repetition_penalty": 1.3, "presence_penalty": 0.5, "seed": 7},
    {"temperature": 0.8, "top_p": 0.95, "frequency_penalty": 0.2, "seed": 8},
    {"temperature": 0, "repetition_penalty": 1.5, "seed": 9},
    {"temperature": 1e-3, "top_p": 0.9, "seed": 10},
]


def asked(command: list[str], lines: list[str]) -> list[str]:
    """The probe's answers."""
    said = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def logits(draw: np.random.Generator, vocab: int) -> np.ndarray:
    """Steps of logits, float32 [STEPS, vocab]: even and peaked ones, and many that are equal."""
    peaks = draw.choice([0.5, 3.0, 12.0], (STEPS, 1))
    steps = draw.standard_normal((STEPS, vocab)) * peaks
    steps[::3] = np.round(steps[::3])
    return steps.astype(np.float32)


def python(options: dict[str, Any], prompt: list[int], steps: np.ndarray) -> list[int]:
    sampler = Sampler(SamplingParams(**options), steps.shape[1], prompt)
    ids = []
    for row in steps:
        ids.append(sampler.sample(row))
        sampler.accept(ids[-1])
    return ids


@pytest.mark.parametrize("where", ["here", "web"])
def test_the_same_tokens_of_the_same_logits(where: str) -> None:
    command = [str(built(PROBE))] if where == "here" else web_probe()
    draw = np.random.default_rng(0)
    lines, expected = [], []
    for options in SAMPLINGS:
        for vocab in (1, 17, 900):
            steps, prompt = logits(draw, vocab), draw.integers(0, vocab, 9).tolist()
            given = {"top_p": 1.0, **options}
            said = steps.astype(">f4").tobytes().hex()
            lines.append(f"draw\t{json.dumps(given | {'vocab': vocab})}\t{prompt}\t{said}")
            expected.append(python(given, prompt, steps))
    drawn = [[int(word) for word in line.split()] for line in asked(command, lines)]
    assert drawn == expected


@pytest.mark.campaign
@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_a_pages_logits_differ_by_rounding(activations: str, compiled: Callable[..., Path]) -> None:
    """Other vectors sum in another order. A rounding that falls to the other side moves them more:
    not after these prompts, sooner or later in an answer. So texts of a seed can differ.
    """
    options: dict[str, Any] = {"prefill_chunk": 64, "attention": "dense"}
    options["activations"] = activations
    web, native = compiled(DEMO, device="web", **options), compiled(DEMO, **options)
    linked = Manifest.load(web).symbol_prefix
    differences = []
    for ids in ([5], [1, *range(100, 108)], [1, *range(100, 160)]):
        (page,) = asked(web_probe(web), [f"logits\t/bundle\t{linked}\t{ids}"])
        (here,) = asked([str(built(PROBE))], [f"logits\t{native}\t\t{ids}"])
        both = (np.frombuffer(bytes.fromhex(text), ">f4") for text in (page, here))
        first, second = (logits.astype(np.float64) for logits in both)
        assert first.argmax() == second.argmax()
        differences.append(abs(first - second).max())
    print(f"{activations}: at most {max(differences):.1e}")
    assert max(differences) < 1e-4
