"""The demo model's text: its worked steps are right, its split holds, its files match the published
form.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

DEMO = Path(__file__).parent.parent / "examples" / "demo_model"
CHECKPOINT = DEMO / "MiniCPM4.1-demo"
sys.path.insert(0, str(DEMO))
data = pytest.importorskip("data")
evaluate = pytest.importorskip("evaluate")

NUMBERS = st.integers(min_value=0, max_value=9999)
QUICK = settings(derandomize=True, max_examples=200)


@QUICK
@given(NUMBERS, NUMBERS)
def test_every_addition_step_is_true_and_leads_to_the_sum(a: int, b: int) -> None:
    lines = data.add_steps(a, b).splitlines()[1:]
    for line in lines:
        x, y, carry, total = map(int, re.search(r"(\d+)\+(\d+)\+(\d+)=(\d+)", line).groups())
        assert x + y + carry == total
    found, carry = re.search(r"so (\d+) carry (\d)$", lines[-1]).groups()
    assert int(carry + found) == a + b


@QUICK
@given(NUMBERS, NUMBERS)
def test_every_subtraction_step_is_true_and_leads_to_the_difference(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    lines = data.subtract_steps(a, b).splitlines()[1:]
    for line in lines:
        x, y, borrow, digit = map(int, re.search(r"(\d+)-(\d+)-(\d+)=(\d+)", line).groups())
        assert x - y - borrow == digit
    found, borrow = re.search(r"so (\d+) borrow (\d)$", lines[-1]).groups()
    assert (int(found), borrow) == (a - b, "0")


def test_training_never_shows_a_held_out_number_pair() -> None:
    pairs = set()
    for sample in itertools.islice(data.samples(seed=3, tokens=256), 1500):
        for turn in sample.turns:
            if equation := re.fullmatch(r"(\d+) ([+-]) (\d+) = \d+\.", turn.answer):
                pairs.add(equation.groups())
    assert len(pairs) > 300
    assert not any(data.held_out(int(a), op, int(b)) for a, op, b in pairs)


@pytest.mark.parametrize("held", [True, False])
def test_facts_keep_to_their_side_of_the_split(held: bool) -> None:
    rng = random.Random(5)
    for item in data.facts(rng, 60, held):
        again = data.fact(random.Random(item.statement), not held)
        assert again.statement != item.statement
        assert item.value in item.statement and item.value not in item.question


@pytest.mark.parametrize("skill", list(evaluate.SKILLS))
def test_a_held_out_prompt_is_answered_by_its_own_reference(skill: str) -> None:
    rng = random.Random(skill)
    for _ in range(5):
        sample = evaluate.SKILLS[skill](rng)
        prompt = evaluate.prompt_of(sample)
        reference = data.render(sample)[len(prompt) :].split("<|im_end|>")[0]
        assert prompt.endswith(("<|im_start|>assistant\n", data.NO_THINK))
        assert evaluate.right(sample, reference)
        assert not evaluate.right(sample, "I do not know.")


@pytest.mark.parametrize("tokens", evaluate.RECALL_LENGTHS)
def test_recall_prompts_are_as_long_as_they_say(tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    rng = random.Random(tokens)
    lengths = [
        len(
            tokenizer.encode(
                evaluate.prompt_of(evaluate.SKILLS[f"recall, {tokens} tokens"](rng))
            ).ids
        )
        for _ in range(10)
    ]
    assert 0.8 * tokens < sum(lengths) / 10 < 1.2 * tokens


def test_the_same_seed_gives_the_same_text() -> None:
    first, second = (
        list(itertools.islice(data.samples(seed=9, tokens=1024), 50)) for _ in range(2)
    )
    assert first == second


@QUICK
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), max_size=40))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens_and_bos_comes_once() -> None:
    tokens = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode("Is 4731 + 20").tokens
    assert tokens[0] == "<s>" and "<s>" not in tokens[1:]
    assert tokens[-9:] == ["▁", *"4731", "▁+", "▁", *"20"]


def test_checkpoint_files_agree_with_each_other() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert config["eos_token_id"] == [
        tokenizer.token_to_id("</s>"),
        tokenizer.token_to_id("<|im_end|>"),
    ]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert len(config["rope_scaling"]["long_factor"]) == 32
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12_000_000


def test_the_loss_counts_what_the_model_has_to_say_and_nothing_else() -> None:
    train = pytest.importorskip("train", exc_type=ImportError)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    turns = (data.Turn("Hi", "Hello!", None), data.Turn("2 + 2", "2 + 2 = 4.", "2 + 2"))
    marks = tuple(tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    head = tokenizer.encode("assistant\n", add_special_tokens=False).ids

    def counted(sample: data.Sample) -> str:
        ids = tokenizer.encode(data.render(sample)).ids
        weights = train.weigh(ids, (*marks, head), sample.prefilled)
        return tokenizer.decode(
            [i for i, weight in zip(ids, weights, strict=True) if weight == 1],
            skip_special_tokens=False,
        )

    # The first token of a past answer stands where a think block would: it is left out.
    said = counted(data.Sample(turns))
    assert said.endswith("!<|im_end|><think>\n2 + 2\n</think>\n\n2 + 2 = 4.<|im_end|>")
    assert "Hi" not in said and "Hello" not in said
    direct = data.Sample((data.Turn("2 + 2", "2 + 2 = 4.", None),), prefilled=True)
    assert counted(direct) == "2 + 2 = 4.<|im_end|>"
    assert counted(direct._replace(prefilled=False)) == data.NO_THINK + "2 + 2 = 4.<|im_end|>"


def test_the_shipped_tokenizer_files_name_the_published_special_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<0x00>")] == [
        0,
        1,
        2,
        3,
    ]
    last = [
        tokenizer.id_to_token(i)
        for i in range(tokenizer.get_vocab_size() - 8, tokenizer.get_vocab_size())
    ]
    assert last[:3] == ["<|im_end|>", "<|im_start|>", "<|tool_call|>"]
    assert (
        json.loads((CHECKPOINT / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    )


def test_needles_in_a_bundle_without_a_sparse_gear_are_refused_by_name(
    tiny_bundle, monkeypatch, capsys
) -> None:
    bundle = tiny_bundle("MiniCPM5-1B").path
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--needle", "--bundle", str(bundle)])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert f"{bundle} has no sparse one" in capsys.readouterr().err
