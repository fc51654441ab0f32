"""A package for the web in Debian's Chromium: a static server serves it, the model answers in the
page, a reload goes on.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import CHROMIUM, DESKTOP, MISSING, chromium, until
from conftest import DEMO
from static_server import serving, unpacked

from minicpm_mlc.compile.package import package_bundle

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason=MISSING
)
OPENED = "document.querySelector('#model').textContent !== 'minicpm-mlc'"


class Open(NamedTuple):
    """The page, and the paths that it asked its server for."""

    page: Any
    asked: list[str]


@pytest.fixture(scope="module")
def folder(compiled: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, unpacked."""
    bundle, out = compiled(DEMO, device="web", prefill_chunk=256), tmp_path_factory.mktemp("web")
    made = unpacked(bundle, out)
    package_bundle(bundle, "web", out / "again.zip", engine=True)
    assert (out / "out.zip").read_bytes() == (out / "again.zip").read_bytes()
    return made


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[Open]:
    with serving(folder) as (address, asked), chromium() as browser:
        page = browser.new_page(viewport=DESKTOP)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        until(page, OPENED)
        yield Open(page, asked)
        assert not complaints


@pytest.fixture
def page(opened: Open) -> Any:
    """The page with a new conversation."""
    opened.page.click("text=New conversation >> nth=0")
    return opened.page


def settle(page: Any, **settings: str) -> None:
    page.click("text=Settings")
    page.select_option("[name=think]", settings.pop("think"))
    for name, value in settings.items():
        page.fill(f"[name={name}]", value)
    page.click("dialog button")


def ask(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def until_told(page: Any, answer: int) -> None:
    """Until the answer of this number is there and its speed is told."""
    until(page, f"/tokens\\/s/.test(document.querySelectorAll('.stats')[{answer}]?.innerText)")


def test_what_is_packed_is_licensed(folder: Path) -> None:
    for name in ("minicpm-mlc-LICENSE", "apache-tvm-ffi-NOTICE", "musl", "wasi-libc", "libcxx"):
        assert (folder / "licenses" / name).is_file()
    assert "python -m http.server" in (folder / "README.md").read_text()


def test_an_answer_streams(page: Any) -> None:
    assert page.locator("#error").is_hidden() and page.locator("[name=key]").count() == 0
    settle(page, think="off", temperature="0")
    ask(page, "What is 4827 + 356?")
    until_told(page, 0)
    assert page.locator("article.assistant .body").inner_text().strip()
    assert "tokens/s" in page.locator("#speed").inner_text()


def test_an_answer_is_stopped(page: Any) -> None:
    settle(page, think="off", temperature="0")  # says "golden" until 4,000 tokens are full
    ask(page, "Tell me about golden pages.")
    until(page, "document.querySelectorAll('article')[1]?.innerText.length > 120")
    page.keyboard.press("Escape")
    page.locator("#send").wait_for(state="visible")
    assert page.locator("article").count() == 2 and page.locator("#error").is_hidden()
    said = page.locator(".assistant .stats").inner_text()
    assert 4 < int(said.split(" tokens")[0]) < 4000


def test_a_reload_goes_on(page: Any, opened: Open) -> None:
    settle(page, think="off", temperature="0")
    ask(page, "What is 4827 + 356? Answer with the sum alone, and with no other word.")
    until_told(page, 0)
    opened.asked.clear()
    page.reload()
    until(page, OPENED)
    assert any("manifest.json" in path for path in opened.asked)
    assert not any("params_shard" in path for path in opened.asked)  # they are in the browser
    assert page.locator("article").count() == 2
    settle(page, think="off", temperature="0")
    ask(page, "And 2 + 2?")
    until_told(page, 1)
    cached = int(page.locator("#cached-text").inner_text().split(" of ")[0])
    assert cached > 20  # of the session, which was kept


@pytest.mark.campaign
def test_an_isolated_page_computes_on_threads(opened: Open, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    app = json.loads((copy / "page" / "app.json").read_text())
    app["options"]["threads"] = 2  # also where a machine has few processors
    (copy / "page" / "app.json").write_text(json.dumps(app))
    headers = {"Cross-Origin-Opener-Policy": "same-origin"}
    headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    with serving(copy, headers) as (address, asked):
        page = opened.page.context.browser.new_page(viewport=DESKTOP)
        page.goto(address)
        until(page, OPENED, 60)
        assert page.evaluate("crossOriginIsolated")
        assert any(path.endswith("/thread.js") for path in asked)
        settle(page, think="off", temperature="0")
        ask(page, "What is 4827 + 356?")
        until(page, "/tokens\\/s/.test(document.querySelector('.assistant .stats')?.innerText)", 30)
        assert page.locator("article.assistant .body").inner_text().strip()
