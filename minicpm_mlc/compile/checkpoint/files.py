"""The weight files of a folder, and which of them holds a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.base.files import read_json_object
from minicpm_mlc.base.text import shown
from minicpm_mlc.bundle.small_files import CONFIG
from minicpm_mlc.bundle.wrong_path import no_checkpoint
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.compile.checkpoint.torch_file import TorchFile

Found = Mapping[str, SafetensorsFile]  # the file of each stored tensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model"  # the name of a LoRA's weights, without its end
OTHER_FORMS = (".bin", ".pt", ".pth", ".gguf", ".npz", ".onnx")  # that are not read from a folder
REVISIONS = "snapshots/*"  # where a hub's cache has them
PARTIAL = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download")
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
LONGEST_NAME = 255  # bytes of a file's name


@dataclass(frozen=True)
class Kind:
    """A file format of weights, and what its files are called."""

    reader: type[SafetensorsFile]
    single: str

    @property
    def suffix(self) -> str:
        """The end of the files' names."""
        return Path(self.single).suffix

    @property
    def index(self) -> str:
        """The file that says which of several files holds a tensor."""
        return f"{self.single}.index.json"


SAFETENSORS = Kind(SafetensorsFile, "model.safetensors")
TORCH = Kind(TorchFile, "pytorch_model.bin")
SINGLE, INDEX = SAFETENSORS.single, SAFETENSORS.index


def find_tensors(folder: Path) -> dict[str, SafetensorsFile]:
    """The file of each tensor in a folder. Raises CheckpointError for damaged files, files of
    two models, or none.
    """
    for kind in (SAFETENSORS, TORCH):
        if found := _found(folder, kind):
            return found
    raise _no_weights(folder)


def check_whole_model(folder: Path) -> None:
    """Raises CheckpointError for what is no folder, for the folder of an adapter, and for one that
    holds models in folders inside, and says what to give.
    """
    if not folder.is_dir():
        raise CheckpointError(no_checkpoint(folder))
    if (folder / CONFIG).is_file():
        return
    if (path := folder / ADAPTER_CONFIG).is_file():
        said = read_json_object(path, CheckpointError, "download it again")
        trained_on = said.get("base_model_name_or_path") or "not named"
        raise CheckpointError(
            f"{folder} is a LoRA adapter, which changes a model; compile the model that it was "
            f"trained on ({trained_on!r:.80}) with it: minicpm-mlc compile MODEL --adapter {folder}"
        )
    places = [f"{at}/{name}" for name in (CONFIG, ADAPTER_CONFIG) for at in ("*", REVISIONS)]
    inside = [found for place in places for found in folder.glob(place)]
    if inside:
        names = ", ".join(sorted(str(found.parent) for found in inside))
        raise CheckpointError(f"{folder} has no {CONFIG}; give a folder inside: {names:.200}")


def listing(folder: Path) -> Path:
    """The file that says which tensors a folder has, for messages."""
    names = (kind_name for kind in (SAFETENSORS, TORCH) for kind_name in (kind.single, kind.index))
    return next((folder / name for name in names if (folder / name).is_file()), folder)


def unfinished(folder: Path) -> str | None:
    """The name of a file whose download has not ended, beside the others or where Hugging Face's
    downloads begin.
    """
    places = [folder, *folder.glob(".cache/huggingface/download")]
    names = sorted(file.name for place in places for file in place.iterdir())
    return next((name for name in names if name.endswith(PARTIAL)), None)


def _found(folder: Path, kind: Kind) -> dict[str, SafetensorsFile]:
    """The tensors of one format; none where the folder has no such files."""
    single, index = folder / kind.single, folder / kind.index
    if index.is_file():
        places = _read_index(index, kind)
        others = {name for name in places.values() if name != kind.single}
        if not single.is_file() or not others:
            return _follow(index, places, kind)
        if all((folder / name).is_file() for name in others):
            raise CheckpointError(
                f"{folder} has two models, {kind.single} and the files of {kind.index}; "
                "move one of them out"
            )
    if single.is_file():
        return _in_files([single], kind)
    return _in_files(_without_index(folder, kind), kind)


def _in_files(paths: list[Path], kind: Kind) -> dict[str, SafetensorsFile]:
    found: dict[str, SafetensorsFile] = {}
    for path in paths:
        file = kind.reader(path)
        if twice := next((name for name in file.entries if name in found), None):
            raise CheckpointError(
                f"{path} and {found[twice].path.name} both hold tensor {shown(twice)}; "
                "download the index too, or move one out"
            )
        found |= dict.fromkeys(file.entries, file)
    return found


def _without_index(folder: Path, kind: Kind) -> list[Path]:
    """The only file, or all numbered ones, where an index was lost in copying."""
    names = sorted(
        file.name
        for file in folder.iterdir()
        if file.name.endswith(kind.suffix) and not file.name.startswith(ADAPTER)
    )
    sets: dict[tuple[str, int], list[str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            sets.setdefault((match[1], int(match[3])), []).append(name)
    if len(sets) == 1 and (kind is TORCH or len(names) == sum(map(len, sets.values()))):
        [((_, count), parts)] = sets.items()
        if len(parts) == count:
            return [folder / name for name in parts]
        raise CheckpointError(
            f"{folder} has {len(parts)} of {count} files like {parts[0]} and no {kind.index}; "
            f"download the others, and download the index too{_still(folder)}"
        )
    if kind is TORCH or not names:
        return []
    if len(names) > 1:
        raise CheckpointError(
            f"{folder} has several weight files ({', '.join(names):.200}) and no {kind.index}; "
            "move out those that aren't meant, or download the index too"
        )
    return [folder / names[0]]


def _still(folder: Path) -> str:
    name = unfinished(folder)
    return f" ({name} is a download that has not ended)" if name else ""


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(file.name for file in folder.iterdir())
    if name := unfinished(folder):
        return CheckpointError(
            f"{folder} has {shown(name)}, a download that has not ended, and no {SINGLE}; run the "
            "download again"
        )
    if others := [name for name in names if name.endswith(OTHER_FORMS)]:
        return CheckpointError(
            f"{folder} has {others[0]} but no {SINGLE}; download the safetensors files, "
            "or convert with transformers: model.save_pretrained(FOLDER)"
        )
    return CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}; download the weights into it")


def _follow(index: Path, places: dict[str, str], kind: Kind) -> dict[str, SafetensorsFile]:
    """Every tensor the index names; what index and files hold must agree exactly."""
    files: dict[str, SafetensorsFile] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"{index} names {shown(name)}, which is not in the folder; download it"
                f"{_still(index.parent)}"
            )
        files[name] = kind.reader(index.parent / name)
    for tensor, name in places.items():
        if tensor not in files[name].entries:
            raise CheckpointError(
                f"{index} places tensor {shown(tensor)} in {shown(name)}, which doesn't hold it; "
                "download both again"
            )
    for name, file in files.items():
        if strays := [tensor for tensor in file.entries if places.get(tensor) != name]:
            raise CheckpointError(
                f"{file.path} holds tensor {shown(strays[0])}, which {kind.index} doesn't "
                "place there"
            )
    return {tensor: files[name] for tensor, name in places.items()}


def _read_index(index: Path, kind: Kind) -> dict[str, str]:
    advice = "it must be an object with a weight_map; download it again"
    places = read_json_object(index, CheckpointError, advice).get("weight_map")
    if not isinstance(places, dict) or not all(_is_name(n, kind) for n in places.values()):
        raise CheckpointError(f"{index}: weight_map must map tensors to names of files beside it")
    return places


def _is_name(name: object, kind: Kind) -> bool:
    # a path could lead out of the folder; no system has longer names
    return (
        isinstance(name, str)
        and name.endswith(kind.suffix)
        and not set(name) & set("/\\\0")
        and len(name.encode(errors="replace")) <= LONGEST_NAME
    )
