"""Ollama's API beside answers: what models there are, and what this server does not do."""

from __future__ import annotations

import datetime
from typing import Any

from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.ollama import now
from minicpm_mlc.serve.served import Served

VERSION = "0.32.0"  # the level of Ollama's API that this is; clients ask for a minimum
FAMILY = "minicpm"
NOT_DONE = (
    "create",
    "copy",
    "delete",
    "push",
    "embed",
    "embeddings",
)


def version(_: Served, __: Fields) -> dict[str, Any]:
    """GET /api/version."""
    return {"version": VERSION}


def tags(served: Served, _: Fields) -> dict[str, Any]:
    """GET /api/tags."""
    return {"models": [{**_model(served), "capabilities": capabilities(served)}]}


def running(served: Served, _: Fields) -> dict[str, Any]:
    """GET /api/ps: the model never goes."""
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=365)
    return {
        "models": [
            {
                **_model(served),
                "expires_at": f"{later:%Y-%m-%dT%H:%M:%S}.000000000Z",
                "size_vram": 0 if served.manifest.target["device"] == "cpu" else served.size,
                "context_length": served.context,
            }
        ]
    }


def show(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /api/show."""
    _known(served, fields)
    model = served.manifest.model
    fields.flag("verbose")
    return {
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": served.template.source,
        "system": "",
        "details": _details(served),
        "model_info": {
            "general.architecture": FAMILY,
            "general.parameter_count": served.parameters,
            f"{FAMILY}.context_length": served.context,
            f"{FAMILY}.embedding_length": model["hidden_size"],
            f"{FAMILY}.block_count": model["num_layers"],
            f"{FAMILY}.attention.head_count": model["num_heads"],
            f"{FAMILY}.attention.head_count_kv": model["num_kv_heads"],
            f"{FAMILY}.vocab_size": served.vocab_size,
        },
        "capabilities": capabilities(served),
        "modified_at": now(),
    }


def pull(served: Served, fields: Fields) -> dict[str, Any]:
    """POST /api/pull: the model is there."""
    _known(served, fields)
    return {"status": "success"}


def capabilities(served: Served) -> list[str]:
    """What clients may ask of the model."""
    return ["completion", "tools", *(["thinking"] if served.thinks else [])]


def _known(served: Served, fields: Fields) -> None:
    name = fields.text("model") or fields.text("name") or served.name
    if name not in (served.name, f"{served.name}:latest"):
        raise ApiError(404, f"model '{name[:80]}' not found; this server has {served.name}")


def _model(served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": now(),
        "size": served.size,
        "digest": served.digest,
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "minicpm-mlc",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": _short(served.parameters),
        "quantization_level": served.manifest.scheme,
        "context_length": served.context,
        "embedding_length": served.manifest.model["hidden_size"],
    }


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
