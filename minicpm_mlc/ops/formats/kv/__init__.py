"""Key/value formats: how one layer's keys and values are stored in their pages, one object each.

A format is one file here, named in KV_FORMATS. Nothing outside this folder asks which format it
has: what differs is a method of KVFormat.
"""

from __future__ import annotations

from minicpm_mlc.ops.formats.kv.base import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.formats.kv.bfloat16 import BFloat16
from minicpm_mlc.ops.formats.kv.int8 import INT8
from minicpm_mlc.ops.formats.kv.int8_words import Int8Words

F32 = KVFormat("f32", "float32", "float32")
F16 = KVFormat("f16", "float16", "float16")
BF16 = BFloat16()
KV_FORMATS = {fmt.name: fmt for fmt in (F32, F16, BF16, INT8)}  # by the names of --kv
WORDS = {fmt.key: fmt for fmt in (Int8Words(levels=64), Int8Words(levels=127))}
ALL_KV_FORMATS: dict[str, KVFormat] = KV_FORMATS | WORDS  # these as the CPU's kernels lay them out

__all__ = [
    "ALL_KV_FORMATS",
    "BF16",
    "F16",
    "F32",
    "INT8",
    "KEYS",
    "KV_FORMATS",
    "VALUES",
    "WORDS",
    "KVFormat",
]
