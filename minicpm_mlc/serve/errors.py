"""What goes wrong with a request, once, and how each protocol says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minicpm_mlc.base.errors import (
    ContextError,
    EngineError,
    FieldError,
    MiniCPMError,
    SamplingError,
    TemplateError,
)

INVALID = "invalid_request_error"
TYPES = {
    400: INVALID,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: INVALID,
    413: INVALID,
    415: INVALID,
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
ANTHROPIC_TYPES = {
    413: "request_too_large",
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An answer other than 200. `code` and `more` are OpenAI's; `param` is the field's name."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or TYPES[status]
        self.more = more

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP wants beside the body."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def too_long(tokens: int, context: int) -> ApiError:
    """A prompt that the context doesn't hold."""
    return ApiError(
        400,
        f"the prompt has {tokens} tokens and the context holds {context}; shorten the prompt, or "
        "start the server with a larger --context",
        code="context_length_exceeded",
        kind="exceed_context_size_error",
        n_prompt_tokens=tokens,
        n_ctx=context,
    )


def api_error(error: BaseException) -> ApiError:
    """Any error as a client sees it; a bug's message stays here, as it may name files."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FieldError):
        return ApiError(400, str(error), error.param)
    if isinstance(error, SamplingError | TemplateError | ContextError | EngineError):
        return ApiError(400, str(error))
    if isinstance(error, RecursionError):
        return ApiError(400, "something in the request is nested too deeply")
    kind = type(error).__name__ if isinstance(error, MiniCPMError) else "an unexpected error"
    return ApiError(500, f"the server failed ({kind}); its log says more")


def openai_error(error: ApiError) -> dict[str, Any]:
    """OpenAI's form; code is a text or null."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": inner | error.more}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """Anthropic's form."""
    kind = ANTHROPIC_TYPES.get(error.status, TYPES[error.status])
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """Ollama's form."""
    if error.status == 429:
        return {"error": "server busy, please try again.  maximum pending requests exceeded"}
    if error.code == "context_length_exceeded":
        return {"error": f"the input length exceeds the context length: {error.message}"}
    return {"error": error.message}


@dataclass(frozen=True)
class ErrorForm:
    """How a protocol says an error: its body, and the statuses that it has another number for."""

    body: Callable[[ApiError], dict[str, Any]]
    statuses: Mapping[int, int] = field(default_factory=dict)

    def status(self, error: ApiError) -> int:
        """The number in the answer's first line."""
        return self.statuses.get(error.status, error.status)


OPENAI = ErrorForm(openai_error)
ANTHROPIC = ErrorForm(anthropic_error, {503: 529})
OLLAMA = ErrorForm(ollama_error, {429: 503})


def form_of(path: str) -> ErrorForm:
    """How the protocol of a path says it."""
    if path.startswith("/api/"):
        return OLLAMA
    return ANTHROPIC if path.startswith("/v1/messages") else OPENAI
