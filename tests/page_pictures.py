"""Pictures of the chat page for docs/serving.md, of a real model's answers.

python tests/page_pictures.py BUNDLE docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from browser import DESKTOP, PHONE, chromium, until
from serving import server

QUESTION = "What is 4827 + 356?"


def ask(page: Any, text: str) -> None:
    """Sends a question and waits for its answer."""
    page.fill("#text", text)
    page.keyboard.press("Enter")
    until(page, "!document.querySelector('#stop').hidden")
    until(page, "document.querySelector('#stop').hidden", 120)


def main(bundle: Path, folder: Path) -> None:
    """Takes all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with server(bundle) as address, chromium() as browser:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        until(page, "document.querySelector('#model').textContent !== 'minicpm-mlc'")
        ask(page, QUESTION)
        page.locator("article.assistant details summary").first.click()
        page.screenshot(path=folder / "page-desktop.png")
        notes = "".join(f"Note {i}: the number of box {i} is {i * 37 % 101}.\n" for i in range(60))
        ask(page, f"{notes}\n{QUESTION}")
        page.locator("details.blocks summary").last.click()
        page.locator("details.blocks").last.scroll_into_view_if_needed()
        page.screenshot(path=folder / "page-blocks.png")
        phone = browser.new_page(viewport=PHONE, color_scheme="dark", device_scale_factor=2)
        phone.goto(address)
        ask(phone, QUESTION)
        phone.screenshot(path=folder / "page-phone.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
