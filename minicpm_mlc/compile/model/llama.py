"""Llama, and MiniCPM5, which is one.

x = embed(ids)
x = x + attention(rms_norm(x));  x = x + mlp(rms_norm(x))    for every layer
logits = head(rms_norm(x))
"""

from __future__ import annotations

from typing import Any

from minicpm_mlc.compile.config.decoder_keys import decoder_fields
from minicpm_mlc.compile.config.keys import Keys
from minicpm_mlc.compile.model.declaration import ModelDeclaration
from minicpm_mlc.compile.model.decoder import Decoder


def read(keys: Keys) -> dict[str, Any]:
    """The keys that every decoder has; MiniCPM4's scalings are refused."""
    return decoder_fields(keys, tied=False)


DECLARATION = ModelDeclaration(
    model_types=("llama",), architectures=("LlamaForCausalLM",), read=read, part=Decoder
)
