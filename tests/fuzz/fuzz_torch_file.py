"""pytorch_model.bin of a draft head, and lists of FR-Spec: a zip, or the pickle in it."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint.torch_file import TorchFile
from minicpm_mlc.compile.frspec import read_list

# torch.save({"a": torch.zeros(2, 3)}), and of an int64 tensor of three
TENSOR = (
    b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00"
    b"\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K"
    b"\x06tq\x07QK\x00K\x02K\x03\x86q\x08K\x03K\x01\x86q\t\x89ccollections\nOrderedDict\nq\n)Rq\x0b"
    b"tq\x0cRq\rs."
)
NUMBERS = TENSOR[TENSOR.index(b"ctorch._utils") : -2].replace(b"Float", b"Long")
NUMBERS = (
    b"\x80\x02"
    + NUMBERS.replace(b"K\x02K\x03\x86", b"K\x03\x85").replace(b"K\x03K\x01\x86", b"K\x01\x85")
    + b"."
)


def archive(pickled: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as made:
        made.writestr(zipfile.ZipInfo("archive/data.pkl"), pickled, kind)
        made.writestr(zipfile.ZipInfo("archive/data/0"), bytes(24))
    return file.getvalue()


def seeds() -> list[bytes]:
    numbers = pickle.dumps([5, 1, 3], protocol=2)
    return [TENSOR, NUMBERS, numbers, archive(TENSOR), archive(NUMBERS), archive(numbers, 8)]


def run(data: bytes, folder: Path) -> None:
    """Bytes that are no zip are the pickle of one."""
    path = folder / "list.pt"
    path.write_bytes(data if data[:2] == b"PK" else archive(data))
    errors = [refusal for read in READERS if (refusal := refused(read, path))]
    if len(errors) == len(READERS):
        raise errors[0]


READERS: tuple[Callable[[Path], object], ...] = (TorchFile, lambda path: read_list(path, 100))


def refused(read: Callable[[Path], object], path: Path) -> CheckpointError | None:
    """The error of a file that this reader doesn't take."""
    try:
        read(path)
    except CheckpointError as error:
        return error
    return None
