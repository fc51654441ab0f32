"""The chat page in a browser: what a person sees and does."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, DESKTOP, MISSING, PHONE, chromium, listening, until
from fake_library import FakeLibrary, token
from fake_serving import applications

from minicpm_mlc.serve.access import Access

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason=MISSING
)
QUICK = 80  # tokens of a conversation
SAID = "# Sums\n\n**1.** `a + b`\n\n```py\nprint(1)\n```\n\n<b>no markup</b>"
TIMINGS = {
    "cache_n": 40, "prompt_n": 10, "predicted_n": 9, "predicted_per_second": 30.0
}  # fmt: skip
BLOCKS = {
    "tokens": 64,
    "reads": [0, 0, 7, 1, 0, 0, 0],
    "first": 1,
    "latest": 2,
    "texts": ["begin", "", "the needle", "hay", "", "", "end"],
}


class Paced(FakeLibrary):
    """Says hello, a few times at the speed of a person's reading and then once in two seconds, so
    that a busy machine's browser still meets it in the middle.
    """

    def __init__(self) -> None:
        super().__init__(lambda history: token("▁hello"))

    def decode(self, token_ids: Any, positions: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.1 if positions[0] < QUICK else 2)
        return super().decode(token_ids, positions, *arguments, **options)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """One server that says hello for ever, and one that wants a key."""
    with (
        pytest.MonkeyPatch.context() as patch,
        applications(tmp_path_factory.mktemp("model"), patch) as make,
        listening(make(Paced(), parallel=2)) as free,
        listening(make(access=Access(keys=["secret"]))) as closed,
    ):
        yield free, closed


@pytest.fixture
def page(browser: Any, addresses: tuple[str, str]) -> Iterator[Any]:
    """The page of a new person; whatever the browser complains of fails the test."""
    context = browser.new_context(viewport=DESKTOP)
    found = context.new_page()
    found.set_default_timeout(60_000)
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.goto(addresses[0])
    until(found, "document.querySelector('#context-text').textContent.includes('of 200')")
    yield found
    context.close()
    assert not complaints


def send(page: Any, text: str = "hello") -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def streams(*deltas: dict[str, Any], **last: Any) -> str:
    """A stream as the server sends it."""
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    end = {"choices": [{"delta": {}, "finish_reason": "stop", **last}], "timings": TIMINGS}
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, end]]
    return "".join(lines) + "data: [DONE]\n\n"


def answers(page: Any, body: str, status: int = 200) -> None:
    """What the server says from now on."""
    kind = "text/event-stream" if status == 200 else "application/json"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=status, content_type=kind, body=body),
    )


def test_an_answer_streams_and_is_stopped(page):
    send(page)
    article = page.locator("article.assistant .body")
    article.wait_for()
    until(page, "document.querySelectorAll('article').length === 2")
    until(page, "/hello hello/.test(document.querySelector('#log').innerText)")
    first = article.inner_text()
    until(page, f"document.querySelector('.assistant .body').innerText !== {json.dumps(first)}")
    assert page.locator("#send").is_hidden() and page.locator("#stop").is_visible()
    page.click("#stop")
    page.locator("#send").wait_for(state="visible")
    said = article.inner_text()
    time.sleep(0.3)
    assert article.inner_text() == said and len(said) > len(first)


def test_escape_stops_and_another_answer_comes(page):
    send(page)
    until(page, "/hello hello/.test(document.querySelector('#log').innerText)")
    page.keyboard.press("Escape")
    page.locator("#send").wait_for(state="visible")
    page.click("text=Settings")
    page.fill("[name=max_tokens]", "5")
    page.click("dialog button")
    page.click("text=Retry")
    until(page, "/5 tokens/.test(document.querySelector('.stats')?.innerText)")
    assert "cut off" in page.locator(".stats").inner_text()
    assert "tokens/s" in page.locator("#speed").inner_text()
    assert page.locator("#cached").get_attribute("value") != "0"


def test_an_answer_without_words_stays_and_can_be_tried_again(page):
    answers(page, streams())
    send(page)
    until(page, "/9 tokens/.test(document.querySelector('.assistant .stats')?.innerText)")
    answers(page, streams({"content": "Here."}))
    page.click("text=Retry")
    until(page, "document.querySelector('.assistant .body')?.innerText === 'Here.'")


def test_what_was_said_is_there_after_a_reload(page):
    answers(page, streams({"content": SAID}, block_reads=BLOCKS))
    send(page, "What <b>is</b> it?")
    page.locator("details.blocks").wait_for()
    page.reload()
    assert page.locator("article.user .body").inner_text() == "What <b>is</b> it?"
    assert page.locator("article.assistant h3").inner_text() == "Sums"
    assert page.locator("article.assistant pre code").inner_text() == "print(1)"
    assert page.locator("article.assistant b").count() == 0
    assert page.locator("#list li").count() == 1
    assert "the needle" not in page.evaluate("localStorage.conversations")
    page.click("text=New conversation >> nth=0")
    assert page.locator("article").count() == 0
    page.click("#list li:nth-child(2) button")
    assert page.locator("article").count() == 2


def test_thinking_is_folded_and_blocks_are_shown(page):
    answers(page, streams({"reasoning_content": "hm"}, {"content": "5"}, block_reads=BLOCKS))
    send(page)
    thought = page.locator("article.assistant details").first
    thought.wait_for()
    assert thought.get_attribute("open") is None and thought.inner_text() == "Thinking"
    blocks = page.locator("details.blocks")
    blocks.wait_for()
    assert "2 of 7" in blocks.locator("summary").inner_text()
    blocks.locator("summary").click()
    cells = page.locator(".map i")
    assert cells.count() == 7 and page.locator(".map .always").count() == 3
    assert cells.nth(2).get_attribute("title") == "tokens 128 to 191: the needle"
    shades = [cells.nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in (1, 2, 3)]
    assert len(set(shades)) == 3
    assert page.locator(".blocks li").all_inner_texts()[0] == "tokens 128 to 191: the needle"
    assert "50 of" not in page.locator("#context-text").inner_text()
    assert "40 of 50" in page.locator("#cached-text").inner_text()


@pytest.mark.parametrize(
    "status, body, said",
    [
        (400, '{"error": {"message": "the prompt has 9 tokens"}}', "the prompt has 9 tokens"),
        (502, "oops", "status 502"),
        (200, 'data: {"error": {"message": "lost"}}\n\n', "lost"),
        (200, "", "before its end"),
    ],
)
def test_an_error_is_told_and_the_question_kept(page, status, body, said):
    answers(page, body, status)
    send(page, "mine")
    alert = page.locator("#error")
    alert.wait_for(state="visible")
    assert said in alert.inner_text() and alert.get_attribute("role") == "alert"
    assert page.locator("article").all_inner_texts()[0].startswith("mine")
    assert page.locator("article").count() == 1
    answers(page, streams({"content": "now"}))
    page.click("text=Edit")
    assert page.input_value("#text") == "mine"
    page.keyboard.press("Enter")
    page.locator("article.assistant").wait_for()
    assert alert.is_hidden()


def test_a_key_is_asked_for(page, addresses):
    page.goto(addresses[1])
    until(page, "/API key/.test(document.querySelector('#error').innerText)")
    page.click("text=Settings")
    page.fill("[name=key]", "secret")
    page.click("dialog button")
    until(page, "/of 200/.test(document.querySelector('#context-text').innerText)")
    assert page.locator("#error").is_hidden()


def test_the_keyboard_reaches_everything(page):
    answers(page, streams({"content": SAID}))
    send(page)
    page.locator("article.assistant").wait_for()
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"new", "open-settings", "log", "text", "send", "Copy", "Retry", "Edit"} <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button,input,select,textarea,meter')]"
        ".filter(e => !e.innerText && !e.ariaLabel && !e.labels?.length).length"
    )
    assert unnamed == 0


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size(PHONE)
    long = "word " * 60 + "\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 200
    answers(page, streams({"content": long + " | 2 |"}, block_reads=BLOCKS))
    send(page)
    page.locator("details.blocks").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator("#side").is_hidden()
    page.click("#menu")
    assert page.locator("#side").is_visible()
    assert page.locator("#menu").get_attribute("aria-expanded") == "true"
    page.click("#side #new")
    assert page.locator("#side").is_hidden() and page.locator("article").count() == 0
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 32


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    answers(page, streams({"content": SAID}))
    send(page)
    page.locator("article.assistant").wait_for()
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement)"
        ".backgroundColor, matchMedia('(prefers-color-scheme: dark)').matches]"
    )
    assert colours[0] != colours[1] and colours[2] == (scheme == "dark")
