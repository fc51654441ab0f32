"""Trains the demo model's EAGLE-3 draft head on the model's own answers: `python train_eagle3.py
--bundle BUNDLE`.

The bundle answers training prompts; the head learns the base model's distribution of the next
tokens at every depth of a chain of guesses, reading its own outputs from the second on (EAGLE-3's
training-time test). `--evaluate` prints the accept length of greedy chains on held-out prompts
instead.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import data
import eagle3
import evaluate
import model as m
import torch
import torch.nn.functional as F
from quantized import rounded_parameters
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from train import marks_of, optimizers, weigh, write_whole

HERE = Path(__file__).parent
SEED = 5501
FEATURE_LAYERS = (1, 2, 3)  # the hidden states that enter these layers of the base
DEPTHS = 5
DEPTH_WEIGHT = 0.8  # of a depth's loss, relative to the one before
VOCABULARY = 512
SHAPES = ((256, 8), (1024, 2))  # length and rows of the sequences, in turn
STEPS, WARMUP, DECAY, MUON_LR, ADAM_LR = 1200, 40, 0.5, 0.01, 0.003
SHARES = {256: 0.8, 1024: 0.2}  # of the prompts: data.samples of that many tokens
END = "<|im_end|>"


def head_config(base: dict) -> dict:
    """As published for MiniCPM4.1-8B-Eagle3, with the base's sizes; the layers are named as vLLM's
    EAGLE-3 configs do.
    """
    same = [
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
    ]
    same += [
        "num_attention_heads",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "rope_scaling",
        "rope_theta",
    ]
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **{key: base[key] for key in same},
        "draft_vocab_size": VOCABULARY,
        "eagle_aux_hidden_state_layer_ids": list(FEATURE_LAYERS),
        "initializer_range": 0.02,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": base["vocab_size"],
    }


# ---- the base model's own answers


def answered(bundle: Path, count: int, seed: int, report: bool = True) -> list[tuple[str, str]]:
    """(prompt, answer with its end token) for that many training prompts; half are greedy, half
    sampled.
    """
    from minicpm_mlc import Engine

    rng = random.Random(seed)
    sources = {length: data.samples(seed + length, length) for length in SHARES}
    pairs = []
    with Engine(bundle) as engine:
        while len(pairs) < count:
            sample = next(sources[rng.choices(list(SHARES), list(SHARES.values()))[0]])
            if not sample.turns:
                continue
            prompt = evaluate.prompt_of(sample)
            answer = engine.generate(
                engine.tokenize(prompt),
                max_tokens=evaluate.MAX_ANSWER,
                stream=False,
                temperature=0.6 * (len(pairs) % 2),
                top_p=0.95,
                seed=len(pairs),
            )
            pairs.append((prompt, answer + END))
            if report and len(pairs) % 1000 == 0:
                print(f"{len(pairs)} of {count} answers", flush=True)
    return pairs


def frequencies(tokenizer: Tokenizer, answers: list[str]) -> list[int]:
    """Token ids of the answers, the most frequent first: the list that FR-Spec takes."""
    counted = Counter(
        i for answer in answers for i in tokenizer.encode(answer, add_special_tokens=False).ids
    )
    return [token for token, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


Batch = tuple[Tensor, Tensor]


def batches(
    tokenizer: Tokenizer, texts: list[str], length: int, rows: int, seed: int
) -> Iterator[Batch]:
    """Token ids and loss weights, both [rows, length], of the texts in random order, one after
    another; endless.
    """
    rng = random.Random(seed)
    marks = marks_of(tokenizer)
    fitting = [ids for ids in (tokenizer.encode(text).ids for text in texts) if len(ids) <= length]
    while True:
        ids, weights = [], []
        for _ in range(rows):
            row: list[int] = []
            while len(row) < length:
                row += rng.choice(fitting)
            ids.append(row[:length])
            weights.append(weigh(row, marks, False)[:length])
        yield torch.tensor(ids), torch.tensor(weights)


# ---- the head beside the base


def run_base(base: m.MiniCPM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Features [batch, n, 3 hidden] and logits [batch, n, vocab]."""
    kept: dict[int, Tensor] = {}
    stops = [*base.model.layers, base.model.norm]
    hooks = [
        stops[i].register_forward_pre_hook(lambda _, inputs, i=i: kept.update({i: inputs[0]}))
        for i in FEATURE_LAYERS
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = base(ids)
    for hook in hooks:
        hook.remove()
    return torch.cat([kept[i] for i in FEATURE_LAYERS], -1).float(), logits.float()


def drafts(
    base: m.MiniCPM, head: eagle3.Eagle3, ids: Tensor, features: Tensor, depths: int
) -> list[Tensor]:
    """Draft logits of each depth, [batch, n - 2, draft vocabulary]: row i predicts token i + 2."""
    embedded = F.embedding(ids[:, 1:-1], base.model.embed_tokens.weight).detach()
    with torch.autocast("cpu", torch.bfloat16):
        return head(features[:, :-2], embedded, depths)


def loss_of(
    base: m.MiniCPM, head: eagle3.Eagle3, ids: Tensor, weights: Tensor
) -> tuple[Tensor, list[float]]:
    """Cross-entropy to the base's distribution over the draft vocabulary, and each depth's share of
    right guesses.
    """
    features, logits = run_base(base, ids)
    wanted = logits[:, 1:-1][..., head.t2d].softmax(-1)
    # A row counts by the mass that the draft vocabulary can name.
    named = logits[:, 1:-1].softmax(-1)[..., head.t2d].sum(-1)
    loss, hits = torch.zeros(()), []
    for depth, guess in enumerate(drafts(base, head, ids, features, DEPTHS)):
        counts = (weights[:, 2:] * named)[:, depth:]
        losses = -(wanted * guess.float().log_softmax(-1)).sum(-1)[:, depth:]
        loss = loss + DEPTH_WEIGHT**depth * (losses * counts).sum() / counts.sum()
        answers = weights[:, 2 + depth :] == 1
        hits.append(
            (guess.argmax(-1) == wanted.argmax(-1))[:, depth:][answers].float().mean().item()
        )
    return loss, hits


def train(
    base: m.MiniCPM, tokenizer: Tokenizer, texts: list[str], tokens: Tensor, steps: int
) -> eagle3.Eagle3:
    torch.manual_seed(SEED)
    head = eagle3.Eagle3(head_config(base.config), tokens).train()
    optims = optimizers(head, head.midlayer)
    feeds = [batches(tokenizer, texts, *shape, SEED) for shape in SHAPES]
    rounded = {name: value.detach() for name, value in rounded_parameters(base).items()}
    stored = base.state_dict()
    begun = time.monotonic()
    for step in range(steps):
        base.load_state_dict(rounded if step // len(feeds) % 2 else stored, strict=False)
        rate = min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        for optim, lr in zip(optims, (MUON_LR, ADAM_LR), strict=True):
            optim.param_groups[0]["lr"] = lr * rate
        loss, hits = loss_of(base, head, *next(feeds[step % len(feeds)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        if step % 25 < len(feeds):
            right = " ".join(f"{hit:.0%}" for hit in hits)
            minutes = (time.monotonic() - begun) / 60
            print(
                f"step {step}/{steps} loss {loss:.3f} right {right} minutes {minutes:.1f}",
                flush=True,
            )
    base.load_state_dict(stored)
    return head


def export(head: eagle3.Eagle3, ranked: list[int], folder: Path) -> None:
    """model.safetensors in bfloat16 with the published names, config.json, and the ranked token
    list of FR-Spec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        k: (v.bfloat16() if v.is_floating_point() else v).contiguous()
        for k, v in head.state_dict().items()
    }
    write_whole(
        folder / "model.safetensors",
        lambda path: save_file(weights, path, metadata={"format": "pt"}),
    )
    write_whole(
        folder / "config.json",
        lambda path: path.write_text(json.dumps(head.config, indent=2) + "\n"),
    )
    write_whole(
        folder / f"freq_{len(ranked)}.json", lambda path: path.write_text(json.dumps(ranked) + "\n")
    )


# ---- accept length


@torch.inference_mode()
def accept_lengths(base: m.MiniCPM, head: eagle3.Eagle3, ids: list[int], start: int) -> list[int]:
    """Tokens that each verification commits, the base's own included, when greedy chains draft
    ids[start:].

    ids: a prompt of `start` tokens and the base's greedy answer. Drafts after a wrong one do not
        matter, so that the
    guesses of all rows can be had at once from the true tokens.
    """
    whole = torch.tensor([ids])
    features, _ = run_base(base, whole)
    guesses = [guess[0].argmax(-1) for guess in drafts(base, head, whole, features, DEPTHS)]
    targets = whole[0, 2:]
    right = [(guess + head.d2t[guess] == targets).tolist() for guess in guesses]
    lengths, root = [], start  # the root, the prompt's first answer token, is the base's own
    while root < len(ids) - 1:
        row, taken = root - 1, 0
        while taken < DEPTHS and row + taken < len(targets) and right[taken][row + taken]:
            taken += 1
        lengths.append(taken + 1)
        root += taken + 1
    return lengths


def held_out_accept_lengths(
    base: m.MiniCPM, head: eagle3.Eagle3, tokenizer: Tokenizer, bundle: Path, count: int
) -> dict[str, float]:
    """Mean accept length per skill, on `count` held-out prompts each, and over all of them."""
    from minicpm_mlc import Engine

    table: dict[str, float] = {}
    every: list[int] = []
    with Engine(bundle) as engine:
        answer = evaluate.from_engine(engine)
        for skill, make in evaluate.SKILLS.items():
            found = []
            for sample in evaluate.samples_of(skill, make, count):
                prompt = evaluate.prompt_of(sample)
                start = len(tokenizer.encode(prompt).ids)
                ids = tokenizer.encode(prompt + answer(prompt, evaluate.MAX_ANSWER) + END).ids
                found += accept_lengths(base, head, ids, start)
            table[skill] = sum(found) / len(found)
            every += found
    return {**table, "all": sum(every) / len(every)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, help="the compiled demo model, which answers"
    )
    parser.add_argument("--checkpoint", type=Path, default=HERE / "MiniCPM4.1-demo")
    parser.add_argument("--out", type=Path, default=HERE / "MiniCPM4.1-demo-Eagle3")
    parser.add_argument("--prompts", type=int, default=6000, help="training prompts")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--evaluate", action="store_true", help="print held-out accept lengths of the head in --out"
    )
    parser.add_argument("--per-skill", type=int, default=20, help="held-out prompts per skill")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    base = m.load(args.checkpoint)
    if not args.evaluate:
        pairs = answered(args.bundle, args.prompts, SEED)
        ranked = frequencies(tokenizer, [answer for _, answer in pairs])[:VOCABULARY]
        texts = [prompt + answer + "\n" for prompt, answer in pairs]
        export(
            train(base, tokenizer, texts, torch.tensor(sorted(ranked)), args.steps),
            ranked,
            args.out,
        )
    table = held_out_accept_lengths(
        base, eagle3.load(args.out), tokenizer, args.bundle, args.per_skill
    )
    print(
        json.dumps(table, indent=2)
        if args.json
        else "\n".join(f"{k:26} {v:5.2f}" for k, v in table.items())
    )


if __name__ == "__main__":
    main()
