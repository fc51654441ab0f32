"""What a path is that is no bundle, or no checkpoint, and what to type instead."""

from __future__ import annotations

import re
from pathlib import Path

from minicpm_mlc.base.text import shown
from minicpm_mlc.bundle.manifest_schema import MANIFEST

COMPILE = "compile it first: minicpm-mlc compile"
REPOSITORY = re.compile(r"(\w+:)?\w[\w.-]*/\w[\w.-]*")
GGUF = b"GGUF"
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ")
TAR, TAR_AT = b"ustar", 257  # bytes from its beginning
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")


def no_bundle(path: Path) -> str:
    """One sentence on a path that holds no bundle."""
    if path.is_dir():
        return _no_bundle_folder(path)
    if path.exists():
        return _no_bundle_file(path)
    if REPOSITORY.fullmatch(str(path)):
        return (
            f"{shown(path)} is not there; if it is the name of a model on a hub: minicpm-mlc run "
            f"{shown(path)}"
        )
    return f"{shown(path)} is not there; give a bundle's folder, which minicpm-mlc compile writes"


def no_checkpoint(path: Path) -> str:
    """One sentence on a path that is neither a folder nor a GGUF file."""
    wanted = "give a checkpoint's folder, a GGUF file, a bundle, or ORG/NAME of a hub"
    if not path.exists():
        return f"{shown(path)} is not a folder: there is nothing of that name; {wanted}"
    if _is_archive(path) and path.suffix not in WEIGHTS:
        return f"{shown(path)} is an archive; unpack it and give the folder"
    if (path.parent / "config.json").is_file():
        return f"{shown(path)} is one file of a checkpoint; give its folder, {path.parent}"
    return f"{shown(path)} is neither a folder nor a GGUF file; {wanted}"


def _no_bundle_folder(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is a LoRA adapter; compile its model with it: minicpm-mlc compile MODEL "
            f"--adapter {folder}"
        )
    if (folder / "config.json").is_file() and any(_weights(folder)):
        return f"{folder} is a checkpoint, not a bundle; {COMPILE} {folder}"
    if file := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"{folder} has a GGUF file, and no bundle; {COMPILE} {file}"
    if inside := sorted(folder.glob(f"*/{MANIFEST}")):
        names = ", ".join(str(found.parent) for found in inside)
        return f"{folder} has no {MANIFEST}, but folders inside have; give one: {names:.200}"
    return (
        f"{folder} has no {MANIFEST}, so it isn't a bundle; make one: minicpm-mlc compile "
        "CHECKPOINT"
    )


def _no_bundle_file(path: Path) -> str:
    if _head(path).startswith(GGUF):
        return f"{path} is a GGUF file, not a bundle; {COMPILE} {path}"
    if path.suffix not in WEIGHTS and _is_archive(path):
        return f"{path} is a file, an archive; unpack it and give the folder of the bundle in it"
    if (path.parent / MANIFEST).is_file():
        return f"{path} is a file of a bundle; give its folder, {path.parent}"
    return f"{path} is a file; give a bundle's folder, which minicpm-mlc compile writes"


def _weights(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix in WEIGHTS]


def _is_archive(path: Path) -> bool:
    """Of those that `package` writes and hubs offer."""
    head = _head(path)
    return head.startswith(ARCHIVES) or head[TAR_AT:].startswith(TAR)


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of what is no file or can't be read."""
    try:
        if not path.is_file():
            return b""
        with open(path, "rb") as file:
            return file.read(TAR_AT + len(TAR))
    except OSError:
        return b""
