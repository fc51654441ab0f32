"""manifest.json: what a bundle holds and was compiled for, and the check that it is whole and runs
on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.base.files import cache_file, remember, sha256_of
from minicpm_mlc.bundle.host import Host, compile_options, mismatch, this_host
from minicpm_mlc.bundle.manifest_schema import CHECK, MANIFEST, PAGE_SIZE, check_together
from minicpm_mlc.bundle.schema import Damaged
from minicpm_mlc.bundle.state import StateEntry, bytes_per, parse_table
from minicpm_mlc.bundle.trust import refuse_stranger
from minicpm_mlc.bundle.tvm_runtime import tvm_version
from minicpm_mlc.bundle.wrong_path import no_bundle

FORMAT = 1  # layout of the bundle folder
ABI = 7  # functions of the compiled library
SEGMENTS = 4  # of a page, by the ratio of InfLLM-v2's block_size and kernel_stride
SEGMENT_SIZE = PAGE_SIZE // SEGMENTS  # tokens
MAX_DECODE_SEQUENCES = 64  # rows of one decode call
MAX_TREE_NODES = 64  # nodes of a token tree
# functions of a GPU's library: the one that chooses a greedy step's token, and the one that finds
# those that a token is drawn from
LIKELIEST, CANDIDATES = "likeliest", "candidates"
READ_KERNEL = "read_peak"  # of every library: it only reads memory (ops/*/speed_limits.py)
# A bundle for a GPU may hold a library for the processor too: a manifest of its own, and what the
# names of that library's own files begin with. All other files serve both.
CPU_PART = "cpu-"
CPU_MANIFEST = CPU_PART + MANIFEST
# what is read where a bundle holds it: a file of such a name that the manifest lacks is refused
OPTIONAL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
COMPILE_AGAIN = "compile it again: minicpm-mlc compile"
REPAIR = f"copy the bundle again or {COMPILE_AGAIN}"


@dataclass(frozen=True)
class Manifest:
    """Every field of manifest.json; bytes are bytes, lengths are tokens. `params` are tensor names
    in ABI order.

    `activations` ("f32" or "int8") is what meets integer weights in a linear; `weight_layout` is
    how those weights are interleaved (ops/formats/weights/packing.py), the layout that the library
    was compiled for. `draft` is the EAGLE head: its kind ("eagle2" or "eagle3"), layers, width of
    the features that it takes and of its hidden states, its vocabulary, how many tokens (`top_k`)
    it proposes after each row, and its own state table. `state` is the model's (bundle/state.py).
    `mixed` are the linears that aren't stored as `scheme` says: their schemes by the first
    published tensor of each. `calibration` is the text that rounding saw, None if it saw none: the
    SHA-256 and the number ("tokens") of its token ids. `source` is what a hub calls the checkpoint,
    with its commit, as `compile` takes it again; None for one that lay on a disk.
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
    mixed: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    source: str | None = None
    draft: dict[str, Any] | None = None
    page_size: int = PAGE_SIZE
    library: str = "model.so"
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT
    abi: int = ABI

    @staticmethod
    def load(folder: str | Path, device: str | None = None) -> Manifest:
        """Read and validate a bundle's manifest without asking whether this machine can run it.
        `device`: that of the library for it, where the bundle holds two; None: the first one's.
        """
        return _load(Path(folder), device)[0]

    def compiled_part(self) -> dict[str, Any]:
        """What the library is compiled from: all but the files and where the checkpoint was found,
        as JSON gives it back.
        """
        whole = json.loads(self.to_bytes())
        del whole["files"], whole["source"]
        return whole

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
    def symbol_prefix(self) -> str:
        """What the symbols of its static library begin with, by which an app finds them."""
        return re.sub(r"\W", "_", f"{self.name}_{self.scheme}_{self.part}")

    @property
    def part(self) -> str:
        """CPU_PART for the second library of a bundle, else empty."""
        return CPU_PART if self.library.startswith(CPU_PART) else ""

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

    def named(self, name: str) -> str:
        """What a file is called here: the library's own one, where the bundle holds two libraries,
        or else the one of both.
        """
        own = self.manifest.part + name
        return own if own in self.manifest.files else name

    def file(self, name: str) -> Path:
        """Where a file lies. Raises BundleError for one that the manifest doesn't list: nothing
        says what it should hold.
        """
        name = self.named(name)
        if name not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} lists no {name}; {REPAIR}")
        return self.path / name


def manifest_sha256(folder: str | Path, part: str = "") -> str:
    """The SHA-256 of a bundle's manifest, which stands for the bundle; with `part` of that of its
    second library. Raises BundleError.
    """
    return hashlib.sha256(_read(Path(folder), part + MANIFEST)).hexdigest()


def read_bundle(
    path: str | Path,
    *,
    device: str | None = None,
    verify: Literal["auto", "always", "never"] = "auto",
    host: Host | None = None,
    tvm: str | None = None,
) -> Bundle:
    """Open a bundle that this machine can run and may, its library for `device` where it holds two;
    raises BundleError with what to do otherwise.

    The SHA-256 of every file is checked at the first load and again when a file's size or time
    changed ("auto"), at every load ("always"), or never; that of the library, which is what runs,
    unless "never". `host` and `tvm` default to this machine and its installed apache-tvm.
    """
    if verify not in ("auto", "always", "never"):
        raise ValueError(f'verify is {verify!r}; expected "auto", "always" or "never"')
    folder = Path(path)
    manifest, data = _load(folder, device)
    if why := mismatch(manifest.target, host or this_host()):
        options = compile_options(host or this_host(), manifest.target["device"])
        raise BundleError(f"{folder} can't run here: {why}; {COMPILE_AGAIN} {options}")
    _check_tvm(folder, manifest, tvm or _installed_tvm())
    refuse_stranger(folder, hashlib.sha256(data).hexdigest())
    # a bare file name would send the loader to the system's folders
    bundle = Bundle(folder.absolute(), manifest)
    if verify == "never":
        stat_files(bundle)
    else:
        check_files(bundle, again=verify == "always")
    return bundle


def check_files(bundle: Bundle, again: bool) -> None:
    """Every file's size and SHA-256; those of files that are as they were at the last check only
    if `again`. Raises BundleError.
    """
    seen = stat_files(bundle)
    if again or not _verified_before(bundle, seen):
        _check_hashes(bundle, list(bundle.manifest.files))
        _remember_verified(bundle, seen)
    else:
        _check_hashes(bundle, [bundle.manifest.library])


def _load(folder: Path, device: str | None) -> tuple[Manifest, bytes]:
    """The manifest of the library for a device, and the bytes of the bundle's, which has the hash
    of every other file.
    """
    data = _read(folder)
    manifest = _parse(data, folder)
    first = manifest.target["device"]
    if device in (None, first):
        return manifest, data
    if device != "cpu" or CPU_MANIFEST not in manifest.files:
        both = " and cpu" if CPU_MANIFEST in manifest.files else ""
        raise BundleError(
            f"{folder} has no library for {device}, it is for {first}{both}; leave out --device, "
            f"or {COMPILE_AGAIN} --with-cpu"
        )
    own = _read(folder, CPU_MANIFEST)
    if hashlib.sha256(own).hexdigest() != manifest.files[CPU_MANIFEST]["sha256"]:
        raise BundleError(
            f"{folder / CPU_MANIFEST} is damaged: its SHA-256 isn't the manifest's; {REPAIR}"
        )
    return _parse(own, folder, CPU_MANIFEST), data


def _read(folder: Path, name: str = MANIFEST) -> bytes:
    if not folder.is_dir():
        raise BundleError(no_bundle(folder))
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise BundleError(no_bundle(folder)) from None
    except OSError as error:
        why = error.strerror or error
        raise BundleError(f"{folder / name} can't be read ({why}); {REPAIR}") from None


def _parse(text: bytes, folder: Path, name: str = MANIFEST) -> Manifest:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / name} is not JSON ({error}); {REPAIR}") from None
    seen = (data.get("format"), data.get("abi")) if isinstance(data, dict) else (None, None)
    if seen != (FORMAT, ABI):
        raise BundleError(
            f"{folder} has bundle format {seen[0]!r:.9} and ABI {seen[1]!r:.9}; "
            f"this minicpm-mlc reads format {FORMAT} and ABI {ABI}; {COMPILE_AGAIN}"
        )
    data = {"source": None} | data  # bundles of earlier versions don't tell
    try:
        CHECK(data)
        check_together(data)
    except Damaged as damaged:
        raise BundleError(f"{folder / name} is damaged at {damaged}; {REPAIR}") from None
    return Manifest(**_with_tables(folder / name, data))


def _with_tables(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The fields with their state tables read."""
    table = _state_table(path, "state", data["state"], data["model"]["num_layers"])
    draft = data["draft"]
    if draft is not None:
        own = _state_table(path, "draft: state", draft["state"], draft["layers"])
        draft = draft | {"state": own}
    return data | {"state": table, "draft": draft}


def _state_table(path: Path, what: str, value: list[Any], num_layers: int) -> list[StateEntry]:
    try:
        return parse_table(value, num_layers)
    except ValueError as error:
        where = f"{what}: {error}"
        raise BundleError(f"{path} is damaged at {where!r}; {REPAIR}") from None


def _installed_tvm() -> str:
    version = tvm_version()
    if version is None:
        raise BundleError("TVM's runtime is not installed: pip install minicpm-mlc-runtime")
    return version


def _check_tvm(folder: Path, manifest: Manifest, installed: str) -> None:
    if installed != manifest.tvm:
        raise BundleError(
            f"{folder} was compiled with apache-tvm {manifest.tvm}, and {installed} is installed; "
            f"pip install apache-tvm=={manifest.tvm}, or {COMPILE_AGAIN}"
        )


def stat_files(bundle: Bundle) -> dict[str, list[int]]:
    """{name: [bytes, mtime_ns]}. Raises BundleError for a file that is missing, has another size,
    or would be read and isn't listed.
    """
    for name in OPTIONAL_FILES:
        if name not in bundle.manifest.files and os.path.lexists(bundle.path / name):
            raise BundleError(
                f"{bundle.path / name} isn't in the manifest, so nothing says what it should hold; "
                f"remove it, or {COMPILE_AGAIN}"
            )
    return {name: _stat_file(bundle, name) for name in bundle.manifest.files}


def _stat_file(bundle: Bundle, name: str) -> list[int]:
    expected = bundle.manifest.files[name]["bytes"]
    try:
        seen = (bundle.path / name).stat()
    except OSError:
        raise BundleError(f"{bundle.path} lacks {name}; {REPAIR}") from None
    if not stat.S_ISREG(seen.st_mode):
        raise BundleError(f"{bundle.path / name} is no file; {REPAIR}")
    if seen.st_size != expected:
        raise BundleError(
            f"{bundle.path / name} has {seen.st_size} bytes, expected {expected}; {REPAIR}"
        )
    return [seen.st_size, seen.st_mtime_ns]


def _check_hashes(bundle: Bundle, names: list[str]) -> None:
    for name in names:
        if sha256_of(bundle.path / name) != bundle.manifest.files[name]["sha256"]:
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
