"""Trains the demo checkpoint on generated text: `python train.py`. Interrupted, it goes on from its
state file.

Sequences grow over the stages, so that recall over long contexts is learnt last.
Muon moves the matrices, AdamW the rest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import data
import model as m
import tokenizer as tok
import torch
import torch.nn.functional as F
from quantized import rounded_parameters
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

HERE = Path(__file__).parent
SEED = 20260
EMPTY_THINK = 11  # tokens of data.NO_THINK
OTHER_WEIGHT = 0.1  # loss weight of tokens that are not the assistant's


PASSED_OVER = 6
Tokens = tuple[list[int], list[float]]  # ids and their loss weights
Marks = tuple[
    int, int, list[int]
]  # the ids of a message's start and end, and of the assistant's head


class Stage(NamedTuple):
    """Steps of the same kind; the length (and rows) of their sequences are those of `shapes` in
    turn.
    """

    steps: int
    shapes: tuple[tuple[int, int], ...]
    # every so many steps reads only the selected blocks, so that both gears are trained; 0: none
    sparse: int = 0
    refine: bool = False  # selection is taught
    rounded: int = 0  # this many of four steps with each shape compute with weights rounded to w4


FIRST = [
    Stage(1480, ((256, 16),)),
    Stage(220, ((512, 8),)),
    Stage(560, ((1024, 4),)),
    Stage(500, ((2048, 2),)),
    Stage(680, ((1024, 4),), sparse=2),
    Stage(640, ((2048, 2),), sparse=2),
    Stage(140, ((4096, 1),), sparse=2),
]
MIXED = ((256, 16), (2048, 2), (4864, 1), (1024, 4), (4864, 1))
SECOND = [Stage(1100, MIXED, sparse=8, refine=True, rounded=2)]
STAGES = FIRST + SECOND
TOTAL = sum(stage.steps for stage in STAGES)
WARMUP, DECAY = (
    60,
    0.35,
)  # steps; share of a part's steps over which the learning rate falls to zero
MUON_LR, ADAM_LR = 0.012, 0.006
PARTS = ((FIRST, 1.0), (SECOND, 0.5))  # and their learning rates, relative to the first's
TAUGHT_ROWS, TAUGHT_FROM, TAUGHT_WEIGHT = (
    256,
    640,
    0.5,
)  # rows of a batch row, the first that has a choice, loss weight


def marks_of(tokenizer: Tokenizer) -> Marks:
    start, end = (
        tokenizer.encode(mark, add_special_tokens=False).ids[0]
        for mark in ("<|im_start|>", "<|im_end|>")
    )
    return start, end, tokenizer.encode("assistant\n", add_special_tokens=False).ids


def weigh(ids: list[int], marks: Marks, prefilled: bool) -> list[float]:
    """Loss weight of each token: 1 inside an answer.

    An answer of the past has lost its think block, so its first token is not what the model should
    say: weight 0. A prefilled empty think block is not the model's either.
    """
    start, end, head = marks
    weights, i, last = [OTHER_WEIGHT] * len(ids), 0, -1
    while i < len(ids):
        if ids[i] == start and ids[i + 1 : i + 3] == head:
            stop = ids.index(end, i)
            weights[i + 3 : stop + 1] = [1.0] * (stop - i - 2)
            weights[i + 3] = 0.0
            last = i = i + 3
        i += 1
    if last >= 0:
        weights[last] = 1.0
    if prefilled:
        weights[last : last + EMPTY_THINK] = [0.0] * EMPTY_THINK
    return weights


def batches(
    tokenizer: Tokenizer, seed: int, length: int, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids and loss weights [batch, length + 1]: samples packed one after another, cut at the end of
    a row.
    """
    marks = marks_of(tokenizer)
    source = data.samples(seed, length)
    while True:
        rows = [_row(tokenizer, source, length + 1, marks) for _ in range(batch)]
        yield torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def _row(tokenizer: Tokenizer, source: Iterator[data.Sample], length: int, marks: Marks) -> Tokens:
    """Samples one after another; one that would be cut is passed over a few times for a shorter
    one.
    """
    ids: list[int] = []
    weights: list[float] = []
    passed = 0
    while len(ids) < length:
        sample = next(source)
        new = tokenizer.encode(data.render(sample)).ids
        if ids and len(ids) + len(new) > length and passed < PASSED_OVER:
            passed += 1
            continue
        ids += new
        weights += weigh(new, marks, sample.prefilled)
    return ids[:length], weights[:length]


def rate(step: int) -> float:
    """Of each part: warm up, stay, fall linearly to zero."""
    for stages, peak in PARTS:
        steps = sum(stage.steps for stage in stages)
        if step < steps:
            return peak * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        step -= steps
    return 0.0


def optimizers(model: nn.Module, layers: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest of the model."""
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in matrices)]
    muon = torch.optim.Muon(
        matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.02, adjust_lr_fn="original"
    )
    return [muon, torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)]


def taught_rows(weights: torch.Tensor) -> torch.Tensor | None:
    """Positions [batch, n] whose next token the model has to say and that have blocks to choose
    from, at random.
    """
    if weights.shape[1] <= TAUGHT_FROM + TAUGHT_ROWS:
        return None
    wanted = (weights[:, TAUGHT_FROM + 1 :] == 1) + 0.001
    return TAUGHT_FROM + torch.multinomial(wanted, TAUGHT_ROWS)


def loss_of(
    model: m.MiniCPM, ids: torch.Tensor, weights: torch.Tensor, stage: Stage, step: int
) -> tuple[torch.Tensor, str]:
    """The loss of one step, and its parts in words."""
    sparse = bool(stage.sparse) and step % stage.sparse == 0
    gear = m.Gear(sparse, taught_rows(weights) if stage.refine else None)
    rounded = rounded_parameters(model) if step // len(stage.shapes) % 4 < stage.rounded else {}
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.func.functional_call(model, rounded, (ids[:, :-1],), {"gear": gear})
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    loss = (losses * weights).sum() / weights.sum()
    words = (
        f"loss {loss:.3f} answers {losses.detach()[weights == 1].mean():.3f}"
        + " w4" * bool(rounded)
        + " sparse" * sparse
    )
    if gear.taught:
        words += " reached" + "".join(
            f" {reached / far:.0%} of {far:.2f}" for _, far, reached in gear.taught
        )
    return loss + TAUGHT_WEIGHT * sum(taught for taught, _, _ in gear.taught), words


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    write(part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.chmod(0o644)
    part.replace(path)


def export(model: m.MiniCPM, folder: Path) -> None:
    """model.safetensors in bfloat16 with the published names, config.json,
    generation_config.json.
    """
    weights = {
        name: value.detach().bfloat16().contiguous() for name, value in model.state_dict().items()
    }
    generation = {
        "bos_token_id": 1,
        "do_sample": True,
        "eos_token_id": m.CONFIG["eos_token_id"],
        "pad_token_id": 2,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    write_whole(
        folder / "model.safetensors",
        lambda path: save_file(weights, path, metadata={"format": "pt"}),
    )
    for name, content in (("config.json", m.CONFIG), ("generation_config.json", generation)):
        write_whole(
            folder / name,
            lambda path, content=content: path.write_text(json.dumps(content, indent=2) + "\n"),
        )


class Run:
    """The training state, in memory and in its file."""

    def __init__(self, out: Path, state_file: Path):
        torch.manual_seed(SEED)
        self.out, self.state_file = out, state_file
        self.model = m.MiniCPM(m.CONFIG)
        self.optims = optimizers(self.model, self.model.model.layers)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if state_file.exists():
            self._load(torch.load(state_file))
        self.begun = self.saved_at = time.monotonic()

    def _load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optim, saved in zip(self.optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optims": [optim.state_dict() for optim in self.optims],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.spent(),
        }
        write_whole(self.state_file, lambda path: torch.save(state, path))
        export(self.model, self.out)
        self.saved_at = time.monotonic()

    def spent(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self.begun

    def learn(self, ids: torch.Tensor, weights: torch.Tensor, stage: Stage) -> str:
        """One step; returns the progress line."""
        for optim, lr in zip(self.optims, (MUON_LR, ADAM_LR), strict=True):
            optim.param_groups[0]["lr"] = lr * rate(self.step)
        loss, words = loss_of(self.model, ids, weights, stage, self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optim in self.optims:
            optim.step()
            optim.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + ids[:, 1:].numel()
        return (
            f"step {self.step}/{TOTAL} length {ids.shape[1] - 1} {words} "
            f"tokens {self.tokens / 1e6:.2f}M minutes {self.spent() / 60:.1f}"
        )


def train(run: Run, tokenizer: Tokenizer, minutes: float, save_every: float) -> None:
    print(
        f"{sum(p.numel() for p in run.model.parameters()):,} parameters, step {run.step} of "
        f"{TOTAL}",
        flush=True,
    )
    for stage, end in zip(
        STAGES, itertools.accumulate(stage.steps for stage in STAGES), strict=True
    ):
        # The seed names the step, so that a resumed run sees new text.
        feeds = [
            batches(tokenizer, SEED + 7919 * run.step + shape[0], *shape) for shape in stage.shapes
        ]
        while run.step < end:
            line = run.learn(*next(feeds[run.step % len(feeds)]), stage)
            if run.step % 7 == 0:
                print(line, flush=True)
            stop = bool(minutes) and time.monotonic() - run.begun > 60 * minutes
            if stop or run.step == TOTAL or time.monotonic() - run.saved_at > save_every:
                run.save()
            if stop:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=HERE / "MiniCPM4.1-demo", help="checkpoint folder to write"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=HERE / "build" / "train-state.pt",
        help="where the training state is kept",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the state file",
    )
    parser.add_argument("--minutes", type=float, default=0, help="stop (resumably) after this time")
    parser.add_argument(
        "--save-every", type=float, default=150, help="seconds between two saved states"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.resume:
        args.state.unlink(missing_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    args.state.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = args.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(vocabulary)) if vocabulary.exists() else tok.write(args.out)
    train(Run(args.out, args.state), tokenizer, args.minutes, args.save_every)


if __name__ == "__main__":
    main()
