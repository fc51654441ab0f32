"""The application over a fake model: what is let in, what is refused, who waits, who left."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_library import FakeLibrary
from fake_serving import WORDS, Slow, applications, says
from serving import SUM, asked, objects, request

from minicpm_mlc.serve.access import Access

CHAT = "/v1/chat/completions"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """serve(library, parallel=..., max_waiting=..., **settings) makes an application."""
    with applications(tmp_path, monkeypatch) as make:
        yield make


def body(**changes: Any) -> dict[str, Any]:
    return {"messages": SUM, "max_tokens": 8} | changes


def test_an_answer_and_its_stream_agree(serve):
    app = serve()
    whole = request(app, "POST", CHAT, body())
    assert whole.status == 200 and whole.json["choices"][0]["message"]["content"]
    stream = request(app, "POST", CHAT, body(stream=True))
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.body.endswith(b"data: [DONE]\n\n")
    text = "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in objects(stream.body)
    )
    assert text == whole.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "sent, said",
    [
        (b"{", "not JSON"),
        (b"[1]", "expected an object"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        ({}, "messages is empty"),
        (body(messages=[{"role": "tool", "content": "1"}]), "role tool"),
        (body(messages=[{"role": "king", "content": "1"}]), "role"),
        (body(messages=[{"role": [], "content": "1"}]), "role"),
        (body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "text only"),
        (body(temperature=3), "temperature is 3"),
        (body(temperature="hot"), "temperature"),
        (body(max_tokens=0), "max_tokens"),
        (body(n=0), "n is 0"),
        (body(stop=[1]), "stop"),
        (body(top_logprobs=3), "logprobs: true"),
        (body(logit_bias={"x": 1}), "logit_bias"),
        (body(functions=[{}]), "tools"),
        (body(tool_choice="required"), "no tools"),
        (body(tools=[{"type": "function", "function": {"name": "a b"}}]), "name"),
        (body(response_format={"type": "xml"}), "json_schema"),
        (body(chat_template_kwargs={"enable_thinking": True}), "thinking"),
        (body(modalities=["audio"]), "modalities"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(serve, sent, said):
    reply = request(serve(), "POST", CHAT, sent)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert said in reply.json["error"]["message"]


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(serve):
    long = [{"role": "user", "content": "hello " * 300}]
    reply = request(serve(), "POST", CHAT, body(messages=long))
    error = reply.json["error"]
    assert reply.status == 400 and error["code"] == "context_length_exceeded"
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 200
    assert str(error["n_prompt_tokens"]) in error["message"]
    reply = request(serve(), "POST", "/api/chat", {"messages": long})
    assert reply.status == 400 and "exceeds the context length" in reply.json["error"]


@pytest.mark.parametrize(
    "method, path, status, kind",
    [
        ("GET", "/nothing", 404, "not_found_error"),
        ("GET", CHAT, 405, "invalid_request_error"),
        ("POST", "/v1/embeddings", 501, "not_supported_error"),
        ("POST", "/v1/audio/speech", 501, "not_supported_error"),
        ("GET", "/v1/models/other", 404, "not_found_error"),
    ],
)
def test_other_statuses(serve, method, path, status, kind):
    reply = request(serve(), method, path)
    assert reply.status == status and reply.json["error"]["type"] == kind


def test_every_status_that_a_client_can_cause_has_its_type(serve):
    """Section 1.9 of the specification; 429, 500 and 503 are in tests of their own."""
    app = serve(access=Access(keys=["k"]), strict=True, most_bytes=3000)
    key = {"authorization": "Bearer k"}
    long = body(messages=[{"role": "user", "content": "hello " * 300}])
    form = {"content-type": "text/plain"}
    for status, kind, method, path, sent, headers in [
        (400, "invalid_request_error", "POST", CHAT, b"{", key),
        (400, "exceed_context_size_error", "POST", CHAT, long, key),
        (401, "authentication_error", "POST", CHAT, body(), {}),
        (403, "permission_error", "POST", CHAT, body(), key | {"host": "evil.example"}),
        (404, "not_found_error", "GET", "/nothing", b"", key),
        (404, "not_found_error", "POST", CHAT, body(model="other"), key),
        (405, "invalid_request_error", "GET", CHAT, b"", key),
        (413, "invalid_request_error", "POST", CHAT, b"x" * 3001, key),
        (415, "invalid_request_error", "POST", CHAT, body(), key | form),
        (501, "not_supported_error", "POST", "/v1/embeddings", {}, key),
    ]:
        reply = request(app, method, path, sent, headers)
        assert (reply.status, reply.json["error"]["type"]) == (status, kind), reply.body


def test_errors_have_the_form_of_their_protocol(serve):
    app = serve()
    messages = request(app, "POST", "/v1/messages", {"messages": []})
    assert messages.status == 400 and messages.json["type"] == "error"
    assert messages.json["error"]["type"] == "invalid_request_error"
    ollama = request(app, "POST", "/api/chat", {"messages": [{"role": "king"}]})
    assert ollama.status == 400 and isinstance(ollama.json["error"], str)
    embed = request(app, "POST", "/api/embed", {})
    assert embed.status == 501 and isinstance(embed.json["error"], str)


def test_a_body_that_is_too_large_or_no_json(serve):
    app = serve(most_bytes=100)
    assert request(app, "POST", CHAT, b"x" * 101).status == 413
    header = {"content-length": "1" * 30}
    assert request(app, "POST", CHAT, b"{}", header).status == 413
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert request(app, "POST", CHAT, b"{}", form).status == 415
    assert request(app, "POST", "/api/show", b"{}", form).status == 200


def test_keys(serve):
    app = serve(access=Access(keys=["secret", "other"]))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "sécret"}):
        reply = request(app, "GET", "/v1/models", headers=headers)
        assert reply.status == 401 and reply.json["error"]["type"] == "authentication_error"
    for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "other"}):
        assert request(app, "GET", "/v1/models", headers=headers).status == 200
    assert request(app, "GET", "/health").json == {"status": "ok"}
    assert request(app, "GET", "/metrics").status == 401


def test_a_page_of_another_site_may_not_ask(serve):
    app = serve(access=Access(origins=["https://good.example"], hosts=["box"]))
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example"):
        assert request(app, "GET", "/v1/models", headers={"host": host}).status == 403
    for host in ("LOCALHOST:1", "127.0.0.1", "[::1]:8000", "box:8000"):
        assert request(app, "GET", "/v1/models", headers={"host": host}).status == 200
    for origin in ("https://evil.example", "http://localhost.evil.example", "null"):
        reply = request(app, "GET", "/v1/models", headers={"origin": origin})
        assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
    for origin in ("http://localhost:3000", "https://good.example", "vscode-webview://x"):
        reply = request(app, "GET", "/v1/models", headers={"origin": origin})
        assert reply.status == 200 and reply.headers["access-control-allow-origin"] == origin
    other = serve(access=Access(host="0.0.0.0"))
    assert request(other, "GET", "/v1/models", headers={"host": "any.name"}).status == 200


def test_a_page_is_told_before_it_asks(serve):
    headers = {
        "origin": "http://localhost:3000",
        "access-control-request-headers": "authorization,X-Stainless-OS,cookie",
    }
    reply = request(serve(access=Access(keys=["k"])), "OPTIONS", CHAT, headers=headers)
    assert reply.status == 204
    assert reply.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "access-control-allow-credentials" not in reply.headers


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_place_while_answered(serve, stream):
    library = Slow()
    app = serve(library)

    async def leave() -> None:
        await until(lambda: len(library.calls) > 20)

    endless = body(max_tokens=None, stream=stream)
    reply = request(app, "POST", CHAT, endless, leaves=leave)
    said = len(library.calls)
    assert 20 < said < 120  # the context holds 200
    assert reply.body == b"" or stream
    assert request(app, "POST", CHAT, body(max_tokens=2)).status == 200


def test_who_leaves_frees_the_place_in_the_middle_of_a_prompt(serve):
    library = Slow()
    app = serve(library)
    library.hold = True
    long = [{"role": "user", "content": "hello " * 100}]

    async def leave() -> None:
        await until(lambda: library.asked.acquire(blocking=False))
        asyncio.get_running_loop().call_later(0.5, library.go.release, 1)

    request(app, "POST", CHAT, body(messages=long), leaves=leave)
    assert len(library.calls) == 1  # of some 20 chunks
    library.hold = False
    assert request(app, "POST", CHAT, body(max_tokens=2)).status == 200


def test_a_full_queue_says_to_come_again(serve):
    library = Slow()
    app = serve(library, max_waiting=1)
    library.hold = True

    async def crowd() -> list[Any]:
        first = [asyncio.create_task(asked(app, "POST", CHAT, body(max_tokens=2))) for _ in "ab"]
        await until(lambda: library.asked.acquire(blocking=False))
        await until(lambda: app._app.routes[0].endpoint.__self__._room.waiting == 1)
        late = [
            await asked(app, "POST", path, body(max_tokens=2))
            for path in (CHAT, "/v1/messages", "/api/chat")
        ]
        library.hold = False
        library.go.release(100)
        return [*late, *await asyncio.gather(*first)]

    openai, anthropic, ollama, *answered = asyncio.run(crowd())
    assert openai.status == anthropic.status == 429 and openai.headers["retry-after"] == "1"
    assert openai.json["error"]["type"] == anthropic.json["error"]["type"] == "rate_limit_error"
    assert ollama.status == 503 and ollama.json["error"].startswith("server busy, please try again")
    assert [reply.status for reply in answered] == [200, 200]


def test_an_error_of_the_engine_ends_one_answer_alone(serve):
    class Broken(FakeLibrary):
        broken = True

        def decode(self, *arguments: Any, **options: Any) -> Any:
            if self.broken:
                raise ValueError("/home/secret")
            return super().decode(*arguments, **options)

    library = Broken(says(WORDS))
    app = serve(library)
    reply = request(app, "POST", CHAT, body())
    assert reply.status == 500 and reply.json["error"]["type"] == "server_error"
    assert b"secret" not in reply.body
    stream = request(app, "POST", CHAT, body(stream=True))
    assert "error" in objects(stream.body)[-1] and b"[DONE]" not in stream.body
    library.broken = False
    assert request(app, "POST", CHAT, body()).status == 200


def test_what_tells_about_the_model(serve):
    app = serve()
    (entry,) = request(app, "GET", "/v1/models").json["data"]
    assert entry["max_model_len"] == 200
    assert request(app, "GET", f"/v1/models/{entry['id']}").json["id"] == entry["id"]
    assert request(app, "GET", "/").body == b"Ollama is running"
    assert request(app, "HEAD", "/").status == 200
    assert request(app, "GET", "/api/tags").json["models"][0]["name"] == entry["id"]
    assert request(app, "POST", "/api/show", {"model": entry["id"]}).json["capabilities"]
    assert request(app, "POST", "/api/show", {"model": "other"}).status == 404
    assert request(app, "GET", "/api/version").json["version"].count(".") == 2
    assert request(app, "GET", "/props").json["total_slots"] == 1
    assert request(app, "GET", "/tokenizer_info").json["eos_token"]


def test_tokens_of_a_text_and_back_in_both_forms(serve):
    app = serve()
    ids = request(app, "POST", "/tokenize", {"content": "hello world"}).json["tokens"]
    theirs = request(app, "POST", "/tokenize", {"prompt": "hello world"}).json
    assert theirs["tokens"] == [1, *ids] and theirs["count"] == len(ids) + 1
    back = request(app, "POST", "/detokenize", {"tokens": ids}).json
    assert back == {"content": "hello world", "prompt": "hello world"}
    pieces = request(app, "POST", "/tokenize", {"content": "hello", "with_pieces": True}).json
    assert "".join(part["piece"] for part in pieces["tokens"]).strip() == "hello"
    assert request(app, "POST", "/detokenize", {"tokens": [10**6]}).status == 400
    prompt = request(app, "POST", "/apply-template", {"messages": SUM}).json["prompt"]
    assert SUM[0]["content"] in prompt
    count = request(app, "POST", "/v1/messages/count_tokens", {"messages": SUM}).json
    assert count["input_tokens"] > 5


def test_a_browser_gets_the_page_and_all_that_it_names(serve):
    app = serve(access=Access(keys=["k"]))
    page = request(app, "GET", "/", headers={"accept": "text/html,*/*"})
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page.body.decode())
    texts = [request(app, "GET", path) for path in named]
    assert len(named) == 2 and [text.status for text in texts] == [200, 200]
    modules = re.findall(r'from "\./([^"]+)"', texts[-1].body.decode())
    assert len(modules) == 3
    for module in modules:
        found = request(app, "GET", f"/page/{module}")
        assert found.headers["content-type"].startswith("text/javascript")
    assert request(app, "GET", "/page/index.html").status == 401
    assert request(app, "GET", "/page/../server.py").status == 401


def test_metrics_count_what_was_answered(serve):
    app = serve()
    request(app, "POST", CHAT, body(max_tokens=2))
    request(app, "POST", CHAT, b"{")
    text = request(app, "GET", "/metrics").body.decode()
    assert 'minicpm_requests_total{finish_reason="length"} 1' in text
    assert 'minicpm_request_errors_total{type="invalid_request_error"} 1' in text
    assert "minicpm_generation_tokens_total 2" in text
    assert 'minicpm_request_duration_seconds_bucket{le="+Inf"} 1' in text
    assert "minicpm_requests_running 0" in text
    assert "minicpm_kv_cache_usage_ratio 0" in text


def test_the_log_has_a_line_without_text_and_without_control_characters(serve, caplog):
    app = serve()
    with caplog.at_level("INFO", logger="minicpm_mlc.serve"):
        request(app, "POST", CHAT, body(**{"a\nb\x1b[2J": 1}))
    lines = [record.getMessage() for record in caplog.records]
    assert "ignores the fields" in lines[0] and not {"\n", "\x1b"} & set(lines[0])
    assert "prompt" in lines[1] and "output" in lines[1] and "4827" not in lines[1]


def test_ollama_loads_what_is_loaded(serve):
    reply = request(serve(), "POST", "/api/chat", {"model": "x", "keep_alive": 0})
    assert reply.json["done_reason"] == "unload"
    assert request(serve(), "POST", "/api/generate", {}).json["done_reason"] == "load"
    deep = request(serve(), "POST", "/api/generate", {"prompt": "a", "think": True})
    assert deep.status == 400 and "does not support thinking" in deep.json["error"]
    large = {"prompt": "a", "options": {"num_ctx": 4096}}
    assert request(serve(), "POST", "/api/generate", large).status == 400


def test_scores_of_a_prompt_and_no_token(serve):
    asks = {"prompt": [[1, 270, 271], [1, 270, 272]], "echo": True, "logprobs": 1, "max_tokens": 0}
    choices = request(serve(), "POST", "/v1/completions", asks).json["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [3, 3]
    assert choices[0]["logprobs"]["token_logprobs"][0] is None
    asks["max_tokens"] = 1
    choices = request(serve(), "POST", "/v1/completions", asks).json["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [4, 4]
