"""Which files of a repository a model needs: config, tokenizer, and weights of one form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.base.text import shown
from minicpm_mlc.hub.listing import RemoteFile

GGUF = ".gguf"
SAFETENSORS = ".safetensors"
TORCH = (".bin", ".pt")
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# no remote code, no README, no weights: what compile reads beside them
SMALL = (
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
USUAL = ("Q4_K_M", "Q4_0", "Q8_0")  # what is taken of several quantisations without a choice
NOT_MODELS = ("mmproj", "imatrix")  # how other GGUF files are called
SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
LISTED = 12  # names in an error


@dataclass(frozen=True)
class Needed:
    """The files to fetch. `main` is what is compiled: a file or a folder of the repository."""

    files: list[RemoteFile]
    main: str

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)


def needed_files(files: Sequence[RemoteFile], choice: str | None, where: str) -> Needed:
    """What of a repository's `files` is fetched.

    Raises HubError, with what there is, for a repository without weights, for a choice that it
    doesn't have, and where a choice has to be made.
    """
    files = [file for file in files if _is_inside(file.path)]
    needed = _chosen(files, choice, where) if choice else _usual(files, where)
    for group in _sets(needed.files).values():
        split = SPLIT.fullmatch(group[0].path)
        if split and len(group) != int(split["count"]):
            raise HubError(
                f"{where} has {len(group)} of the {int(split['count'])} files of {group[0].name}; "
                "pull it again"
            )
    return needed


def _usual(files: list[RemoteFile], where: str) -> Needed:
    """Without a choice: a checkpoint, else the only GGUF model or the usual quantisation."""
    for folder in _model_folders(files):
        return _checkpoint(files, folder, where)
    ggufs = _gguf_models(files)
    if len(ggufs) == 1:
        return _gguf(next(iter(ggufs.values())))
    for quantisation in USUAL:
        if found := _quantised(ggufs, quantisation):
            return _gguf(ggufs[found[0]])
    if ggufs:
        raise HubError(f"{where} has several models; give one as {where}:FILE: {_names(ggufs)}")
    raise HubError(
        f"{where} holds no weights that are read (safetensors or GGUF), but "
        f"{_names([file.path for file in files])}; give another repository"
    )


def _is_inside(path: str) -> bool:
    """Whether a path from a hub stays in the folder that it is put into."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\\" not in path


def _chosen(files: list[RemoteFile], choice: str, where: str) -> Needed:
    """A GGUF file by its quantisation or name, a file of weights, or a folder."""
    ggufs = _gguf_models(files)
    found = _quantised(ggufs, choice) or [name for name in ggufs if name == choice]
    if len(found) == 1:
        return _gguf(ggufs[found[0]])
    if found:
        raise HubError(f"{where} fits several models; give one as :FILE: {_names(found)}")
    weights = [file for file in files if file.path == choice and _is_weights(file)]
    if weights:
        return _with_small(files, weights, weights[0].folder)
    if any(file.folder == choice and _is_weights(file) for file in files):
        return _checkpoint(files, choice, where)
    there = [*ggufs] or [file.path for file in files if _is_weights(file)]
    raise HubError(f"{where}: there is no {shown(choice)}; there are {_names(there)}")


def _model_folders(files: list[RemoteFile]) -> list[str]:
    """Folders with a config and weights, the repository's own first: EAGLE heads lie in another."""
    configured = {file.folder for file in files if file.name in (CONFIG, ADAPTER_CONFIG)}
    weighted = {file.folder for file in files if _is_weights(file)}
    return sorted(configured & weighted, key=lambda folder: (folder.count("/"), folder))


def _is_weights(file: RemoteFile) -> bool:
    return file.name.endswith((SAFETENSORS, *TORCH)) and file.name != "training_args.bin"


def _checkpoint(files: list[RemoteFile], folder: str, where: str) -> Needed:
    """A folder's weights: the single file, the shards, or the only other one; torch's files only
    where there are no safetensors.
    """
    weights = [file for file in files if file.folder == folder and _is_weights(file)]
    forms = [file for file in weights if file.name.endswith(SAFETENSORS)] or weights
    single = [
        file
        for file in forms
        if file.name in ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")
    ]
    if taken := single or _only_set(forms):
        return _with_small(files, taken, folder)
    raise HubError(
        f"{where} has weights in several forms; give one as {where}:FILE: "
        f"{_names([file.path for file in forms])}"
    )


def _only_set(files: list[RemoteFile]) -> list[RemoteFile]:
    """The shards of one model, or the only file; else none."""
    sets = _sets(files)
    shards = [group for group in sets.values() if SPLIT.fullmatch(group[0].name)]
    for groups in (shards, list(sets.values())):
        if len(groups) == 1:
            return groups[0]
    return []


def _sets(files: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """Files that belong together, by path; those of a split model by the path without numbers."""
    sets: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        split = SPLIT.fullmatch(file.path)
        name = f"{split['stem']}{split['suffix']}" if split else file.path
        sets.setdefault(name, []).append(file)
    return sets


def _with_small(files: list[RemoteFile], weights: list[RemoteFile], folder: str) -> Needed:
    """The weights, and the small files beside them."""
    small = [
        file
        for file in files
        if file.folder == folder and (file.name in SMALL or file.name.endswith(".index.json"))
    ]
    return Needed([*small, *weights], folder)


def _gguf_models(files: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """GGUF models by the path of their file, split ones without its numbers."""
    models = [
        file
        for file in files
        if file.name.lower().endswith(GGUF) and not file.name.lower().startswith(NOT_MODELS)
    ]
    return _sets(models)


def _quantised(ggufs: dict[str, list[RemoteFile]], quantisation: str) -> list[str]:
    """Models whose names end in a quantisation, such as NAME-Q4_K_M.gguf; of Unsloth's mixes
    (NAME-UD-Q4_K_M.gguf) only where there are no plain ones.
    """
    end = re.compile(rf"(?:.*[-._/])?{re.escape(quantisation)}\.gguf", re.IGNORECASE)
    found = [name for name in ggufs if end.fullmatch(name)]
    plain = [name for name in found if "-ud-" not in name.lower()]
    return plain or found


def _gguf(parts: list[RemoteFile]) -> Needed:
    return Needed(parts, parts[0].path)


def _names(names: Sequence[str] | dict[str, list[RemoteFile]]) -> str:
    listed = [shown(name, 80) for name in list(names)[:LISTED]]
    more = f" and {len(names) - LISTED} others" if len(names) > LISTED else ""
    return (", ".join(listed) or "nothing") + more
