"""The bundle's tokenizer.json, by the `tokenizers` library, with BOS exactly once and the bytes of
one token.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.text import whole_characters
from minicpm_mlc.bundle.small_files import TOKENIZER, SmallFiles
from minicpm_mlc.prompt.library_tokenizer import (
    library_errors,
    read_tokenizer,
    token_ids,
)
from minicpm_mlc.prompt.prompt_tokens import beginning
from minicpm_mlc.prompt.thinking import CLOSE, OPEN

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Text to token ids and back. `raw` is the library's own tokenizer."""

    def __init__(self, raw: HFTokenizer, bos_token_id: int | None, add_bos: bool) -> None:
        self.raw = raw
        self.bos_token_id = bos_token_id
        self.add_bos = add_bos
        raw.no_padding()
        raw.no_truncation()
        # Special tokens give no text. Think tags do, whatever the tokenizer calls them.
        self.hidden = {
            i: token.content
            for i, token in raw.get_added_tokens_decoder().items()
            if token.special and token.content not in (OPEN, CLOSE)
        }
        self._decoders = _decoders(raw)

    @classmethod
    def from_folder(cls, folder: Path, bos_token_id: int | None, vocab_size: int) -> Tokenizer:
        """As from_files, of a bundle's folder."""
        return cls.from_files(SmallFiles(folder), bos_token_id, vocab_size)

    @classmethod
    def from_files(cls, files: SmallFiles, bos_token_id: int | None, vocab_size: int) -> Tokenizer:
        """Reads tokenizer.json and its config. Raises the files' error if they're damaged or don't
        fit the model, BundleError if there are none.

        An added token beyond the vocabulary is no mistake: it is refused when a text holds it.
        """
        if files.content(TOKENIZER) is None:
            raise BundleError(
                f"{files.folder} has no tokenizer.json, so it can't read text (random weights have "
                "none); "
                "compile a checkpoint that has one, or give token ids to logits, prefill and decode"
            )
        raw = read_tokenizer(files)
        largest = max(raw.get_vocab(with_added_tokens=False).values(), default=-1)
        if largest >= vocab_size:
            raise files.refuse(
                TOKENIZER,
                f"it has token id {largest}, but the model has {vocab_size} tokens; it belongs to "
                "another model",
            )
        first = beginning(raw) if bos_token_id is not None else []  # null: the model has no BOS
        return cls(raw, first[0] if first else bos_token_id, bool(first))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of text, special tokens in it recognised. BOS comes first, once, if the model
        wants it.
        """
        ids = token_ids(self.raw, whole_characters(text))
        wanted = bos and self.add_bos and self.bos_token_id is not None
        return [self.bos_token_id, *ids] if wanted and ids[:1] != [self.bos_token_id] else ids  # type: ignore[list-item]

    def encode_middle(self, text: str) -> list[int]:
        """Token ids of text that goes on from other text: without the space some tokenizers put
        before a first word.
        """
        with library_errors():
            encoding = self.raw.encode("a" + text, add_special_tokens=False)
        spans = list(zip(encoding.ids, encoding.offsets, strict=True))
        if any(
            start < 1 < end for _, (start, end) in spans
        ):  # the text's beginning merged with the "a"
            return self.encode(text, bos=False)
        return [i for i, (start, _) in spans if start >= 1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids at once, special tokens other than think tags left out."""
        shown = [i for i in ids if i not in self.hidden]
        with library_errors():
            return self.raw.decode(shown, skip_special_tokens=False)

    @functools.cached_property
    def strips_first_space(self) -> bool:
        """Whether decoding drops the space before a text's first word, as SentencePiece does."""
        return any(
            d.get("start", 0) > 0 or d.get("prepend_scheme", "never") != "never"
            for d in self._decoders
        )

    @functools.cached_property
    def _byte_level(self) -> bool:
        return any(d["type"] == "ByteLevel" for d in self._decoders)

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that this token adds inside a text, perhaps a part of a character; none for a
        special token.
        """
        token = self.raw.id_to_token(token_id)
        if token is None or token_id in self.hidden:
            return b""
        if self._byte_level:
            alphabet = byte_alphabet()
            known = all(char in alphabet for char in token)
            return bytes(alphabet[char] for char in token) if known else token.encode()
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()


def _decoders(raw: HFTokenizer) -> list[dict]:
    """The decoder's steps as tokenizer.json writes them."""
    if raw.decoder is None:
        return []
    decoder = json.loads(raw.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "ByteLevel"}
    if strange := {step["type"] for step in steps} - known:
        raise BundleError(
            f"the tokenizer's decoder {sorted(strange)} is not known; known are {sorted(known)}"
        )
    return steps


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the others for U+0100
    and up.
    """
    itself = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [b for b in range(256) if b not in set(itself)]
    return {**{chr(b): b for b in itself}, **{chr(256 + n): b for n, b in enumerate(rest)}}
