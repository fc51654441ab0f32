"""The page that shows which blocks an answer read."""

from __future__ import annotations

import base64
import re
import struct
import zlib

import numpy as np

from minicpm_mlc.inspect.trace import Trace
from minicpm_mlc.inspect.trace_page import COLOURS, NOTE, SHADES, as_html

FORCED = SHADES + 1


def example() -> Trace:
    """Four blocks, two layers, an answer of three tokens, the first of them dense."""
    reads = np.array([[[1, 0.5, 0, 1], [1, 0, 0.5, 1]], [[1, 0, 1, 0.5], [1, 0, 1, 1]]], np.float32)
    forced = np.array([[True, False, False, True], [True, False, False, False]])
    blocks, answer = ["<b>a &", " lamp", " of", " Dee"], ["It", " is", " <here>"]
    return Trace(blocks, answer, 1, reads, forced, "Mini <CPM>")


def shaded(page: str, view: int) -> dict[int, str]:
    """The colour of each block's text while a view is chosen."""
    rules = re.findall(rf"#t{view}:checked~\.doc :is\(([^)]*)\){{background:#(\w+)}}", page)
    return {
        int(block): colour for blocks, colour in rules for block in re.findall(r"#b(\d+)", blocks)
    }


def picture(page: str, view: int, kind: str = "m") -> np.ndarray:
    """The shades [layers, blocks] of a view's map, or its overview "s", read back from its PNG."""
    found = re.search(rf'id={kind}{view} alt="" src="data:image/png;base64,([^"]*)"', page)
    assert found
    data, chunks = base64.b64decode(found[1]), {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = body
        at += 12 + size
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 3, 0, 0, 0] and chunks[b"PLTE"] == b"".join(map(bytes, COLOURS))
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def colours(*shades: int) -> list[str]:
    return [bytes(COLOURS[shade]).hex() for shade in shades]


def test_each_token_shades_the_blocks_that_it_read():
    page = as_html(example())
    assert page.count("<input type=radio") == 3 and page.count(" checked>") == 1
    assert "<label for=t1> is</label><label for=t2> &lt;here&gt;</label>" in page
    assert "<span class=dense>It</span>" in page and "grey ones in the dense gear" in page
    quarter, most, all_heads, always = colours(3, 8, SHADES, FORCED)
    assert shaded(page, 1) == {0: always, 1: quarter, 2: quarter, 3: always}
    assert shaded(page, 2) == {0: always, 2: all_heads, 3: most}


def test_maps_hold_every_layer_of_every_token():
    page = as_html(example())
    assert picture(page, 1).tolist() == [[FORCED, 5, 0, FORCED], [FORCED, 0, 5, FORCED]]
    assert picture(page, 2).tolist() == [[FORCED, 0, 10, 5], [FORCED, 0, 10, 10]]
    assert picture(page, 0).tolist() == [
        [FORCED, 3, 5, 5],
        [FORCED, 0, 8, 10],
    ]  # where they could be left out


def test_an_overview_of_the_document_stays_in_sight():
    page = as_html(example())
    top = page[page.index("<header class=top>") : page.index("</header>")]
    assert "Mini &lt;CPM&gt;, read for" in top and "<b id=n2> &lt;here&gt;</b>" in top
    assert picture(page, 2, "s").tolist() == [[FORCED, 0, SHADES, 8]]
    assert "#t2:checked~.top :is(#s2,#n2){display:inline-block}" in page
    assert ".top{position:sticky" in page and top.count("<a href=") == 4
    assert all(f'href="#b{block}"' in top and f"id=b{block} " in page for block in range(4))


def test_blocks_that_are_always_read_say_so():
    titles = re.findall(r'title="([^"]*)"', as_html(example()))
    assert titles == ["block 0: always read", "block 1: 12%", "block 2: 62%", "block 3: 75%"]


def test_the_page_is_whole_escaped_and_says_what_it_shows():
    page = as_html(example())
    assert NOTE in page and "not attribution" in page
    assert "<b>" not in page and "&lt;b&gt;a &amp;</span><span" in page and "> lamp</span>" in page
    assert "http" not in page and "<script" not in page and page.endswith("</html>\n")


def test_a_page_of_a_long_document_stays_small():
    """16 tokens over 32 layers and 2048 blocks are a million reads."""
    rng = np.random.default_rng(0)
    reads = (rng.random((16, 32, 2048)) < 0.03).astype(np.float32)
    page = as_html(Trace(["x"] * 2048, [" y"] * 16, 0, reads, np.zeros((16, 2048), bool)))
    assert len(page) < 600_000
