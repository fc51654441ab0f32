"""Weight files and lists from strangers: what their sizes and pickles claim is held against the
file before anything is allocated or computed.
"""

from __future__ import annotations

import json
import pickle
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint import open_checkpoint
from minicpm_mlc.compile.checkpoint.safetensors import MAX_TENSORS, SafetensorsFile
from minicpm_mlc.compile.checkpoint.torch_file import MAX_MEMBERS, TorchFile
from minicpm_mlc.compile.checkpoint.torch_pickle import MAX_STEPS
from minicpm_mlc.compile.frspec import read_list, write_list

VOCAB = 1000
PROTOCOL = b"\x80\x02"


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Every refusal comes within seconds, on a busy machine too."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


def pt(folder: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "x.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + program)
    return path


LONG_PUT, LONG_GET = b"r", b"j"
NESTED = b"K\x01" + b"2\x86" * 40  # a tuple of twice the tuple before, by DUP
SHARED = b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 40  # the same by the memo
PROGRAMS = {
    "a memo of 2^27 places": (b"]" + LONG_PUT + struct.pack("<I", 1 << 27) + b".", None),
    "a key that hashes for ever": (b"}" + NESTED + b"K\x01s.", "DUP"),
    "the same by the memo": (b"}" + SHARED + b"K\x01s.", "a dict whose keys are not text"),
    "shown for ever": (b"](" + SHARED + b"e.", "entry 1 is "),
    "a number of a megabyte": (
        b"\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b".",
        "LONG4",
    ),
    "more values than a list has": (b"](" + b"K\x01" * (MAX_STEPS + 1) + b"e.", "not just numbers"),
    "values from below the stack": (b"].\x86.", "the list is empty"),
    "too few values": (b"\x87.", "too few values"),
    "no end": (b"](K\x01", "is not a whole file"),
    "a call of a list": (b"])R.", "a call of list"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_rob_10_a_pickle_takes_no_more_than_its_length(tmp_path: Path, name: str) -> None:
    program, message = PROGRAMS[name]
    path = pt(tmp_path, program)
    with pytest.raises(CheckpointError, match=message or "the list is empty") as caught:
        read_list(path, VOCAB)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_rob_10_compressed_members_are_refused(tmp_path: Path) -> None:
    path = pt(tmp_path, b"](" + b"}" * (1 << 20) + b"e.", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"archive/data\.pkl is compressed"):
        read_list(path, VOCAB)


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nLongStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ%s%s%s\x89)tR."
)


def tensor(offset: bytes, shape: bytes, stride: bytes = b"K\x01\x85") -> bytes:
    return TENSOR % (offset, shape, stride)


def test_rob_10_a_tensors_numbers_are_not_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + tensor(b"K\x00", b"K\x02\x85"))
        archive.writestr("archive/data/0", bytes(64 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="archive/data/0 is compressed"):
        read_list(path, VOCAB)


def test_rob_10_members_are_counted_before_they_are_read(tmp_path: Path) -> None:
    path = pt(tmp_path, b"].")
    end = path.read_bytes()[-22:]
    entry = b"PK\x01\x02" + bytes(42)
    count = MAX_MEMBERS + 1
    sizes = struct.pack("<HHII", 0xFFFF, 0xFFFF, count * len(entry), 0)
    path.write_bytes(entry * count + end[:8] + sizes + b"\0\0")
    with pytest.raises(CheckpointError, match="more than 10,000 members"):
        read_list(path, VOCAB)


@pytest.mark.parametrize(
    "offset, shape",
    [
        (b"K\x00", b"J\xff\xff\xff\xff\x85"),
        (b"K\x00", b"K\x02"),
        (b"K\x00", b"(" + b"K\x01" * 9 + b"t"),
    ],
)
def test_rob_10_a_tensor_of_another_shape_is_refused(
    tmp_path: Path, offset: bytes, shape: bytes
) -> None:
    with pytest.raises(CheckpointError, match=r"is not a whole file of torch\.save"):
        read_list(pt(tmp_path, tensor(offset, shape)), VOCAB)


def test_rob_10_a_tensor_beyond_its_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    program = b"}X\x01\x00\x00\x00a" + tensor(b"K\x00", b"J\x00\x00\x00\x7f\x85")[:-1] + b"s."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + program)
        archive.writestr("archive/data/0", bytes(8))
    with pytest.raises(CheckpointError, match="archive/data/0 is compressed or too short"):
        TorchFile(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_rob_10_lists_of_numbers_are_read_as_before(tmp_path: Path, protocol: int) -> None:
    ids = [*range(300), 999, 400]
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(ids, protocol=protocol))
    assert read_list(path, VOCAB).tolist() == ids


ARRAY = b"{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
ARRAYS = {
    "longer than the file": ARRAY % (b"<i8", b"1000000000000,"),
    "of objects": ARRAY % (b"|O", b"1,"),
    "of no dimension": ARRAY % (b"<i8", b""),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_held_against_their_file(tmp_path: Path, name: str) -> None:
    head = ARRAYS[name] + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(8)
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.npy"):
        read_list(tmp_path / "x.npy", VOCAB)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04"])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.npy is no \.npy file"):
        read_list(tmp_path / "x.npy", VOCAB)
    np.savez(tmp_path / "z.npz", a=np.arange(3))
    (tmp_path / "z.npz").rename(tmp_path / "x.npy")
    with pytest.raises(CheckpointError, match=r"x\.npy is no \.npy file"):
        read_list(tmp_path / "x.npy", VOCAB)


def test_a_list_longer_than_the_vocabulary_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([0] * 2000))
    with pytest.raises(CheckpointError, match="lists 2,000 tokens, and the vocabulary has 1,000"):
        read_list(tmp_path / "x.json", VOCAB)


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_rob_18_a_full_disk_costs_no_old_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"freq{suffix}"
    write_list(path, np.arange(9))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_list(path, np.arange(500))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


# ---- safetensors


def header(folder: Path, text: bytes, data: bytes = b"") -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


HUGE = b"1" + b"0" * 4000
HEADERS = {
    "sizes of 4001 digits": b'{"a":{"dtype":"F32","shape":[%s,%s],"data_offsets":[0,0]}}'
    % (HUGE, HUGE),
    "offsets of 4001 digits": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}' % HUGE,
    "numbers of 5000 digits": b'{"a":{"dtype":"F32","shape":[1%s],"data_offsets":[0,0]}}'
    % (b"0" * 5000),
    "2000 sizes": b'{"a":{"dtype":"F32","shape":[%s1],"data_offsets":[0,0]}}' % (b"99999," * 2000),
    "a name of megabytes": b'{"%s":{"dtype":"F32","shape":[9],"data_offsets":[0,0]}}'
    % (b"a" * 4_000_000),
    "a dtype of megabytes": b'{"a":{"dtype":"%s","shape":[9],"data_offsets":[0,0]}}'
    % (b"F" * 4_000_000),
    "brackets": b"[" * 16_000_000,
    "too many tensors": b'{"a":{' + b"{" * (3 * MAX_TENSORS),
    "too many lists": b'{"__metadata__":[' + b"[]," * (3 * MAX_TENSORS),
}


@pytest.mark.parametrize("name", HEADERS)
def test_rob_12_a_headers_numbers_are_bounded(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(header(tmp_path, HEADERS[name]))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_rob_12_a_header_larger_than_any_model_needs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(100_000_000)
    with pytest.raises(CheckpointError, match="header of 90000000 bytes"):
        SafetensorsFile(path)


def test_case_63_weights_that_git_lfs_did_not_fetch_are_told_as_that(tmp_path: Path) -> None:
    config = tiny_config("MiniCPM5-1B", num_layers=1)
    write_checkpoint(tmp_path, config)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer, not the weights"):
        open_checkpoint(tmp_path, config)
