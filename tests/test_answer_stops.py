from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.runtime_py.chat.answer_stops import AnswerStops
from minicpm_mlc.runtime_py.chat.text import StopStrings

FRAGMENTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "\n", " ", "a", "b", "ab", "</"]),
    max_size=10,
).map("".join)
STOPS = st.lists(st.sampled_from(["a", "ab", "\n", "<", "think", "b </", ">"]), max_size=2)


def cut(pieces: list[str], stops: list[str], opened: bool) -> tuple[str, bool]:
    answer = AnswerStops(StopStrings(stops), opened)
    shown = ""
    for piece in pieces:
        shown += answer.feed(piece)
        if answer.stopped:
            return shown, True
    return shown + answer.finish(), answer.stopped


def by_definition(text: str, stops: list[str], opened: bool) -> tuple[str, bool]:
    """The thinking and the white space after it as they are, then StopStrings of the rest at
    once.
    """
    begins = opened or text.lstrip().startswith("<think>")
    thought, close, answer = text.partition("</think>") if begins else ("", "", text)
    if begins:
        space = answer[: len(answer) - len(answer.lstrip())]
        thought, answer = thought + close + space, answer.lstrip()
    rest = StopStrings(stops)
    shown = rest.feed(answer)
    return thought + shown + ("" if rest.stopped else rest.finish()), rest.stopped


@settings(derandomize=True, max_examples=600, deadline=None)
@given(FRAGMENTS, STOPS, st.lists(st.integers(0, 50), max_size=8), st.booleans())
def test_case_40_stop_strings_look_at_the_answer_alone(
    text: str, stops: list[str], cuts: list[int], opened: bool
) -> None:
    ends = sorted({min(place, len(text)) for place in cuts} | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert cut(pieces, stops, opened) == by_definition(text, stops, opened)


def test_thinking_is_shown_as_it_comes() -> None:
    stops = AnswerStops(StopStrings(["hm"]), opened=False)
    shown = [stops.feed(piece) for piece in ("<think>", "hm ", "</th", "ink>\n", "Yes")]
    assert shown == ["<think>", "hm ", "", "</think>\n", "Yes"]
