"""GET /v1/models and what else tells about the model in OpenAI's words."""

from __future__ import annotations

from typing import Any

from minicpm_mlc.serve.errors import ApiError
from minicpm_mlc.serve.served import Served


def model_of(served: Served) -> dict[str, Any]:
    """The one model. `max_model_len` is vLLM's field, `meta` llama.cpp's; agents read the window
    there.
    """
    model = served.manifest.model
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "minicpm-mlc",
        "max_model_len": served.context,
        "meta": {
            "n_vocab": served.vocab_size,
            "n_ctx_train": model["max_position_embeddings"],
            "n_embd": model["hidden_size"],
            "n_params": served.parameters,
            "size": served.size,
        },
    }


def models(served: Served) -> dict[str, Any]:
    """The list of it."""
    return {"object": "list", "data": [model_of(served)]}


def find_model(served: Served, name: str) -> dict[str, Any]:
    """The model of a name. Raises ApiError 404."""
    if name not in (served.name, f"{served.name}:latest"):
        raise ApiError(
            404, f"there is no model {name[:80]!r}; this server has {served.name}", "model"
        )
    return model_of(served)
