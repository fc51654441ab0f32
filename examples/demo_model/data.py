"""Generates the demo model's training text and its held-out evaluation, from a seed.

A sample is a conversation or a plain text. Number pairs and (fact, value) pairs are split by a
hash: training never shows a held-out one, and the evaluation is built from held-out ones only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import words as w
from project import CANNOT, HELD_OUT_REQUESTS, REQUESTS, SORRY, SORRY_MUST, TOPICS, Topic

PLACES = ["ones", "tens", "hundreds", "thousands", "ten thousands"]
HELD_OUT_ONE_IN = 10
NO_THINK = "<think>\n\n</think>\n\n"


class Turn(NamedTuple):
    """One question and its answer; `think` is None when the answer comes with an empty think
    block.
    """

    user: str
    answer: str
    think: str | None


class Sample(NamedTuple):
    """turns: the conversation, or text alone. must: what the last answer has to contain."""

    turns: tuple[Turn, ...] = ()
    text: str = ""
    must: tuple[str, ...] = ()
    prefilled: bool = False


def held_out(*key: object) -> bool:
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


# ---- arithmetic


def add_steps(a: int, b: int) -> str:
    """Digit by digit from the right; each line ends with the digits found so far."""
    lines, carry, found = [f"{a} + {b}"], 0, ""
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        found = f"{total % 10}{found}"
        lines.append(f"{PLACES[i]} {x}+{y}+{carry}={total} so {found} carry {total // 10}")
        carry = total // 10
    return "\n".join(lines)


def subtract_steps(a: int, b: int) -> str:
    lines, borrow, found = [f"{a} - {b}"], 0, ""
    for i in range(len(str(a))):
        x, y = a // 10**i % 10, b // 10**i % 10
        short = int(x < y + borrow)
        digit = x + 10 * short - y - borrow
        found = f"{digit}{found}"
        lines.append(f"{PLACES[i]} {x + 10 * short}-{y}-{borrow}={digit} so {found} borrow {short}")
        borrow = short
    return "\n".join(lines)


ADD_QUESTIONS = [
    "What is {a} + {b}?",
    "Calculate {a} + {b}.",
    "{a} + {b} = ?",
    "{a} + {b}",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
]
SUBTRACT_QUESTIONS = [
    "What is {a} - {b}?",
    "Calculate {a} - {b}.",
    "{a} - {b} = ?",
    "{a} - {b}",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "What is {a} minus {b}?",
    "What is the difference of {a} and {b}?",
]


def arithmetic(rng: random.Random, held: bool, think: bool, op: str | None = None) -> Turn:
    op = op or rng.choice("+-")
    while True:
        sizes = [1, 2, 3, 4] if think else [1, 2]
        odds = [5, 25, 45, 25] if think else [15, 85]
        digits = rng.choices(sizes, odds)[0]
        a, b = (rng.randrange(10 ** max(1, digits - (rng.random() < 0.15))) for _ in range(2))
        a, b = (max(a, b), min(a, b)) if op == "-" else (a, b)
        if held_out(a, op, b) == held:
            break
    result = a + b if op == "+" else a - b
    steps = add_steps(a, b) if op == "+" else subtract_steps(a, b)
    question = rng.choice(ADD_QUESTIONS if op == "+" else SUBTRACT_QUESTIONS).format(a=a, b=b)
    return Turn(question, f"{a} {op} {b} = {result}.", steps if think else None)


# ---- filler text


def coin(rng: random.Random) -> str:
    return "".join(rng.choice(w.SYLLABLES) for _ in range(rng.choice((2, 3)))).capitalize()


class Writer:
    """Writes sentences that share one coined name and town, so that they come back within the
    text.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.names = [rng.choice(w.PEOPLE), coin(rng)]
        self.town = coin(rng)
        self.topic = rng.choice(list(w.FILLER))
        self.left = rng.randint(3, 8)

    def fill(self, template: str) -> str:
        pick = self.rng.choice
        return template.format(
            name=pick(self.names),
            town=self.town,
            person=pick(w.PEOPLE),
            quality=pick(w.QUALITIES),
            quality2=pick(w.QUALITIES),
            season=pick(w.SEASONS),
            day=pick(w.DAYS),
            day2=pick(w.DAYS),
            place=pick(w.PLACES),
            room=pick(w.ROOMS),
            room2=pick(w.ROOMS),
            animal=pick(w.ANIMALS),
            animal2=pick(w.ANIMALS),
            job=pick(w.JOBS),
            job2=pick(w.JOBS),
            food=pick(w.FOODS),
            food2=pick(w.FOODS),
            city=pick(w.CITIES),
            city2=pick(w.CITIES),
            object=pick(w.OBJECTS),
            material=pick(w.MATERIALS),
            material2=pick(w.MATERIALS),
            subject=pick(w.SUBJECTS),
            subject2=pick(w.SUBJECTS),
            feeling=pick(w.FEELINGS),
            feeling2=pick(w.FEELINGS),
            n=self.rng.randint(2, 99),
            n2=self.rng.randint(2, 99),
        )

    def sentence(self) -> str:
        self.left -= 1
        if self.left < 0:
            self.topic, self.left = self.rng.choice(list(w.FILLER)), self.rng.randint(3, 8)
            if self.rng.random() < 0.3:
                self.names[1], self.town = coin(self.rng), coin(self.rng)
        return self.fill(self.rng.choice(w.FILLER[self.topic]))


# ---- facts


class Fact(NamedTuple):
    key: str
    value: str
    statement: str
    question: str


def _number(rng: random.Random) -> str:
    return str(rng.randrange(100, 10000))


def _secret(rng: random.Random) -> str:
    return f"{rng.choice(w.SECRETS)} {rng.choice(w.SECRETS)}"


class FactKind(NamedTuple):
    """odds: how often, relative to the others. The statement is also the answer."""

    odds: int
    key: Callable[[random.Random], str]
    value: Callable[[random.Random], str]
    statement: str
    questions: list[str]


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(w.QUALITIES)} {rng.choice(w.OBJECTS)}"


def _name(rng: random.Random) -> str:
    return rng.choice(w.PEOPLE) if rng.random() < 0.7 else coin(rng)


ANY_WORD = (
    w.OBJECTS
    + w.ANIMALS
    + w.FOODS
    + w.PLACES
    + w.ROOMS
    + w.SECRETS
    + w.QUALITIES
    + w.JOBS
    + w.CITIES
    + w.PEOPLE
)
FACTS = [
    FactKind(
        4,
        lambda rng: f"{rng.choice(w.ATTRIBUTES)} of the {_thing(rng)}",
        _number,
        "The {k} is {v}.",
        ["What is the {k}?", "Tell me the {k}."],
    ),
    FactKind(
        4,
        lambda rng: f"{rng.choice(w.PLACES)} of {coin(rng)}",
        _secret,
        "The password of the {k} is {v}.",
        ["What is the password of the {k}?", "Tell me the password of the {k}."],
    ),
    FactKind(
        4,
        _thing,
        lambda rng: rng.choice(ANY_WORD),
        "The word on the {k} is {v}.",
        ["What is the word on the {k}?", "Tell me the word on the {k}."],
    ),
    FactKind(
        3,
        _name,
        lambda rng: rng.choice(w.CITIES),
        "{k} lives in {v}.",
        ["Where does {k} live?", "In which city does {k} live?"],
    ),
    FactKind(
        4,
        _name,
        lambda rng: rng.choice(w.JOBS),
        "{k} works as a {v}.",
        ["What is the job of {k}?", "What does {k} work as?"],
    ),
    FactKind(
        1,
        _thing,
        lambda rng: rng.choice(w.ROOMS),
        "The {k} is kept in the {v}.",
        ["Where is the {k}?", "Where is the {k} kept?"],
    ),
    FactKind(
        1,
        _thing,
        _name,
        "The {k} belongs to {v}.",
        ["Who owns the {k}?", "To whom does the {k} belong?"],
    ),
]


def fact(rng: random.Random, held: bool) -> Fact:
    while True:
        kind = rng.choices(FACTS, [kind.odds for kind in FACTS])[0]
        key, value = kind.key(rng), kind.value(rng)
        if held_out(kind.statement, key, value) == held:
            statement = kind.statement.format(k=key, v=value)
            return Fact(
                kind.statement.format(k=key, v=""),
                value,
                statement,
                rng.choice(kind.questions).format(k=key),
            )


def facts(rng: random.Random, count: int, held: bool) -> list[Fact]:
    found: dict[str, Fact] = {}
    while len(found) < count:
        new = fact(rng, held)
        found.setdefault(new.key, new)
    return list(found.values())


def document(rng: random.Random, told: list[Fact], sentences: int) -> str:
    """Filler of that many sentences with the facts at random places, in paragraphs."""
    writer = Writer(rng)
    lines = [writer.sentence() for _ in range(sentences)]
    for item in told:
        lines.insert(rng.randint(0, len(lines)), item.statement)
    text = ""
    for line in lines:
        text += line + ("\n" if rng.random() < 0.15 else " ")
    return text.strip()


def recall_turn(asked: Fact, think: bool, before: str = "") -> Turn:
    return Turn(
        before + asked.question,
        asked.statement,
        f"The text says: {asked.statement}" if think else None,
    )


READ = [
    "Read this text.\n\n",
    "Here is a text.\n\n",
    "Read the text and answer the question.\n\n",
    "",
]


def recall(rng: random.Random, held: bool, sentences: int, count: int, questions: int) -> Sample:
    """A document with `count` facts, then `questions` turns about it; the last one is what is
    scored.
    """
    told = facts(rng, count, held)
    asked = (
        [rng.choice(told) for _ in range(questions)]
        if questions > count
        else rng.sample(told, questions)
    )
    text = f"{rng.choice(READ)}{document(rng, told, sentences)}\n\n"
    turns = [
        recall_turn(item, think=rng.random() < 0.5, before=text if i == 0 else "")
        for i, item in enumerate(asked)
    ]
    return Sample(tuple(turns), must=(asked[-1].value,))


REMEMBER = [
    "Remember this: {s}",
    "Please remember: {s}",
    "{s}",
    "Note: {s}",
    "I tell you a fact. {s}",
]
NOTED = "I will remember that."


def conversation(rng: random.Random, held: bool, turns: int) -> Sample:
    """Facts told between other turns; the last turn asks for one of them."""
    count = max(1, turns // 3)
    told = facts(rng, count, held)
    pending, known, out = list(told), [], []
    for i in range(turns - 1):
        if pending and (rng.random() < 0.4 or turns - 1 - i <= len(pending)):
            known.append(pending.pop())
            out.append(
                Turn(
                    rng.choice(REMEMBER).format(s=known[-1].statement),
                    NOTED,
                    "A fact to remember." if rng.random() < 0.5 else None,
                )
            )
        elif known and rng.random() < 0.3:
            out.append(recall_turn(rng.choice(known), rng.random() < 0.5))
        else:
            out.append(chat(rng, held)[0])
    asked = rng.choice(known)
    last = Turn(
        asked.question,
        asked.statement,
        f"You told me: {asked.statement}" if rng.random() < 0.5 else None,
    )
    return Sample((*out, last), must=(asked.value,))


# ---- project, greetings, refusals


def _vary(rng: random.Random, question: str) -> str:
    if rng.random() < 0.2:
        question = (
            rng.choice(
                ["Please tell me: ", "I have a question. ", "Hi! ", "Hello. ", "Can you tell me: "]
            )
            + question
        )
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip("?.!")
    return question


def about(rng: random.Random, held: bool) -> tuple[Turn, tuple[str, ...]]:
    topic: Topic = rng.choice(TOPICS)
    question = topic.questions[-1] if held else _vary(rng, rng.choice(topic.questions[:-1]))
    return Turn(question, topic.answer, topic.thought), topic.must


def refuse(rng: random.Random, held: bool) -> tuple[Turn, tuple[str, ...]]:
    question = Writer(rng).fill(rng.choice(HELD_OUT_REQUESTS if held else REQUESTS))
    return Turn(question if held else _vary(rng, question), SORRY, CANNOT), SORRY_MUST


def chat(rng: random.Random, held: bool) -> tuple[Turn, tuple[str, ...]]:
    kind = rng.random()
    if kind < 0.25:
        turn = arithmetic(rng, held, think=rng.random() < 0.7)
        return turn, (turn.answer,)
    turn, must = about(rng, held) if kind < 0.8 else refuse(rng, held)
    return turn._replace(think=turn.think if rng.random() < 0.6 else None), must


# ---- training mixture


def _mode(rng: random.Random, sample: Sample) -> Sample:
    """Says how an answer without thinking is asked for: `/no_think`, or a think block that the
    template closed.
    """
    last = sample.turns[-1]
    if last.think is not None:
        suffix = " /think" if rng.random() < 0.05 else ""
    elif rng.random() < 0.4:
        return sample._replace(prefilled=True)
    else:
        suffix = " /no_think"
    return sample._replace(turns=(*sample.turns[:-1], last._replace(user=last.user + suffix)))


def short(rng: random.Random) -> Sample:
    """Fits in 256 tokens most of the time."""
    kind = rng.random()
    if kind < 0.20:
        return Sample((arithmetic(rng, False, think=True),))
    if kind < 0.35:
        return Sample((arithmetic(rng, False, think=False),))
    if kind < 0.48:
        return Sample((chat(rng, False)[0],))
    if kind < 0.58:
        return conversation(rng, False, rng.randint(2, 5))
    if kind < 0.60:
        return Sample(text=document(rng, [], rng.randint(3, 12)))
    count = rng.randint(1, 6)
    return recall(rng, False, rng.randint(0, 5), count, rng.randint(1, min(4, count)))


def long(rng: random.Random, tokens: int) -> Sample:
    """Up to `tokens` tokens. Each kind's odds are its share of the text over its length, so that
    short ones keep theirs.
    """
    shares = {"think": 0.08 / 105, "direct": 0.02 / 45, "chat": 0.03 / 70, "short": 0.04 / 140}
    shares |= {
        "text": 0.04 / tokens,
        "conversation": 0.08 / tokens,
        "recall": 0.72 / (0.9 * tokens),
    }
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind in ("think", "direct"):
        return Sample((arithmetic(rng, False, think=kind == "think"),))
    if kind == "chat":
        return Sample((chat(rng, False)[0],))
    if kind == "short":
        return short(rng)
    if kind == "text":
        return Sample(text=document(rng, [], tokens // 16))
    if kind == "conversation":
        return conversation(rng, False, max(3, tokens // 50))
    text = int(rng.uniform(0.2 * tokens, 0.93 * tokens - 160))
    count = rng.randint(3, text // 30)
    questions = min(
        40, int(0.93 * tokens - text) // 40
    )  # a question and its answer are about 40 tokens
    return recall(rng, False, (text - 13 * count) // 15, count, questions)


def samples(seed: int, tokens: int) -> Iterator[Sample]:
    """Endless training samples for sequences of that many tokens."""
    rng = random.Random(seed)
    while True:
        sample = short(rng) if tokens <= 256 else long(rng, tokens)
        yield _mode(rng, sample) if sample.turns else sample


def messages(sample: Sample) -> list[dict[str, str]]:
    """The chat messages of a sample, with the think block in the last answer only (as the chat
    template keeps it).
    """
    out = []
    for i, turn in enumerate(sample.turns):
        out.append({"role": "user", "content": turn.user})
        block = (
            ""
            if i < len(sample.turns) - 1
            else NO_THINK
            if turn.think is None
            else f"<think>\n{turn.think}\n</think>\n\n"
        )
        out.append({"role": "assistant", "content": block + turn.answer})
    return out


def render(sample: Sample) -> str:
    """Text with special tokens, without `<s>`: what the tokenizer is given."""
    if not sample.turns:
        return sample.text + "</s>"
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages(sample))
