"""Tokens of texts, texts of tokens, prompts of conversations: llama.cpp's forms and vLLM's."""

from __future__ import annotations

from typing import Any

from minicpm_mlc import __version__
from minicpm_mlc.base.errors import FieldError
from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.prompt.prompt_tokens import PlainText
from minicpm_mlc.serve.openai_chat import read_chat
from minicpm_mlc.serve.openai_completions import check_ids
from minicpm_mlc.serve.served import Served


def tokenize(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /tokenize: `content` is llama.cpp's field, `prompt` vLLM's."""
    fields.get("model")
    if (prompt := fields.text("prompt")) is not None:
        special = fields.flag("add_special_tokens")
        ids = served.tokenizer.encode(prompt, bos=special is not False)
        return {"tokens": ids, "count": len(ids), "max_model_len": served.context}
    content = fields.text("content")
    if content is None:
        raise FieldError("content is missing; expected content or prompt", "content")
    special = fields.flag("add_special") or False
    if fields.flag("parse_special") is False:
        ids = PlainText().ids(served.tokenizer.raw, content)
    else:
        ids = served.tokenizer.encode(content, bos=special)
    if fields.flag("with_pieces"):
        return {"tokens": [{"id": i, "piece": _piece(served, i)} for i in ids]}
    return {"tokens": ids}


def detokenize(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /detokenize; the text in both forms' field."""
    ids = fields.items("tokens") or []
    if not all(type(i) is int for i in ids):
        raise fields.wrong("tokens", "a list of token ids")
    text = served.tokenizer.raw.decode(check_ids(ids, served), skip_special_tokens=False)
    return {"content": text, "prompt": text}


def apply_template(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /apply-template: the prompt's text."""
    return {"prompt": served.prompt(read_chat(fields)).text}


def input_tokens(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /v1/chat/completions/input_tokens: the prompt's length."""
    count = len(served.prompt(read_chat(fields)).ids)
    return {"object": "response.input_tokens", "input_tokens": count}


def tokenizer_info(served: Served, _: Fields) -> dict[str, Any]:
    """GET /tokenizer_info, as lm-evaluation-harness asks a server for its tokenizer."""
    tokens = served.template.other_tokens
    return {
        "eos_token": served.template.eos_token or served.token_text(min(served.eos_token_ids)),
        "bos_token": served.template.bos_token,
        "pad_token": tokens.get("pad_token"),
        "chat_template": served.template.source,
    }


def props(served: Served, parallel: int) -> dict[str, Any]:
    """GET /props, in llama.cpp's words."""
    defaults = served.defaults
    return {
        "default_generation_settings": {
            "n_ctx": served.context,
            "params": {
                "temperature": defaults.temperature,
                "top_k": defaults.top_k,
                "top_p": defaults.top_p,
                "min_p": defaults.min_p,
                "repeat_penalty": defaults.repetition_penalty,
            },
        },
        "total_slots": parallel,
        "model_path": served.folder,
        "model_alias": served.name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": served.template.source,
        "chat_template_caps": {"supports_tools": True, "supports_thinking": served.thinks},
        "bos_token": served.template.bos_token or "",
        "eos_token": served.template.eos_token or "",
        "build_info": f"minicpm-mlc-{__version__}",
        "is_sleeping": False,
    }


def _piece(served: Served, token_id: int) -> str | list[int]:
    piece = served.token_bytes(token_id)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
