"""A GGUF file, whole or the first of two parts: metadata, what is rebuilt of it, tensors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from minicpm_mlc.compile.checkpoint.gguf import open_gguf

READER = True
HIDDEN, WIDE, TOKENS = 32, 64, ["<s>", "</s>", "a", "b", "ab"]
SIZES = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": WIDE,
    "attention.head_count": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
BYTES = {2: (32, 18), 8: (32, 34), 0: (1, 4), 35: (256, 66)}  # of types: numbers, bytes a block
LAYER = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN, HIDDEN),
    "attn_v": (HIDDEN, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (HIDDEN, WIDE),
    "ffn_up": (HIDDEN, WIDE),
    "ffn_down": (WIDE, HIDDEN),
}
BYTE_LEVEL = {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a b"]}
YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
LISTS = {"rope_freqs.weight": (HIDDEN // 2,)}
SCORES = {"tokenizer.ggml.scores": [0.0, 0.0, -2.0, -3.0, -1.0]}
PARTS = {"split.no": 0, "split.count": 2}
WHOLE, FIRST, SECOND = "m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def stored(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, list):
        kind = {str: 8, int: 5, float: 6}[type(value[0])]
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(stored(v)[4:] for v in value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    return (
        struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    )


def file_of(keys: dict[str, Any], tensors: dict[str, tuple[int, ...]], kind: int = 8) -> bytes:
    """`tensors`: sizes by name, row length first; matrices are of type `kind`."""
    head, data = b"", b""
    for name, sizes in tensors.items():
        own = kind if len(sizes) > 1 else 0
        values, nbytes = BYTES[own]
        head += text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", own, len(data))
        count = sizes[0] * (sizes[1] if len(sizes) > 1 else 1) // values * nbytes
        data += bytes(-(-count // 32) * 32)
    values = b"".join(text(key) + stored(value) for key, value in keys.items())
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + values + head
    return whole + bytes(-len(whole) % 32) + data


def keys_of(arch: str, model: str, **others: Any) -> dict[str, Any]:
    keys = {"general.architecture": arch} | {f"{arch}.{key}": v for key, v in SIZES.items()}
    lists = {"tokens": TOKENS, "token_type": [3, 3, 1, 1, 1]}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in lists.items()}
    return keys | {"tokenizer.ggml.model": model, "tokenizer.ggml.eos_token_id": 1} | others


TENSORS = {"token_embd.weight": (HIDDEN, len(TOKENS)), "output_norm.weight": (HIDDEN,)}
LAYERS = {f"blk.0.{name}.weight": sizes for name, sizes in LAYER.items()}
PART = file_of({"split.no": 1, "split.count": 2}, LAYERS)


def seeds() -> list[bytes]:
    llama = keys_of("llama", "gpt2", **BYTE_LEVEL)
    old = keys_of("minicpm", "llama", **SCORES)
    return [
        file_of(llama, TENSORS | LAYERS),
        file_of(old, TENSORS | LAYERS, kind=2),
        file_of(llama | PARTS, TENSORS),
        file_of(llama | YARN, TENSORS | LAYERS),
        file_of(llama, TENSORS | LAYERS | LISTS),
    ]


def run(data: bytes, folder: Path) -> None:
    """The second part is always there, and whole."""
    (folder / SECOND).write_bytes(PART)
    name = FIRST if b"split.count" in data else WHOLE
    (folder / name).write_bytes(data)
    opened = open_gguf(folder / name)
    opened.files.check()
    for tensor in opened.weights.names():
        opened.weights.rows(tensor, 0, 2)
