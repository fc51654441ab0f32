"""The server's own description, held against it: bodies drawn from it are answered, bodies that
break it are refused, and nothing is left out of it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
from fake_serving import applications
from serving import request

from minicpm_mlc.serve import openapi, page_files
from minicpm_mlc.serve.errors import TYPES
from minicpm_mlc.serve.openapi import GETS, POSTS

TEXTS = ["a", "hello", "é 你", "<|im_end|>", "x" * 30]
# what a schema can't say: no tool twice, a prompt that fits, the model's name
UNSAID = {400: ("two tools have the name", "context"), 404: ("not found",)}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with (
        pytest.MonkeyPatch.context() as patch,
        applications(tmp_path_factory.mktemp("model"), patch) as make,
    ):
        yield make(parallel=4)


def drawn(schema: Any, draw: random.Random) -> Any:
    """A value that the schema allows, small enough to be answered."""
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if "anyOf" in schema:
        return drawn(draw.choice(schema["anyOf"]), draw)
    kind = schema["type"]
    if kind == "object":
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        names = [name for name in properties if name in required or draw.random() < 0.3]
        return {name: drawn(properties[name], draw) for name in names}
    if kind == "array":
        most = min(schema.get("maxItems", 3), 3)
        count = draw.randint(schema["minItems"], most)
        return [drawn(schema["items"], draw) for _ in range(count)]
    if kind == "integer":
        low = schema["minimum"]
        return draw.choice([low, low + 1, min(schema.get("maximum", 5), max(low, 3))])
    if kind == "number":
        return draw.choice([schema["minimum"], schema["maximum"], draw.uniform(0, 1)])
    return draw.random() < 0.5 if kind == "boolean" else _text(schema, draw)


def _text(schema: Any, draw: random.Random) -> str:
    return draw.choice(["f", "g.h-2"]) if "pattern" in schema else draw.choice(TEXTS)


def wrong(schema: Any) -> Iterator[Any]:
    """Values that the schema forbids."""
    kind = schema.get("type")
    if "enum" in schema:
        yield from ("no such word", 3)
    elif kind in ("integer", "number"):
        yield from ("a", {}, schema["minimum"] - 1)
        if "maximum" in schema:
            yield schema["maximum"] + 1
    elif kind == "boolean":
        yield from ("a", 1, [])
    elif kind == "array":
        yield from ("a", 3, {})
    elif kind == "object":
        yield from ("a", 3, [])
    else:
        yield from (3, {})


def small(body: dict[str, Any]) -> dict[str, Any]:
    """The same for a short answer."""
    for name in ("max_tokens", "max_output_tokens"):
        if name in body:
            body[name] = min(body[name], 3)
    return body | {"n": 1} if "n" in body else body


@pytest.mark.parametrize("path", POSTS)
def test_what_it_allows_is_answered(app, path):
    draw = random.Random(path)
    for _ in range(12):
        body = small(drawn(POSTS[path][1], draw))
        reply = request(app, "POST", path, copy.deepcopy(body))
        known = any(said in reply.body.decode() for said in UNSAID.get(reply.status, ()))
        assert reply.status == 200 or known, (body, reply.body)


@pytest.mark.parametrize("path", POSTS)
def test_what_it_forbids_is_refused(app, path):
    schema = POSTS[path][1]
    good = small(drawn({**schema, "properties": _required(schema)}, random.Random(1)))
    for name, inner in schema["properties"].items():
        if "anyOf" in inner or "pattern" in inner:
            continue
        for value in wrong(inner):
            reply = request(app, "POST", path, good | {name: value})
            assert reply.status == 400, (name, value, reply.body)


def _required(schema: Any) -> dict[str, Any]:
    return {name: schema["properties"][name] for name in schema["required"]}


def test_every_path_is_described(app):
    routes = {route.path: route.methods for route in app._app.routes}
    refused = {path for path in routes if "{" in path or path in _not_done()}
    twins = {"/v1/health", *page_files.PUBLIC}
    assert routes.keys() - refused - twins == {*POSTS, *GETS}
    found = request(app, "GET", "/openapi.json").json
    assert found == openapi.description() and found["openapi"] == "3.1.0"
    operations = [one for each in found["paths"].values() for one in each.values()]
    expected = {"200", "529", *map(str, TYPES)}
    assert all(one["responses"].keys() == expected for one in operations)


def _not_done() -> set[str]:
    from minicpm_mlc.serve.app import NOT_DONE
    from minicpm_mlc.serve.ollama_info import NOT_DONE as NOT_OLLAMA

    return {*NOT_DONE, *(f"/api/{name}" for name in NOT_OLLAMA)}
