"""mlc-chat-config.json, so that MLC's tools can read a bundle's model and chat format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicpm_mlc.bundle.manifest import Manifest


def mlc_chat_config(
    manifest: Manifest,
    config: dict[str, Any],
    sampling: Mapping[str, float],
    tokenizer: dict[str, Any],
    tokenizer_files: list[str],
) -> dict[str, Any]:
    """The document, from the checkpoint's config.json, the sampling that generation_config.json
    sets, and tokenizer.json (empty: unknown).
    """
    model = manifest.model
    limits = {
        "context_window_size": manifest.max_context,
        "prefill_chunk_size": manifest.prefill_chunk,
    }
    return {
        "version": "0.1.0",
        "model_type": config.get("model_type", model["model_type"]),
        "quantization": manifest.scheme,
        "model_config": {
            **config,
            "vocab_size": model["vocab_size"],
            **limits,
            "tensor_parallel_shards": 1,
        },
        "vocab_size": model["vocab_size"],
        **limits,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "temperature": sampling.get("temperature", 0.6),
        "top_p": sampling.get("top_p", 0.95),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": sampling.get("repetition_penalty", 1.0),
        "tokenizer_files": sorted(tokenizer_files),
        **({"tokenizer_info": tokenizer_info(tokenizer)} if tokenizer else {}),
        "conv_template": chatml(model),
        "bos_token_id": model["bos_token_id"],
        "eos_token_id": list(model["eos_token_ids"]),
        "pad_token_id": config.get("pad_token_id") or 0,
        "model_task": "chat",
    }


def chatml(model: dict[str, Any]) -> dict[str, Any]:
    """MiniCPM4's ChatML as an MLC conversation template: flat strings, so without the thinking
    switch.
    """
    bos = model["bos_token_id"]
    return {
        "name": "minicpm4",
        "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
        "system_message": "You are a helpful assistant.",
        "system_prefix_token_ids": [] if bos is None else [bos],
        "add_role_after_system_message": True,
        "roles": {role: f"<|im_start|>{role}" for role in ("user", "assistant", "tool")},
        "role_templates": {role: f"{{{role}_message}}" for role in ("user", "assistant", "tool")},
        "messages": [],
        "seps": ["<|im_end|>\n"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "stop_str": ["<|im_end|>"],
        "stop_token_ids": list(model["eos_token_ids"]),
        "strip_reasoning_in_history": True,
        "function_string": "",
        "use_function_calling": False,
    }


def tokenizer_info(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """How MLC turns tokens back into text, read off tokenizer.json."""
    normalizers, decoders = (
        _steps(tokenizer.get("normalizer"), "normalizers"),
        _steps(tokenizer.get("decoder"), "decoders"),
    )
    return {
        "token_postproc_method": "byte_level"
        if any(d["type"] == "ByteLevel" for d in decoders)
        else "byte_fallback",
        "prepend_space_in_encode": any(n["type"] == "Prepend" for n in normalizers),
        "strip_space_in_decode": any(
            d["type"] == "Strip" and d.get("start", 0) > 0 for d in decoders
        ),
    }


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if not part:
        return []
    return part[key] if part.get("type") == "Sequence" else [part]
