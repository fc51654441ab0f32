"""GET /openapi.json: what the server answers, and which fields of a request it knows. Fields that
are only ignored are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicpm_mlc import __version__
from minicpm_mlc.serve.drawing import MOST_CHOICES, MOST_LIKELY, MOST_STOPS
from minicpm_mlc.serve.errors import TYPES
from minicpm_mlc.serve.openai_chat import EFFORTS

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}


def number(low: float, high: float) -> Schema:
    """From low to high."""
    return {"type": "number", "minimum": low, "maximum": high}


def whole(low: int, high: int | None = None) -> Schema:
    """A whole number of at least low."""
    return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})


def items(schema: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list."""
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": schema, **bounds}


def one_of(*values: str) -> Schema:
    """One of these texts."""
    return {"type": "string", "enum": list(values)}


def either(*schemas: Schema) -> Schema:
    """Any of these."""
    return {"anyOf": list(schemas)}


def fields(required: Sequence[str] = (), **properties: Schema) -> Schema:
    """An object."""
    return {"type": "object", "properties": properties, "required": list(required)}


CONTENT = either(TEXT, items(fields(["type"], type=one_of("text"), text=TEXT)))
MESSAGE = fields(["role", "content"], role=one_of("system", "user", "assistant"), content=CONTENT)
STOPS = either(TEXT, items(TEXT, most=MOST_STOPS))
FUNCTION = fields(
    ["name"],
    name={"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,256}$"},
    description=TEXT,
    parameters=ANY_OBJECT,
)
TOOL = fields(["type", "function"], type=one_of("function"), function=FUNCTION)
DRAWING = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": whole(-1),
    "min_p": number(0, 1),
    "seed": whole(-(2**63), 2**64 - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0, 100),
    "speculate": one_of("auto", "off"),  # others need a bundle that has them
}
SHARED = {"model": TEXT, "stream": FLAG}
CONVERSATION = {
    "messages": items(MESSAGE, least=1),
    "tools": items(TOOL),
    "tool_choice": one_of("auto", "none"),
    "response_format": fields(["type"], type=one_of("text", "json_object")),
    "reasoning_effort": one_of(*EFFORTS),
    "reasoning_budget": whole(-1),
}
PROMPT = fields(["messages"], **CONVERSATION)
CHAT = fields(
    ["messages"],
    **SHARED,
    **DRAWING,
    **CONVERSATION,
    max_tokens=whole(1),
    max_completion_tokens=whole(1),
    stop=STOPS,
    n=whole(1, MOST_CHOICES),
    logprobs=FLAG,
    stream_options=fields(include_usage=FLAG),
    min_tokens=whole(0),
    block_reads=FLAG,
)
COMPLETION = fields(
    ["prompt"],
    **SHARED,
    **DRAWING,
    prompt=either({"type": "string", "minLength": 1}, items({"type": "string", "minLength": 1}, 1)),
    max_tokens=whole(1),
    stop=STOPS,
    n=whole(1, MOST_CHOICES),
    echo=FLAG,
    logprobs=whole(0, MOST_LIKELY),
)
RESPONSE = fields(
    ["input"],
    **SHARED,
    **DRAWING,
    input=either({"type": "string", "minLength": 1}, items(MESSAGE, least=1)),
    instructions=TEXT,
    max_output_tokens=whole(1),
    reasoning=fields(effort=one_of(*EFFORTS)),
)
TURNS = {
    "messages": items(MESSAGE, least=1),
    "system": CONTENT,
    "thinking": fields(type=one_of("enabled", "disabled", "adaptive"), budget_tokens=whole(0)),
}
MESSAGES = fields(
    ["messages"],
    **SHARED,
    **TURNS,
    max_tokens=whole(1),
    temperature=number(0, 2),
    top_p=number(0, 1),
    top_k=whole(-1),
    stop_sequences=STOPS,
)
OPTIONS = fields(
    num_predict=whole(-2),
    temperature=number(0, 100),
    top_k=whole(-1),
    top_p=number(0, 1),
    min_p=number(0, 1),
    repeat_penalty=number(0, 100),
    seed=whole(-(2**63), 2**64 - 1),
    stop=STOPS,
)
OLLAMA = {**SHARED, "options": OPTIONS, "format": one_of("json"), "think": {"enum": [False]}}
OLLAMA_CHAT = fields(["messages"], **OLLAMA, messages=items(MESSAGE), tools=items(TOOL))
GENERATE = fields(["prompt"], **OLLAMA, prompt=TEXT, system=TEXT, raw=FLAG)
TOKENIZE = fields(["content"], content=TEXT, add_special=FLAG, parse_special=FLAG, with_pieces=FLAG)

POSTS: Mapping[str, tuple[str, Schema]] = {
    "/v1/chat/completions": ("An answer in a chat", CHAT),
    "/v1/chat/completions/input_tokens": ("The length of a chat's prompt", PROMPT),
    "/v1/completions": ("How a text goes on", COMPLETION),
    "/v1/responses": ("An answer, in OpenAI's newer form", RESPONSE),
    "/v1/messages": ("An answer, in Anthropic's form", MESSAGES),
    "/v1/messages/count_tokens": ("The length of its prompt", fields(["messages"], **TURNS)),
    "/api/chat": ("An answer, in Ollama's form", OLLAMA_CHAT),
    "/api/generate": ("How a text goes on, in Ollama's form", GENERATE),
    "/api/show": ("The model, in Ollama's form", fields(model=TEXT)),
    "/api/pull": ("Nothing, as the model is there", fields(model=TEXT)),
    "/tokenize": ("A text's tokens", TOKENIZE),
    "/detokenize": ("A text of tokens", fields(tokens=items(whole(0, 0)))),
    "/apply-template": ("A chat's prompt", PROMPT),
}
GETS: Mapping[str, str] = {
    "/v1/models": "The model",
    "/api/version": "The level of Ollama's API",
    "/api/tags": "The model, in Ollama's form",
    "/api/ps": "The same, as it runs",
    "/health": "Whether requests are answered",
    "/metrics": "Figures, for Prometheus",
    "/props": "The model, in llama.cpp's form",
    "/tokenizer_info": "The tokenizer's special tokens",
    "/openapi.json": "This description",
}


def description() -> dict[str, Any]:
    """The whole of it."""
    paths = {path: {"get": _operation(about)} for path, about in GETS.items()}
    for path, (about, body) in POSTS.items():
        content = {"application/json": {"schema": body}}
        asked = {"requestBody": {"required": True, "content": content}}
        paths[path] = {"post": _operation(about) | asked}
    return {
        "openapi": "3.1.0",
        "info": {"title": "minicpm-mlc", "version": __version__},
        "paths": paths,
    }


def _operation(about: str) -> dict[str, Any]:
    statuses = {"200": {"description": about}}
    refused = {str(status): {"description": kind} for status, kind in TYPES.items()}
    return {"summary": about, "responses": statuses | refused | {"529": refused["503"]}}
