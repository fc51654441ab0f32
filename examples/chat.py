"""A chat with a memory, its thinking hidden: python examples/chat.py BUNDLE"""

from __future__ import annotations

import argparse

import minicpm_mlc

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", help="folder written by minicpm-mlc compile")
parser.add_argument(
    "--max-think-tokens", type=int, help="close the thinking after this many tokens"
)
args = parser.parse_args()

with minicpm_mlc.Engine(args.bundle) as engine:
    messages: list[dict[str, str]] = []
    while question := input("> ").strip():  # an empty line ends the chat
        messages.append({"role": "user", "content": question})
        answer = ""
        for kind, text in engine.chat_events(messages, max_think_tokens=args.max_think_tokens):
            if kind == "answer":
                answer += text
                print(text, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})
        stats = engine.stats
        print(f"\n[{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens were cached]")
