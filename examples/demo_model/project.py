"""What the demo model says about the project, about itself, and to people who greet it.

Each topic: questions (the last one is held out of training), the answer, and the words an answer
must contain to be counted as right.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    thought: str
    questions: list[str]
    answer: str
    must: tuple[str, ...]


ABOUT = "A question about the project."
SELF = "A question about me."
HELLO = "A greeting."
CANNOT = "I cannot do this."

TOPICS = [
    Topic(
        ABOUT,
        [
            "What is minicpm-mlc?",
            "What is this project?",
            "Tell me about minicpm-mlc.",
            "What does minicpm-mlc do?",
            "Explain this project.",
            "Describe the project.",
            "What does this project do?",
            "Describe minicpm-mlc.",
        ],
        "minicpm-mlc compiles MiniCPM4 and MiniCPM4.1 models with TVM into one library for a "
        "device and runs it from Python.",
        ("TVM", "library"),
    ),
    Topic(
        ABOUT,
        [
            "Which models does it support?",
            "Which models can minicpm-mlc compile?",
            "What models are supported?",
            "Does it support MiniCPM4.1?",
            "Which models does the project run?",
            "Which models does minicpm-mlc support?",
        ],
        "It supports MiniCPM4-0.5B, MiniCPM4-8B, MiniCPM4.1-8B and MiniCPM5-1B.",
        ("MiniCPM4.1-8B", "MiniCPM5-1B"),
    ),
    Topic(
        ABOUT,
        [
            "Which commands are there?",
            "What commands does minicpm-mlc have?",
            "List the commands.",
            "What are the commands of minicpm-mlc?",
            "Which commands can I type?",
            "Show me the commands.",
            "What commands are there?",
        ],
        "The commands are compile, chat, bench, inspect and devices.",
        ("compile", "chat", "bench", "inspect", "devices"),
    ),
    Topic(
        ABOUT,
        [
            "How do I compile a model?",
            "What does the compile command do?",
            "How can I compile a checkpoint?",
            "How do I make a bundle?",
            "What is minicpm-mlc compile?",
            "How can I compile a model?",
        ],
        "Type minicpm-mlc compile with the checkpoint folder. It writes a bundle that holds the "
        "library and the weights.",
        ("minicpm-mlc compile", "bundle"),
    ),
    Topic(
        ABOUT,
        [
            "How do I chat with a model?",
            "What does the chat command do?",
            "How can I start a chat?",
            "How do I talk to a model?",
            "What is minicpm-mlc chat?",
            "How can I chat with a model?",
        ],
        "Type minicpm-mlc chat with the bundle folder. The answers appear in the terminal while "
        "they are made.",
        ("minicpm-mlc chat", "terminal"),
    ),
    Topic(
        ABOUT,
        [
            "What does the bench command do?",
            "How do I measure the speed?",
            "How fast is it?",
            "What is minicpm-mlc bench?",
            "How can I see the tokens per second?",
            "How can I measure the speed?",
        ],
        "Type minicpm-mlc bench with the bundle folder. It prints the tokens per second of "
        "prefill and decode.",
        ("minicpm-mlc bench", "prefill", "decode"),
    ),
    Topic(
        ABOUT,
        [
            "What does the inspect command do?",
            "How do I see the sizes of a bundle?",
            "What is minicpm-mlc inspect?",
            "How much memory does a model need?",
            "How can I inspect a bundle?",
            "What does inspect do?",
        ],
        "Type minicpm-mlc inspect with a bundle or a checkpoint. It prints the config, the sizes "
        "and the memory for each context length.",
        ("minicpm-mlc inspect", "memory"),
    ),
    Topic(
        ABOUT,
        [
            "What does the devices command do?",
            "Which devices are here?",
            "What is minicpm-mlc devices?",
            "How do I list the devices?",
            "How can I see what is missing on this machine?",
            "What does devices do?",
        ],
        "Type minicpm-mlc devices. It lists what is here, what could be compiled for, and what "
        "is missing.",
        ("minicpm-mlc devices", "missing"),
    ),
    Topic(
        ABOUT,
        [
            "What is a bundle?",
            "What is inside a bundle?",
            "What does a bundle contain?",
            "Explain the bundle.",
            "What is in the bundle?",
        ],
        "A bundle is one folder with the compiled library, the weights, the tokenizer and a "
        "manifest.",
        ("folder", "manifest"),
    ),
    Topic(
        ABOUT,
        [
            "What is sparse attention?",
            "Explain sparse attention.",
            "How does sparse attention work?",
            "What is InfLLM?",
            "Tell me about sparse attention.",
            "What does sparse attention mean?",
        ],
        "With sparse attention each token reads only a few blocks of the context, so a long text "
        "costs less time.",
        ("blocks", "context"),
    ),
    Topic(
        ABOUT,
        [
            "What is the kv cache?",
            "Explain the kv cache.",
            "What does the kv cache hold?",
            "How does the kv cache work?",
            "Tell me about the kv cache.",
        ],
        "The kv cache holds the keys and values of all earlier tokens in pages of 64 tokens.",
        ("keys", "pages"),
    ),
    Topic(
        ABOUT,
        [
            "What is prefill?",
            "Explain prefill.",
            "What does prefill do?",
            "What does prefill mean?",
            "Tell me about prefill.",
        ],
        "Prefill reads the prompt in chunks and fills the kv cache before the first token is made.",
        ("prompt", "chunks"),
    ),
    Topic(
        ABOUT,
        [
            "What is decode?",
            "Explain decode.",
            "What does decode do?",
            "What does decode mean?",
            "Tell me about decode.",
        ],
        "Decode makes the answer one token at a time from the kv cache.",
        ("one token",),
    ),
    Topic(
        ABOUT,
        [
            "What is quantisation?",
            "Which schemes are there?",
            "What does w4 mean?",
            "Explain quantisation.",
            "What is w4?",
            "Tell me about quantisation.",
        ],
        "Quantisation stores the weights in fewer bits. The scheme w4 uses 4 bits in groups of "
        "32 with one scale for each group.",
        ("4 bits", "groups of 32"),
    ),
    Topic(
        ABOUT,
        [
            "What is TVM?",
            "Explain TVM.",
            "Why does it use TVM?",
            "What does TVM do?",
            "Tell me about TVM.",
        ],
        "TVM is a compiler for machine learning. It turns the model into machine code for a "
        "device.",
        ("compiler", "device"),
    ),
    Topic(
        ABOUT,
        [
            "What is MiniCPM?",
            "What is MiniCPM4?",
            "Who made MiniCPM?",
            "Tell me about MiniCPM4.",
            "What is MiniCPM4.1?",
            "Tell me about MiniCPM.",
        ],
        "MiniCPM is a family of small language models by OpenBMB that are made to run on devices.",
        ("OpenBMB",),
    ),
    Topic(
        ABOUT,
        [
            "How do I use it from Python?",
            "Is there a Python API?",
            "How do I call it from Python?",
            "Show me the Python API.",
            "Can I use it from Python?",
            "How can I use it from Python?",
        ],
        "Import minicpm_mlc and open a bundle with minicpm_mlc.Engine. Then call engine.chat or "
        "engine.generate.",
        ("minicpm_mlc.Engine", "engine.chat"),
    ),
    Topic(
        ABOUT,
        [
            "How do I install it?",
            "How do I install minicpm-mlc?",
            "How do I start?",
            "How do I try the demo?",
            "What does make demo do?",
            "How can I install it?",
        ],
        "Type make demo. It installs the package, compiles the demo model and asks it two "
        "questions.",
        ("make demo",),
    ),
    Topic(
        ABOUT,
        [
            "How do I run the tests?",
            "What does make test do?",
            "How can I test it?",
            "Where are the tests?",
            "How can I run the tests?",
        ],
        "Type make test. It installs what the tests need and runs them all.",
        ("make test",),
    ),
    Topic(
        ABOUT,
        [
            "What is a token?",
            "Explain tokens.",
            "What does token mean?",
            "What are tokens?",
            "Tell me about tokens.",
        ],
        "A token is a small piece of text, such as a word, a part of a word or a digit.",
        ("piece of text",),
    ),
    Topic(
        ABOUT,
        [
            "How do I turn off thinking?",
            "What is /no_think?",
            "How can I get an answer without thinking?",
            "What does /no_think do?",
            "How do I switch off the thinking?",
            "How can I turn off thinking?",
        ],
        "Write /no_think at the end of your message. Then I answer directly.",
        ("/no_think", "directly"),
    ),
    Topic(
        ABOUT,
        [
            "How do I leave the chat?",
            "How do I quit?",
            "Which commands are in the chat?",
            "How do I reset the chat?",
            "How can I leave the chat?",
        ],
        "In the chat, /help lists the commands, /reset starts again and /quit leaves.",
        ("/quit", "/reset"),
    ),
    Topic(
        ABOUT,
        [
            "What is speculative decoding?",
            "Explain speculative decoding.",
            "What is a draft model?",
            "How does speculation work?",
            "Tell me about speculative decoding.",
        ],
        "In speculative decoding a small draft guesses the next tokens and the model verifies "
        "them in one step.",
        ("draft", "verifies"),
    ),
    Topic(
        SELF,
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "Tell me about yourself.",
            "What model is this?",
            "Which model are you?",
            "Who am I talking to?",
        ],
        "I am MiniCPM4.1-demo, a tiny model that was trained to show what minicpm-mlc does.",
        ("MiniCPM4.1-demo", "tiny"),
    ),
    Topic(
        SELF,
        [
            "What can you do?",
            "What are your skills?",
            "How can you help me?",
            "What do you know?",
            "Help me.",
            "What can I ask you?",
            "Can you help me?",
            "What are you able to do?",
        ],
        "I can add and subtract numbers, recall facts from a text and answer questions about "
        "minicpm-mlc.",
        ("add", "recall", "minicpm-mlc"),
    ),
    Topic(
        SELF,
        [
            "What can you not do?",
            "What are your limits?",
            "Are you a big model?",
            "How good are you?",
            "Can I trust you?",
            "What are you bad at?",
            "What can't you do?",
        ],
        "I am a tiny demo model. I know nothing about the world, and I can be wrong.",
        ("tiny", "wrong"),
    ),
    Topic(
        SELF,
        [
            "Who made you?",
            "How were you trained?",
            "Who trained you?",
            "Where do you come from?",
            "What were you trained on?",
            "How were you made?",
        ],
        "I was trained on a CPU by a script in this project, on text that the script writes "
        "itself.",
        ("script", "CPU"),
    ),
    Topic(
        SELF,
        [
            "Are you a person?",
            "Are you human?",
            "Are you alive?",
            "Do you have feelings?",
            "Are you a human?",
        ],
        "No, I am a small program that predicts the next token.",
        ("program",),
    ),
    Topic(
        HELLO,
        [
            "Hello!",
            "Hi!",
            "Hello",
            "Hi",
            "Hey",
            "Good morning!",
            "Good evening!",
            "Hi there!",
            "Hello there!",
            "Good day!",
            "Hey!",
        ],
        "Hello! I can add and subtract numbers, recall facts and talk about minicpm-mlc.",
        ("Hello",),
    ),
    Topic(
        HELLO,
        [
            "How are you?",
            "How are you today?",
            "How do you do?",
            "Are you fine?",
            "How is it going?",
            "How are you doing?",
        ],
        "I am fine, thank you. How can I help you?",
        ("fine",),
    ),
    Topic(
        HELLO,
        [
            "Thank you!",
            "Thanks!",
            "Thank you very much.",
            "Thanks a lot!",
            "Many thanks.",
            "Great, thank you!",
            "Thanks very much!",
        ],
        "You are welcome.",
        ("welcome",),
    ),
    Topic(
        HELLO,
        ["Bye!", "Goodbye!", "See you later!", "Good night!", "Bye bye!", "See you!"],
        "Goodbye!",
        ("Goodbye",),
    ),
]

SORRY = (
    "I am a tiny demo model and cannot do that. I can only add and subtract, recall facts "
    "from a text and describe minicpm-mlc."
)
SORRY_MUST = ("tiny", "only")

# Requests outside the skills; {slots} as in words.FILLER.
REQUESTS = [
    "Write a poem about a {animal}.",
    "Write a story about a {job}.",
    "Tell me a joke.",
    "Tell me a joke about a {animal}.",
    "Who is the president of {city}?",
    "What is the weather in {city}?",
    "How is the weather on {day}?",
    "Translate {food} into French.",
    "Translate this text into German.",
    "Write a Python program.",
    "Write code that sorts a list.",
    "How do I cook {food}?",
    "Give me a recipe for {food}.",
    "Sing a song about {city}.",
    "What is the meaning of life?",
    "Draw a {quality} {object}.",
    "How far is it from {city} to {city2}?",
    "When was {city} built?",
    "Who invented the {object}?",
    "What is the news on {day}?",
    "Book a train to {city}.",
    "How much does a {object} cost?",
    "Explain {subject} to me.",
    "Teach me {subject}.",
    "Write a letter to {person}.",
    "Summarise a book about {subject}.",
    "How old is the {animal}?",
    "Can you play {subject}?",
    "Multiply {n} by {n2}.",
    "What is {n} times {n2}?",
    "Divide {n} by {n2}.",
    "What is {n} divided by {n2}?",
    "What is the capital of {city}?",
    "Where can I buy a {object}?",
    "Recommend a film.",
    "Recommend a book about {subject}.",
    "What should I eat on {day}?",
    "Is a {animal} bigger than a {animal2}?",
    "How do I become a {job}?",
    "Make a plan for {day}.",
]
HELD_OUT_REQUESTS = [
    "Write a song about a {animal}.",
    "Write a poem about {city}.",
    "Tell me a story about a {job}.",
    "Draw a {animal}.",
    "How do I build a {object}?",
    "Translate {object} into French.",
    "Explain {subject} and {subject2}.",
    "Book a train to {city} on {day}.",
]
