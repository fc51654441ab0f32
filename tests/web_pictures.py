"""The picture of a page that holds its model, for docs/apps.md.

python tests/web_pictures.py WEB_BUNDLE docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import chromium, until
from page_pictures import QUESTION, ask
from static_server import serving, unpacked


def main(bundle: Path, folder: Path) -> None:
    """Takes it."""
    with (
        TemporaryDirectory() as scratch,
        serving(unpacked(bundle, Path(scratch))) as (address, _),
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1100, "height": 560})
        page.goto(address)
        until(page, "document.querySelector('#model').textContent !== 'minicpm-mlc'", 60)
        ask(page, QUESTION)
        page.locator("article.assistant details summary").first.click()
        page.screenshot(path=folder / "web-page.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
