"""Which files of a folder are its weights: whole sets without an index, other tools' names, and one
sentence for what is missing, unfinished or twice there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint, write_json

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.checkpoint.files import find_tensors

CONFIG = tiny_config("MiniCPM5-1B", hidden_size=64, intermediate_size=64, num_layers=1)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def index_of(file: str) -> Callable[[Path], object]:
    """An index that places every tensor in one file, which the folder's only one becomes."""

    def change(folder: Path) -> None:
        (folder / SINGLE).rename(folder / file)
        write_json(folder / INDEX, {"weight_map": dict.fromkeys(find_tensors(folder), file)})

    return change


def lost_index_from_zero(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / SECOND).rename(folder / "model-00000-of-00002.safetensors")


READ: dict[str, tuple[int, Callable[[Path], object]]] = {
    "MiniCPM5-2B's one file, numbered from 0": (1, index_of("model-00000-of-00001.safetensors")),
    "MLX's one file with an index": (1, index_of(SINGLE)),
    "one file of another name": (1, rename(SINGLE, "model_gptq.safetensors")),
    "an index that was lost": (2, lambda folder: (folder / INDEX).unlink()),
    "the same, numbered from 0": (2, lost_index_from_zero),
    "an index that the one file outlived": (
        1,
        lambda folder: write_json(folder / INDEX, {"weight_map": {"x": FIRST}}),
    ),
    "an adapter beside the model": (
        1,
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_folders_as_they_come_are_read(tmp_path, case):
    shards, change = READ[case]
    weights = write_checkpoint(tmp_path, CONFIG, shards=shards)
    change(tmp_path)
    found = open_checkpoint(tmp_path, CONFIG)
    assert all(np.array_equal(found.rows(name), value) for name, value in weights.items())


def two_models(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / FIRST).read_bytes())


def hub_download(folder: Path) -> None:
    (folder / SINGLE).unlink()
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / f"{SINGLE}.5f2c.incomplete").write_bytes(b"x")


def same_tensors(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / SECOND).write_bytes((folder / FIRST).read_bytes())


def second_of_two(folder: Path) -> None:
    (folder / SECOND).rename(folder / f"{SECOND}.incomplete")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
REFUSED: dict[str, tuple[int, Callable[[Path], object]]] = {
    f"has two models, {SINGLE} and the files of {INDEX}": (2, two_models),
    "has several weight files [(]a.safetensors, b.safetensors[)]": (
        1,
        lambda folder: [
            (folder / SINGLE).rename(folder / "a.safetensors"),
            (folder / "b.safetensors").write_bytes(b"x"),
        ],
    ),
    f"has 1 of 2 files like {FIRST} and no {INDEX}.*index too": (
        2,
        lambda folder: [(folder / INDEX).unlink(), (folder / SECOND).unlink()],
    ),
    f"names {SECOND}, which is not in the folder; .*incomplete is a download that": (
        2,
        second_of_two,
    ),
    f"{FIRST} both hold tensor .*index too": (2, same_tensors),
    f"has {SINGLE}.5f2c.incomplete, a download that has not ended": (1, hub_download),
    f"has {SINGLE}.part, a download that has not ended": (1, rename(SINGLE, f"{SINGLE}.part")),
    "index.json is a Git LFS pointer": (2, lambda folder: (folder / INDEX).write_bytes(LFS)),
    f"{SINGLE}: is a Git LFS pointer": (1, lambda folder: (folder / SINGLE).write_bytes(LFS)),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_missing_or_twice_there_is_one_sentence(tmp_path, wrong):
    shards, change = REFUSED[wrong]
    write_checkpoint(tmp_path, CONFIG, shards=shards)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=wrong) as caught:
        open_checkpoint(tmp_path, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("index", [True, False])
def test_xtuners_merged_model_is_read_from_files_of_torch(tmp_path, shards, index):
    """float16 in pytorch_model.bin, or in numbered files of 2 GB and their index."""
    torch = pytest.importorskip("torch")
    weights = write_checkpoint(tmp_path, CONFIG, dtype="f16")
    (tmp_path / SINGLE).unlink()
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    files = names if shards > 1 or index else ["pytorch_model.bin"]
    places = {name: files[i % shards] for i, name in enumerate(weights)}
    for file in files:
        part = {n: torch.from_numpy(weights[n]).half() for n in weights if places[n] == file}
        torch.save(part, tmp_path / file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": places})
        (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    (tmp_path / "training_args.bin").write_bytes(b"x")
    found = open_checkpoint(tmp_path, CONFIG)
    assert all(np.array_equal(found.rows(name), value) for name, value in weights.items())


def test_a_damaged_file_of_torch_is_one_sentence(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / SINGLE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is not a whole file of torch"):
        open_checkpoint(tmp_path, CONFIG)
    (tmp_path / "pytorch_model.bin").write_bytes(LFS)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: is a Git LFS pointer"):
        open_checkpoint(tmp_path, CONFIG)
