"""The application: every path and what answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from minicpm_mlc.prompt.fields import Fields
from minicpm_mlc.serve import anthropic, ollama_info, openai_models, openapi, page_files, tokens
from minicpm_mlc.serve.access import Access, Guard
from minicpm_mlc.serve.anthropic import Messages
from minicpm_mlc.serve.endpoint import Endpoint, parsed, read_body
from minicpm_mlc.serve.errors import ApiError, api_error, form_of
from minicpm_mlc.serve.loading import HEALTH
from minicpm_mlc.serve.ollama import OllamaChat, OllamaGenerate
from minicpm_mlc.serve.openai_chat import ChatCompletions
from minicpm_mlc.serve.openai_completions import Completions
from minicpm_mlc.serve.options import Serving
from minicpm_mlc.serve.responses import Responses
from minicpm_mlc.serve.room import Room
from minicpm_mlc.serve.served import Served
from minicpm_mlc.serve.surface import Json, Surface, dumps, refusal

NOT_DONE = (
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/moderations",
    "/v1/audio/{rest:path}",
    "/v1/images/{rest:path}",
    "/v1/fine_tuning/{rest:path}",
)
Answer = Callable[[Served, Fields], Any]


@dataclass(frozen=True)
class Settings:
    """What the server's options say about its surfaces."""

    access: Access = field(default_factory=Access)
    reasoning_field: str = "reasoning_content"
    most_bytes: int = Serving.most_bytes


def make_app(served: Served, room: Room, settings: Settings) -> Guard:
    """The ASGI application."""
    return Guard(make_routes(served, room, settings), settings.access)


def make_routes(served: Served, room: Room, settings: Settings) -> Starlette:
    """The same without anybody who asks who may ask."""
    return Starlette(
        routes=_Routes(served, room, settings).routes(),
        exception_handlers={HTTPException: _http_error, Exception: _unexpected},
    )


class _Routes:
    def __init__(self, served: Served, room: Room, settings: Settings) -> None:
        self._served = served
        self._room = room
        self._settings = settings

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        return [
            *(Route(path, self._health) for path in HEALTH),
            Route("/metrics", self._metrics),
            *(Route(path, page_files.answer) for path in page_files.PUBLIC),
            *self._openai(),
            self._ask("/v1/messages", Messages()),
            self._post("/v1/messages/count_tokens", anthropic.count_tokens),
            *self._ollama(),
            self._post("/tokenize", tokens.tokenize),
            self._post("/detokenize", tokens.detokenize),
            self._post("/apply-template", tokens.apply_template),
            self._get("/tokenizer_info", tokens.tokenizer_info),
            self._get("/openapi.json", lambda *_: openapi.description()),
            self._get("/props", lambda served, _: tokens.props(served, self._room.parallel)),
        ]

    def _openai(self) -> list[BaseRoute]:
        return [
            self._get("/v1/models", lambda served, _: openai_models.models(served)),
            Route("/v1/models/{name:path}", self._model),
            self._ask("/v1/chat/completions", ChatCompletions(self._settings.reasoning_field)),
            self._post("/v1/chat/completions/input_tokens", tokens.input_tokens),
            self._ask("/v1/completions", Completions()),
            self._ask("/v1/responses", Responses()),
            *(Route(path, _not_done, methods=["POST"]) for path in NOT_DONE),
        ]

    def _ollama(self) -> list[BaseRoute]:
        return [
            self._get("/api/version", ollama_info.version),
            self._get("/api/tags", ollama_info.tags),
            self._get("/api/ps", ollama_info.running),
            self._post("/api/show", ollama_info.show),
            self._post("/api/pull", ollama_info.pull),
            self._ask("/api/chat", OllamaChat()),
            self._ask("/api/generate", OllamaGenerate()),
            *(
                Route(f"/api/{name}", _not_done, methods=["POST", "DELETE"])
                for name in ollama_info.NOT_DONE
            ),
        ]

    def _ask(self, path: str, surface: Surface) -> Route:
        endpoint = Endpoint(surface, self._room, self._served, self._settings.most_bytes)
        return Route(path, endpoint, methods=["POST"])

    def _get(self, path: str, answer: Answer) -> Route:
        async def get(_: Request) -> Response:
            return _json(answer(self._served, Fields({})))

        return Route(path, get)

    def _post(self, path: str, answer: Answer) -> Route:
        async def post(request: Request) -> Response:
            try:
                body = await read_body(request, self._settings.most_bytes)
                return _json(
                    await asyncio.to_thread(lambda: answer(self._served, Fields(parsed(body))))
                )
            except Exception as error:
                return _error(request, api_error(error))

        return Route(path, post, methods=["POST"])

    async def _health(self, request: Request) -> Response:
        if self._room.closing:
            return _error(request, ApiError(503, "Shutting down"))
        return _json({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        gauges = {
            "requests_running": self._room.running,
            "requests_waiting": self._room.waiting,
            "kv_cache_usage_ratio": self._served.cache_use,
        }
        text = self._room.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _model(self, request: Request) -> Response:
        try:
            return _json(openai_models.find_model(self._served, request.path_params["name"]))
        except ApiError as error:
            return _error(request, error)


def _json(value: Json) -> Response:
    return Response(dumps(value), media_type="application/json")


def _error(request: Request, error: ApiError) -> Response:
    return refusal(form_of(request.url.path), error)


async def _http_error(request: Request, error: Any) -> Response:
    """A path or method that there isn't."""
    said = {404: f"there is no {request.url.path[:200]} here", 405: "another method is expected"}
    status = error.status_code if error.status_code in (404, 405) else 400
    return _error(request, ApiError(status, said.get(status, "the request can't be read")))


async def _unexpected(request: Request, error: Exception) -> Response:
    return _error(request, api_error(error))


async def _not_done(request: Request) -> Response:
    what = "embeddings" if "embed" in request.url.path else request.url.path[:200]
    error = ApiError(501, f"this server has no {what}: MiniCPM4 is a text generator", code="501")
    return _error(request, error)
