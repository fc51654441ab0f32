"""The files of a checkpoint that a bundle holds beside its weights."""

from __future__ import annotations

from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_json
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.compile.mlc_chat_config import TOKENIZER_FILES, mlc_chat_config
from minicpm_mlc.compile.writer import BundleWriter

COPIED = (*TOKENIZER_FILES, "config.json", "generation_config.json", "chat_template.jinja")


def add_companions(bundle: BundleWriter, folder: Path | None, manifest: Manifest) -> None:
    """Copy the tokenizer, template and generation defaults of the checkpoint in `folder`, and
    describe the bundle for MLC's tools. Raises CheckpointError for a file that is not JSON.
    """
    present = (
        {name: folder / name for name in COPIED if (folder / name).is_file()} if folder else {}
    )
    for name, path in present.items():
        bundle.add_file(name, path)
    contents = {
        name: read_json(path, CheckpointError, "download it again")
        for name, path in present.items()
        if name.endswith(".json")
    }
    described = mlc_chat_config(
        manifest,
        contents.get("config.json", {}),
        contents.get("generation_config.json", {}),
        contents.get("tokenizer.json"),
        [name for name in present if name in TOKENIZER_FILES],
    )
    bundle.add_json("mlc-chat-config.json", described)
