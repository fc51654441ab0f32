"""Trains the demo model's tokenizer and writes its files: BPE with byte fallback, in the form of
MiniCPM4's.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import data
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = [
    "<|im_end|>",
    "<|im_start|>",
    "<|tool_call|>",
    "<|execute_start|>",
    "<|execute_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
]
VOCAB_SIZE = 1536
TRAINING_SAMPLES = 12000

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'assistant' and '</think>' in content and not \
(loop.last and not add_generation_prompt) -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def train() -> Tokenizer:
    """Merges stay inside words; digits, line ends and punctuation stay single, which makes
    arithmetic learnable.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    words = Regex(r"\n|[0-9]|▁?[^\s▁0-9A-Za-z]|▁?[A-Za-z]+|▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        special_tokens=fixed,
        initial_alphabet=letters,
        min_frequency=3,
        show_progress=False,
    )
    samples = itertools.islice(data.samples(seed=1, tokens=256), TRAINING_SAMPLES)
    tokenizer.train_from_iterator(
        (piece for sample in samples for piece in _outside_specials(data.render(sample))), trainer
    )
    return _finish(tokenizer, fixed)


def _outside_specials(text: str) -> list[str]:
    for token in (*SPECIAL, "</s>"):
        text = text.replace(token, "\x00")
    return [piece for piece in text.split("\x00") if piece]


def _finish(trained: Tokenizer, fixed: list[str]) -> Tokenizer:
    """The file that ships: no pre-tokenizer (no merge crosses a word), Llama's decoder, BOS in
    front.
    """
    spec = json.loads(trained.to_str())
    spec["pre_tokenizer"] = None
    spec["added_tokens"] = [
        token for token in spec["added_tokens"] if token["content"] in fixed[:3]
    ]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def write(folder: Path) -> Tokenizer:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    tokenizer = train()
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in ["<unk>", "<s>", "</s>", *SPECIAL]}
    entry = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    names = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "additional_special_tokens": SPECIAL,
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 8192,
        "tokenizer_class": "LlamaTokenizerFast",
        "added_tokens_decoder": {
            str(number): {"content": token, **entry} for token, number in ids.items()
        },
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    return tokenizer


if __name__ == "__main__":
    write(Path(__file__).with_name("MiniCPM4.1-demo"))
