"""A trace as one self-contained HTML page: choosing an answer token shades the document as that
token read it.

There is no script: each token is a radio button, and the style sheet says what is shaded while it
is checked.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minicpm_mlc.base.errors import EngineError
from minicpm_mlc.base.files import write_text
from minicpm_mlc.inspect.trace import Trace

NOTE = (
    "This page shows which blocks of 64 tokens were selected for attention, per layer and answer "
    "token. "
    "Selection is not attribution: a block that was read need not have shaped the answer, and "
    "the first block and the "
    "latest ones are always read."
)
SHADES = 10  # of orange, by the share of KV heads that chose a block
COLOURS = [(255, 255 - 115 * i // SHADES, 255 - 255 * i // SHADES) for i in range(SHADES + 1)] + [
    (221, 221, 221)
]
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 "
    "1rem;color:#222}"
    "input{position:fixed;top:0;opacity:0;pointer-events:none}label{cursor:pointer}.text{white-space:pre-wrap}.dense{color:#888}"
    ".layers img,.top img,.top b{display:none}.layers img,.top img{width:100%;"
    "image-rendering:pixelated;border:1px solid #ccc;box-sizing:border-box}"
    ".top{position:sticky;top:0;background:#fff;padding:.4rem 0;z-index:1}"
    ".top div{position:relative;height:1.2rem}.top img{height:100%}"
    ".top nav{position:absolute;inset:0;display:flex}.top a{flex:1}"
    ".doc span{scroll-margin-top:5rem}"
)
JUMPS = 64  # places of the overview that a click goes to


def as_html(trace: Trace) -> str:
    """The page: the answer's tokens to choose from, the document, and a map of layers and
    blocks.
    """
    views = list(_views(trace))
    names = ["the whole answer", *trace.answer[trace.dense :]]
    inputs = "".join(f"<input type=radio name=t id=t{i}>" for i in range(len(names))).replace(
        ">", " checked>", 1
    )
    whole, *labels = (
        f"<label for=t{i}>{html.escape(name)}</label>" for i, name in enumerate(names)
    )
    dense = html.escape("".join(trace.answer[: trace.dense]))
    rules = "".join(_rules(i, share.mean(0), forced) for i, (share, forced) in enumerate(views))
    maps = "".join(
        _picture("m", i, _shades(share, forced)) for i, (share, forced) in enumerate(views)
    )
    total = views[0][0].mean(0).tolist()
    always = views[0][1].tolist()
    text = "".join(map(_passage, range(len(total)), trace.blocks, total, always))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Blocks read</title><style>{STYLE}"
        f".layers img{{height:{8 * trace.reads.shape[1]}px}}{rules}</style>{inputs}"
        f"{_overview(trace.model, names, views)}<h1>Blocks read</h1><p>{NOTE}</p>"
        "<h2>Answer</h2><p>Choose a token, or the arrow keys go from one to the next. What is "
        "shown was read by the row that "
        f"chose it{', grey ones in the dense gear, which reads every block' if dense else ''}.</p>"
        f'<p class=answer>{whole}</p><p class="answer text"><span '
        f"class=dense>{dense}</span>{''.join(labels)}</p>"
        "<h2>Document</h2><p>The darker a passage, the more KV heads of all layers chose it by "
        "score; grey is always read.</p>"
        f'<p class="doc text">{text}</p>'
        "<h2>By layer</h2><p>A line for each layer, a column for each block.</p>"
        f"<div class=layers>{maps}</div></html>\n"
    )


def write_page(path: str | Path, page: str) -> None:
    """Write the page whole or not at all. Raises EngineError."""
    try:
        write_text(path, page)
    except OSError as error:
        raise EngineError(
            f"{path} can't be written: {error.strerror}; choose another file with -o"
        ) from None


def _views(trace: Trace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(share of KV heads that chose each block [layers, blocks], always read [blocks]): of the
    whole answer, of each token.
    """
    free = ~trace.forced[:, None]
    chosen = trace.reads * free
    yield (
        chosen.sum(0) / np.maximum(free.sum(0), 1),
        np.all(trace.forced, axis=0),
    )  # of the tokens that could leave a block out
    yield from zip(chosen, trace.forced, strict=True)


def _shades(share: np.ndarray, forced: np.ndarray) -> np.ndarray:
    """uint8: the place in COLOURS of each block; any share at all is seen."""
    return np.where(forced, SHADES + 1, np.ceil(share * SHADES - 1e-4)).astype(np.uint8)


def _rules(view: int, share: np.ndarray, forced: np.ndarray) -> str:
    """What is shaded while a view is chosen."""
    shades = _shades(share, forced)
    chosen = f"#t{view}:checked~"
    rules = [
        f"{chosen}.answer [for=t{view}]{{outline:2px solid #f80}}{chosen}.layers "
        f"#m{view}{{display:block}}{chosen}.top :is(#s{view},#n{view}){{display:inline-block}}"
    ]
    for shade in np.unique(shades[shades > 0]).tolist():
        blocks = ",".join(f"#b{block}" for block in np.flatnonzero(shades == shade))
        rules.append(f"{chosen}.doc :is({blocks}){{background:#{bytes(COLOURS[shade]).hex()}}}")
    return "".join(rules)


def _passage(number: int, text: str, share: float, always: bool) -> str:
    title = "always read" if always else f"{share:.0%}"
    return f'<span id=b{number} title="block {number}: {title}">{html.escape(text)}</span>'


def _overview(model: str, names: list[str], views: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """What stays in sight while the page is scrolled: the model, the token, and the whole document
    as one strip, where a click goes to the passage.
    """
    tokens = "".join(f"<b id=n{i}>{html.escape(name)}</b>" for i, name in enumerate(names))
    strips = "".join(
        _picture("s", i, _shades(share.mean(0), forced)[None])
        for i, (share, forced) in enumerate(views)
    )
    blocks = len(views[0][1])
    places = sorted({blocks * i // JUMPS for i in range(JUMPS)})
    links = "".join(f'<a href="#b{place}" aria-label="block {place}"></a>' for place in places)
    return (
        f"<header class=top>{html.escape(model)}, read for {tokens}"
        f"<div>{strips}<nav>{links}</nav></div></header>"
    )


def _picture(kind: str, view: int, shades: np.ndarray) -> str:
    return (
        f'<img id={kind}{view} alt="" '
        f'src="data:image/png;base64,{base64.b64encode(_png(shades)).decode()}">'
    )


def _png(shades: np.ndarray) -> bytes:
    """A picture of one pixel for each of `shades` [height, width]."""
    height, width = shades.shape
    rows = np.pad(shades, ((0, 0), (1, 0))).tobytes()  # each begins with its filter: none
    header = struct.pack(
        ">IIBBBBB", width, height, 8, 3, 0, 0, 0
    )  # 8 bits that name a colour of the palette
    palette = b"".join(map(bytes, COLOURS))
    parts = [
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
