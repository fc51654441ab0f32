"""A browser for the chat page: Debian's Chromium, driven by Playwright, which downloads nothing."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import uvicorn

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = (
    "the page is tested in Chromium by Playwright: apt install chromium; pip install playwright"
)
DESKTOP = {"width": 1100, "height": 800}
PHONE = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an application that a thread serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def until(page: Any, script: str, seconds: float = 60) -> None:
    """Waits until a script gives true. Playwright's own way is an eval, which the page forbids."""
    for _ in range(int(seconds * 50)):
        if page.evaluate(script):
            return
        time.sleep(0.02)
    raise AssertionError(f"it never came to {script}")
