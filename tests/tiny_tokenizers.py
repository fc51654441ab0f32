"""Two small real tokenizers: SentencePiece's kind with byte fallback, and byte-level BPE."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minicpm_mlc.prompt.tokenizer import byte_alphabet

WORDS = [
    "▁hello",
    "▁world",
    "hello",
    "h",
    "e",
    "l",
    "o",
    "▁",
    "a",
    "b",
    "你",
    "é",
    "think",
    "<",
    ">",
    "/",
    "▁▁",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def sentencepiece() -> Tokenizer:
    """Ids: <unk> 0, <s> 1, </s> 2, <|im_start|>, <|im_end|>, 256 bytes, words."""
    pieces = ["<unk>", *SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *WORDS]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """Ids: 256 bytes, some merges, <s> and friends, then `<think>` and `</think>` as added tokens
    that show.
    """
    letters = {b: char for char, b in byte_alphabet().items()}
    word = "".join(letters[b] for b in "你".encode())
    merges = [(word[0], word[1]), (word[:2], word[2]), (letters[32], "h"), ("h", "e")]
    vocab = {piece: i for i, piece in enumerate([*letters.values(), *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken(token, special=False) for token in ("<think>", "</think>", "über alles")]
    )
    return tokenizer
