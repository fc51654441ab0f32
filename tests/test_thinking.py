from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.prompt.thinking import ThinkSplitter, opens_thinking, without_thinking

FRAGMENTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<", "</", "think", ">", "\n", " ", "a", "é", "</thin", "no"]
    ),
    max_size=12,
).map("".join)


def split(pieces: list[str], opened: bool = False) -> dict[str, str]:
    splitter = ThinkSplitter(opened)
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.finish()
    assert all(text for _, text in events)
    return {
        kind: "".join(text for k, text in events if k == kind) for kind in ("thinking", "answer")
    }


def by_definition(text: str, opened: bool) -> dict[str, str]:
    """The obvious definition on the whole text."""
    body = text.lstrip()
    if not opened and not body.startswith("<think>"):
        return {"thinking": "", "answer": text}
    inside = text if opened else body[len("<think>") :]
    thought, _, answer = inside.partition("</think>")
    return {"thinking": thought.strip(), "answer": answer.lstrip()}


@settings(derandomize=True, max_examples=400, deadline=None)
@given(text=FRAGMENTS, cuts=st.lists(st.integers(0, 60), max_size=12), opened=st.booleans())
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    text: str, cuts: list[int], opened: bool
) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert "".join(pieces) == text
    assert split(pieces, opened) == by_definition(text, opened)


def test_markers_split_over_pieces_are_recognised() -> None:
    pieces = ["<th", "ink", ">\n1 + 1", "\n", "</", "think>", "\n\nTw", "o"]
    assert split(pieces) == {"thinking": "1 + 1", "answer": "Two"}


def test_text_is_passed_on_as_soon_as_it_can_not_be_a_marker() -> None:
    splitter = ThinkSplitter()
    assert splitter.feed("<thin") == []
    assert splitter.feed("g") == [("answer", "<thing")]
    assert splitter.feed(" </think> <") == [("answer", " </think> <")]


def test_thinking_property_follows_the_block() -> None:
    splitter = ThinkSplitter()
    assert not splitter.thinking
    splitter.feed("<think>\nhm")
    assert splitter.thinking
    splitter.feed("</think>")
    assert not splitter.thinking
    assert ThinkSplitter(opened=True).thinking


def test_empty_block_gives_only_the_answer() -> None:
    assert split(["<think>\n\n</think>\n\nYes"]) == {"thinking": "", "answer": "Yes"}


def test_a_later_block_stays_in_the_answer() -> None:
    assert split(["It writes <think>steps</think>."])["answer"] == "It writes <think>steps</think>."


def test_prompt_that_opens_the_block() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_past_thinking_is_left_out() -> None:
    assert without_thinking("<think>\na\n</think>\n\nb") == "b"
    assert without_thinking("a\n</think>\n\nb", opened=True) == "b"
    assert without_thinking("<think>\nunfinished") == ""
    assert without_thinking("steps go in <think>x</think>") == "steps go in <think>x</think>"
    assert without_thinking(" plain") == " plain"
