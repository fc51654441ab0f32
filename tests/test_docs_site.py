"""The documentation as a site: every page is in its table of contents, and every link leads
somewhere. make docs builds it, with warnings as errors.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#:\s]+\.(?:md|py|png|svg))(?:#[^)]*)?\)")


def test_every_page_is_in_the_table_of_contents() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = sorted(re.findall(r"[\w/]+\.md", nav))
    assert listed == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_links_lead_to_pages() -> None:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    dead = [
        f"{page}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ]
    assert not dead


def test_a_page_links_to_no_file_outside_of_the_site() -> None:
    outside = [
        f"{page}: {link}"
        for page in DOCS.rglob("*.md")
        for link in LINK.findall(page.read_text())
        if DOCS not in (page.parent / link).resolve().parents
    ]
    assert not outside
