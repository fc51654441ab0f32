"""What is given in the place of a bundle or a checkpoint is named for what it is, with what to type
instead.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from minicpm_mlc.bundle.wrong_path import no_bundle, no_checkpoint
from minicpm_mlc.cli import main

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5301234\n"
DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "MiniCPM4.1-demo"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wrong things, where the command is run."""
    monkeypatch.chdir(tmp_path)
    # the environment would also count for tests after these: it is read once, at the first import
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    weights = (DEMO / "model.safetensors").read_bytes()
    for name, content in {
        "half": weights[: len(weights) // 2],
        "pointer": POINTER,
        "empty": b"",
        "npz": None,
    }.items():
        folder = _checkpoint(tmp_path / name)
        if content is not None:
            (folder / "model.safetensors").write_bytes(content)
    (tmp_path / "npz" / "weights.npz").write_bytes(b"PK\x03\x04")
    _checkpoint(tmp_path / "cached" / "snapshots" / "abc")
    (tmp_path / "lora").mkdir()
    adapter = {"base_model_name_or_path": "openbmb/MiniCPM4-0.5B", "peft_type": "LORA"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(8))
    (tmp_path / "pointer.gguf").write_bytes(POINTER)
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "nothing").mkdir()
    return tmp_path


def _checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    return folder


WRONG = [
    ("compile", "half", "is truncated: 2625784 bytes, its header needs 5251568; download it again"),
    ("compile", "pointer", "is a Git LFS pointer, not the weights; fetch them: git lfs pull"),
    ("compile", "empty", "model.safetensors: is empty; download it again"),
    ("compile", "npz", "has weights.npz but no model.safetensors; download the safetensors files"),
    ("compile", "cached", "give a folder inside: cached/snapshots/abc"),
    ("compile", "lora", "--adapter lora"),
    ("compile", "cut.gguf", "is cut off"),
    ("compile", "pointer.gguf", "is a Git LFS pointer"),
    ("compile", "empty.gguf", "empty.gguf: is empty; download it again"),
    ("compile", "bad.zip", "is an archive; unpack it and give the folder"),
    ("compile", "half/model.safetensors", "is one file of a checkpoint; give its folder, half"),
    ("compile", "notes.txt", "is neither a folder nor a GGUF file; give a checkpoint's folder"),
    (
        "compile",
        "nowhere",
        "nowhere is not a folder: there is nothing of that name; give a checkpoint's",
    ),
    ("compile", "nothing", "give the one that holds config.json and the weights"),
    ("compile", "openbmb/MiniCPM4.1-8B", "no folder of this machine has that name either"),
    ("inspect", "lora", "--adapter lora"),
    ("inspect", "cached", "give a folder inside: cached/snapshots/abc"),
    (
        "inspect",
        "nowhere",
        "nowhere is not a folder: there is nothing of that name; give a checkpoint's",
    ),
    ("chat", "half", "is a checkpoint, not a bundle; compile it first: minicpm-mlc compile half"),
    ("chat", "lora", "minicpm-mlc compile MODEL --adapter lora"),
    ("chat", "cut.gguf", "is a GGUF file, not a bundle; compile it first: minicpm-mlc compile cut"),
    ("chat", "bad.zip", "unpack it and give the folder of the bundle in it"),
    ("chat", "openbmb/MiniCPM4.1-8B", "minicpm-mlc run openbmb/MiniCPM4.1-8B"),
    ("chat", "nowhere", "nowhere is not there; give a bundle's folder"),
    ("quality", "half", "is a checkpoint, not a bundle; compile it first"),
]
NEEDED = {"quality": ["--reference", str(DEMO)], "chat": ["--prompt", "Hi"], "inspect": []}


@pytest.mark.parametrize(("verb", "path", "said"), WRONG)
def test_a_wrong_path_is_one_line_with_what_to_type(
    here: Path, verb: str, path: str, said: str
) -> None:
    result = CliRunner().invoke(main, [verb, path, *NEEDED.get(verb, ["-o", "out"])])
    assert result.exit_code == 1 and said in result.output, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.output
    assert "compiling it to f32" not in result.output and not (here / "out").exists()


def test_a_bundle_is_found_where_it_was_unpacked(tmp_path: Path) -> None:
    bundle = tmp_path / "unpacked" / "B"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    (bundle / "model.so").write_bytes(b"")
    assert f"give one: {bundle}" in no_bundle(bundle.parent)
    assert f"give its folder, {bundle}" in no_bundle(bundle / "model.so")
    with tarfile.open(tmp_path / "B.tar", "w") as archive:
        archive.add(bundle, "B")
    assert "unpack it" in no_bundle(tmp_path / "B.tar")
    assert "unpack it" in no_checkpoint(tmp_path / "B.tar")


def test_a_bundle_of_weights_is_no_archive(tmp_path: Path) -> None:
    """torch.save writes zips."""
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"PK\x03\x04")
    assert "is neither a folder nor a GGUF file" in no_checkpoint(file)
    (tmp_path / "config.json").write_text("{}")
    assert f"give its folder, {tmp_path}" in no_checkpoint(file)
    assert "is a checkpoint, not a bundle" in no_bundle(tmp_path)
