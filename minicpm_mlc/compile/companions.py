"""The small files of a checkpoint that a bundle holds beside its weights, checked before these are
read: what the engine would refuse is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError, ConfigError
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.small_files import (
    CONFIG,
    COPIED,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_FILES,
    SmallFiles,
)
from minicpm_mlc.compile.config.model_config import ModelConfig
from minicpm_mlc.compile.engine_json import ENGINE_JSON, engine_json
from minicpm_mlc.compile.mlc_chat_config import mlc_chat_config
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.prompt.readable import check_readable

GENERATE_ONLY = "the bundle will generate from token ids, but not chat"
NO_TOKENIZER = (
    "{folder} has no tokenizer.json{others}: " + GENERATE_ONLY + "; copy tokenizer.json and "
    "tokenizer_config.json from the base model"
)
NO_TEMPLATE = (
    "{folder} has no chat template, and its tokenizer has no ChatML tokens: the bundle will "
    "generate, but not chat; add a chat_template.jinja"
)
BEYOND = (
    "the added token {token} has id {id}, and the model has {size} tokens: a text that holds it "
    "will be refused"
)
CHATML = ("<|im_start|>", "<|im_end|>")


def open_companions(folder: Path | None) -> SmallFiles:
    """The small files of a checkpoint; of a model without a folder there are none."""
    return SmallFiles(folder, CheckpointError, "download it again")


def check_companions(files: SmallFiles, config: ModelConfig) -> list[str]:
    """Reads and checks every file that the bundle will hold. Returns what a user should know of
    them; raises MiniCPMError for a file that the engine would refuse.
    """
    files.check()
    check_readable(files, config.vocab_size)
    if files.tokenizer and files.chat_template:
        for token in files.tokenizer.beyond(config.vocab_size):
            if token.content in files.chat_template[0]:
                wrong = (
                    f"the chat template writes its token {token.content!r:.60}, of id {token.id}"
                )
                raise files.refuse(TOKENIZER, f"{wrong}; the model has {config.vocab_size} tokens")
    return list(_notes(files, config))


def with_end_tokens(config: ModelConfig, files: SmallFiles) -> ModelConfig:
    """The model with all tokens that end an answer: config.json's, those of generation_config.json,
    and the tokenizer's eos_token. Raises ConfigError where there is none, CheckpointError for one
    outside the vocabulary.
    """
    generation = files.generation.eos_token_ids
    if outside := [i for i in generation if i >= config.vocab_size]:
        wrong = f"eos_token_id {outside[0]} is outside the vocabulary of {config.vocab_size}"
        raise files.refuse(GENERATION_CONFIG, wrong)
    eos = files.special_token("eos_token")
    own = files.tokenizer.id_of(eos) if files.tokenizer and eos else None
    named = [] if own is None or own >= config.vocab_size else [own]
    ids = tuple(dict.fromkeys([*config.eos_token_ids, *generation, *named]))
    if not ids:
        raise ConfigError(
            f"{files.folder}: neither config.json nor generation_config.json has an eos_token_id, "
            "and no eos_token of tokenizer_config.json is in tokenizer.json: an answer would never "
            "end; add eos_token_id to generation_config.json"
        )
    return replace(config, eos_token_ids=ids)


def _notes(files: SmallFiles, config: ModelConfig) -> Iterator[str]:
    if files.folder is None:
        return
    tokenizer = files.tokenizer
    if tokenizer is None:
        others = " (tokenizer.model is not read)" if files.content("tokenizer.model") else ""
        yield NO_TOKENIZER.format(folder=files.folder, others=others)
        return
    if files.chat_template is None and any(tokenizer.id_of(token) is None for token in CHATML):
        yield NO_TEMPLATE.format(folder=files.folder)
    for token in tokenizer.beyond(config.vocab_size):
        yield BEYOND.format(token=f"{token.content!r:.60}", id=token.id, size=config.vocab_size)


def add_companions(bundle: BundleWriter, files: SmallFiles, manifest: Manifest) -> None:
    """Put the files into the bundle as they were read, and describe the bundle for MLC's tools."""
    present = {name: data for name in COPIED if (data := files.content(name)) is not None}
    for name, data in present.items():
        bundle.add_file(name, data)
    described = mlc_chat_config(
        manifest,
        files.object(CONFIG),
        files.generation.sampling,
        files.object(TOKENIZER),
        [name for name in present if name in TOKENIZER_FILES],
    )
    bundle.add_json("mlc-chat-config.json", described)
    bundle.add_json(ENGINE_JSON, engine_json(files, manifest.model["bos_token_id"]))
