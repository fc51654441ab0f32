"""manifest.json: what a bundle holds and was compiled for, and the check that it is whole and runs
on this machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import cache_file, read_json, remember, sha256_of
from minicpm_mlc.bundle.host import Host, compile_options, mismatch, this_host
from minicpm_mlc.bundle.state import StateEntry, bytes_per, parse_table

FORMAT = 1  # layout of the bundle folder
ABI = 6  # functions of the compiled library
PAGE_SIZE = 64  # tokens; one page is one InfLLM-v2 block
SEGMENTS = 4  # of a page, by the ratio of InfLLM-v2's block_size and kernel_stride
SEGMENT_SIZE = PAGE_SIZE // SEGMENTS  # tokens
MAX_DECODE_SEQUENCES = 64  # rows of one decode call
MAX_TREE_NODES = 64  # nodes of a token tree
READ_KERNEL = "read_peak"  # of a CPU's library: it only reads memory (ops/cpu/speed_limits.py)
MAX_DRAFT_TOP_K = 16  # tokens that a draft head proposes after each row
WEIGHT_LAYOUTS = {
    "f32": "rows16",
    "int8": "rows16x4",
}  # of integer weights, by the activations that meet them
MANIFEST = "manifest.json"
COMPILE_AGAIN = "compile it again: minicpm-mlc compile"
REPAIR = f"copy the bundle again or {COMPILE_AGAIN}"

_NESTED = {
    "target": {"device": str, "triple": str, "cpu": str, "features": list},
    "memory": {"weights": int, "kv_per_token": int, "activations": int},
    "model": {"num_layers": int},
}
_FILE = {"bytes": int, "sha256": str}
_DRAFT_COUNTS = ("layers", "features", "hidden", "vocab", "top_k")
_DRAFT = {"kind": str, "scheme": str, "state": list} | dict.fromkeys(_DRAFT_COUNTS, int)


@dataclass(frozen=True)
class Manifest:
    """Every field of manifest.json; bytes are bytes, lengths are tokens. `params` are tensor names
    in ABI order.

    `activations` ("f32" or "int8") is what meets integer weights in a linear; `weight_layout` is
    how those weights are interleaved (ops/formats/weights/packing.py), the layout that the library
    was compiled for. `draft` is the EAGLE head: its kind ("eagle2" or "eagle3"), layers, width of
    the features that it takes and of its hidden states, its vocabulary, how many tokens (`top_k`)
    it proposes after each row, and its own state table. `state` is the model's (bundle/state.py).
    """

    name: str
    scheme: str
    embedding_scheme: str
    target: dict[str, Any]
    model: dict[str, Any]
    kv_dtype: str
    state: list[StateEntry]
    max_context: int
    prefill_chunk: int
    params: list[str]
    memory: dict[str, int]
    tvm: str
    activations: str = "f32"
    weight_layout: str = "rows16"
    draft: dict[str, Any] | None = None
    page_size: int = PAGE_SIZE
    library: str = "model.so"
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT
    abi: int = ABI

    @staticmethod
    def load(folder: str | Path) -> Manifest:
        """Read and validate a bundle's manifest without asking whether this machine can run it."""
        return _parse(_read(Path(folder)), Path(folder))

    def to_bytes(self) -> bytes:
        """Stable JSON: the same manifest gives the same bytes."""
        return (
            json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        ).encode()

    @property
    def dense_len(self) -> int | None:
        """Tokens from which on a sequence reads sparsely; None where sparse attention isn't
        compiled in.
        """
        return self.model["sparse"]["dense_len"] if self.model.get("sparse") else None

    @property
    def recurrent(self) -> bool:
        """Whether there is state per sequence, which can't be taken back to an earlier token."""
        return bytes_per("sequence", self._tables) > 0

    @property
    def _tables(self) -> list[StateEntry]:
        """All entries, the draft head's too."""
        return [*self.state, *(self.draft["state"] if self.draft else [])]

    def memory_need(self, context: int) -> int:
        """Bytes to run one sequence of `context` tokens: weights, its pools in whole pages,
        activations.
        """
        pages = -(-context // self.page_size)
        return (
            self.memory["weights"]
            + pages * self.page_size * self.memory["kv_per_token"]
            + bytes_per("sequence", self._tables)
            + self.memory["activations"]
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked: its folder and its manifest."""

    path: Path
    manifest: Manifest


def read_bundle(
    path: str | Path,
    *,
    verify: Literal["auto", "always", "never"] = "auto",
    host: Host | None = None,
    tvm: str | None = None,
) -> Bundle:
    """Open a bundle that this machine can run; raises BundleError with what to do otherwise.

    The SHA-256 of every file is checked at the first load and again when a file's size or time
    changed ("auto"), at every load ("always"), or never. `host` and `tvm` default to this machine
    and its installed apache-tvm.
    """
    if verify not in ("auto", "always", "never"):
        raise ValueError(f'verify is {verify!r}; expected "auto", "always" or "never"')
    folder = Path(path)
    manifest = Manifest.load(folder)
    if why := mismatch(manifest.target, host or this_host()):
        options = compile_options(host or this_host(), manifest.target["device"])
        raise BundleError(f"{folder} can't run here: {why}; {COMPILE_AGAIN} {options}")
    _check_tvm(folder, manifest, tvm or _installed_tvm())
    bundle = Bundle(
        folder.absolute(), manifest
    )  # a bare file name would send the loader to the system's folders
    seen = _stat_files(bundle)
    if verify == "always" or (verify == "auto" and not _verified_before(bundle, seen)):
        _check_hashes(bundle)
        _remember_verified(bundle, seen)
    return bundle


def _read(folder: Path) -> Any:
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; expected a bundle folder"
        )
    try:
        return read_json(folder / MANIFEST, BundleError, REPAIR)
    except FileNotFoundError:
        raise BundleError(_not_a_bundle(folder)) from None


def _not_a_bundle(folder: Path) -> str:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return (
            f"{folder} is a checkpoint, not a bundle; compile it first: minicpm-mlc compile "
            f"{folder}"
        )
    return (
        f"{folder} has no {MANIFEST}, so it isn't a bundle; make one: minicpm-mlc compile "
        "CHECKPOINT"
    )


def _parse(data: Any, folder: Path) -> Manifest:
    seen = (data.get("format"), data.get("abi")) if isinstance(data, dict) else (None, None)
    if seen != (FORMAT, ABI):
        raise BundleError(
            f"{folder} has bundle format {seen[0]} and ABI {seen[1]}; "
            f"this minicpm-mlc reads format {FORMAT} and ABI {ABI}; {COMPILE_AGAIN}"
        )
    kinds = {name: _types(kind) for name, kind in get_type_hints(Manifest).items()}
    checks = [
        ("fields", data, kinds),
        *((name, data.get(name), nested) for name, nested in _NESTED.items()),
    ]
    for what, value, expected in checks:
        if not _has(value, expected):
            raise _damaged(folder, what)
    if data.keys() != kinds.keys():
        raise _damaged(folder, str(sorted(data.keys() ^ kinds.keys())[0]))
    if data["draft"] is not None and not _has(data["draft"], _DRAFT):
        raise _damaged(folder, "draft")
    if WEIGHT_LAYOUTS.get(data["activations"]) != data["weight_layout"]:
        raise _damaged(folder, "weight_layout")
    for name, entry in data["files"].items():
        if not is_plain_name(name) or not _has(entry, _FILE):
            raise _damaged(folder, f"files: {name}")
    return Manifest(**_with_tables(folder, data))


def _with_tables(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The fields with their state tables read."""
    table = _state_table(folder, "state", data["state"], data["model"]["num_layers"])
    draft = data["draft"]
    if draft is not None:
        own = _state_table(folder, "draft: state", draft["state"], draft["layers"])
        draft = draft | {"state": own}
    return data | {"state": table, "draft": draft}


def _state_table(folder: Path, what: str, value: list[Any], num_layers: int) -> list[StateEntry]:
    try:
        return parse_table(value, num_layers)
    except ValueError as error:
        raise _damaged(folder, f"{what}: {error}") from None


def _types(kind: Any) -> tuple[type, ...]:
    """The classes of values that a field's annotation allows."""
    return tuple(
        get_origin(part) or part
        for part in (get_args(kind) if get_origin(kind) is UnionType else [kind])
    )


def _has(value: Any, expected: Mapping[str, type | tuple[type, ...]]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in expected.items()
    )


def _damaged(folder: Path, what: str) -> BundleError:
    return BundleError(f"{folder / MANIFEST} is damaged at {what!r}; {REPAIR}")


def is_plain_name(name: str) -> bool:
    """True for a file name that stays inside its folder on every system."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\:\0")


def _installed_tvm() -> str:
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        raise BundleError("apache-tvm is not installed: pip install minicpm-mlc") from None


def _check_tvm(folder: Path, manifest: Manifest, installed: str) -> None:
    if installed != manifest.tvm:
        raise BundleError(
            f"{folder} was compiled with apache-tvm {manifest.tvm}, and {installed} is installed; "
            f"pip install apache-tvm=={manifest.tvm}, or {COMPILE_AGAIN}"
        )


def _stat_files(bundle: Bundle) -> dict[str, list[int]]:
    """{name: [bytes, mtime_ns]}; raises for a missing file or a wrong size."""
    seen = {}
    for name, entry in bundle.manifest.files.items():
        try:
            stat = (bundle.path / name).stat()
        except OSError:
            raise BundleError(f"{bundle.path} lacks {name}; {REPAIR}") from None
        if stat.st_size != entry["bytes"]:
            raise BundleError(
                f"{bundle.path / name} has {stat.st_size} bytes, expected {entry['bytes']}; "
                f"{REPAIR}"
            )
        seen[name] = [stat.st_size, stat.st_mtime_ns]
    return seen


def _check_hashes(bundle: Bundle) -> None:
    for name, entry in bundle.manifest.files.items():
        if sha256_of(bundle.path / name) != entry["sha256"]:
            raise BundleError(
                f"{bundle.path / name} is damaged: its SHA-256 isn't the manifest's; {REPAIR}"
            )


def _verified_file(bundle: Bundle) -> Path:
    """One small file per bundle and place: a copy elsewhere is verified on its own."""
    return cache_file("verified", bundle.manifest.to_bytes() + os.fsencode(bundle.path.resolve()))


def _verified_before(bundle: Bundle, seen: dict[str, list[int]]) -> bool:
    try:
        return json.loads(_verified_file(bundle).read_bytes()) == seen
    except (OSError, RuntimeError, ValueError):  # no cache, no home, damaged: verify again
        return False


def _remember_verified(bundle: Bundle, seen: dict[str, list[int]]) -> None:
    with suppress(OSError, RuntimeError):  # only a saving of time: the next load verifies again
        remember(_verified_file(bundle), json.dumps(seen))
