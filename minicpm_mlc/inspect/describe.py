"""What a bundle, a checkpoint or a published model is, and the memory it needs at each context
length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicpm_mlc.base.choices import DEFAULT_SCHEME
from minicpm_mlc.base.errors import CheckpointError, MiniCPMError
from minicpm_mlc.base.text import human_bytes, plain_table, shown
from minicpm_mlc.bundle.contexts import context_lengths
from minicpm_mlc.bundle.host import mismatch, this_host
from minicpm_mlc.bundle.manifest import CPU_MANIFEST, MANIFEST, Bundle, Manifest, manifest_sha256
from minicpm_mlc.bundle.params import bits_per_weight
from minicpm_mlc.bundle.wrong_path import no_checkpoint
from minicpm_mlc.hub import records
from minicpm_mlc.hub.names import Name, parse_name
from minicpm_mlc.hub.needed import GGUF
from minicpm_mlc.hub.transfer import UnreachableError

if TYPE_CHECKING:  # what a bundle needs comes without the compiler
    from minicpm_mlc.bench.roofline import Limits
    from minicpm_mlc.compile.config.model_config import ModelConfig

    Found = tuple[dict[str, Any], ModelConfig | None]

PROGRAM = "it runs with your rights: run it only if you trust its maker (hashes don't tell)"
COMPARED = ("f16", "w8", DEFAULT_SCHEME)  # those worth comparing before anything is compiled


class NotFoundError(MiniCPMError):
    """A source that is neither a bundle, a checkpoint nor a published model."""


def describe(source: str, limits: Callable[[], Limits] | None = None) -> dict[str, Any]:
    """Facts about a bundle folder, a checkpoint folder or GGUF file, a repository of a hub, or a
    published model's name.

    Returns {"kind", "name", "model", ..., "memory": [{"context": tokens, COLUMN: bytes, ...}]},
    ready for JSON; of a model that isn't compiled, with the machine's `limits`, also "speed":
    [{"phase", "depth", "attention", COLUMN: tokens/s, ...}].

    Raises:
        NotFoundError: `source` is none of them.
        MiniCPMError: it is one of them and damaged.
    """
    report, config = _found(source)
    return report | _forecast(config, limits) if config else report


def _found(source: str) -> Found:
    """What a source is, and the config to forecast by where it isn't compiled yet."""
    from minicpm_mlc.compile.checkpoint.gguf import find_gguf
    from minicpm_mlc.compile.config.presets import PRESETS

    path = Path(source)
    if (path / MANIFEST).is_file():
        return _describe_bundle(path), None
    if gguf := find_gguf(path):
        return _describe_gguf(gguf)
    if path.is_dir():
        return _describe_checkpoint(path)
    if source in PRESETS:
        return {"kind": "published model", "name": source}, PRESETS[source]
    if name := parse_name(source):
        return _describe_remote(name)
    raise NotFoundError(f"{no_checkpoint(path)}, or one of {', '.join(PRESETS)}")


def _describe_bundle(path: Path) -> dict[str, Any]:
    from minicpm_mlc.runtime_py.device_here import device_here

    manifest = Manifest.load(path)
    bits = bits_per_weight(Bundle(path, manifest))
    rows = [
        {"context": n, "memory": manifest.memory_need(n)}
        for n in context_lengths(manifest.max_context)
    ]
    return {
        "kind": "bundle",
        "name": manifest.name,
        "manifest SHA-256": manifest_sha256(path),
        "source": manifest.source or "a folder or file",
        "a program": PROGRAM,
        "runs here": mismatch(manifest.target, this_host())
        or device_here(manifest.target["device"])[1]
        or "yes",
        "scheme": manifest.scheme,
        **({"mixed with": mixed_with(manifest.mixed)} if manifest.mixed else {}),
        "embedding": manifest.embedding_scheme,
        "bits a weight": bits and round(bits, 2),
        "calibrated": manifest.calibration or "no",
        "activations": manifest.activations,
        "target": manifest.target,
        **_second_library(path, manifest),
        "tvm": manifest.tvm,
        "draft head": manifest.draft
        and {key: manifest.draft[key] for key in ("kind", "scheme", "vocab")},
        "max context": manifest.max_context,
        "prefill chunk": manifest.prefill_chunk,
        "size": sum(entry["bytes"] for entry in manifest.files.values()),
        "model": _facts(manifest.model),
        "memory": rows,
    }


def _second_library(path: Path, manifest: Manifest) -> dict[str, Any]:
    if CPU_MANIFEST not in manifest.files:
        return {}
    return {"second library": Manifest.load(path, "cpu").target}


def mixed_with(mixed: dict[str, str]) -> dict[str, str]:
    """Which linears have each other scheme: their layers, by the first published tensor's name."""
    found: dict[str, dict[str, list[str]]] = {}
    for source, scheme in mixed.items():
        layer, *_, name, _weight = source.removeprefix("model.layers.").split(".")
        found.setdefault(scheme, {}).setdefault(name, []).append(layer)
    return {
        scheme: "; ".join(f"{name} {' '.join(layers)}" for name, layers in names.items())
        for scheme, names in found.items()
    }


def _describe_checkpoint(path: Path) -> Found:
    from minicpm_mlc.compile.checkpoint.files import check_whole_model
    from minicpm_mlc.compile.model.registry import read_config_folder

    check_whole_model(path)
    config = read_config_folder(path)
    weights = _weights(path, config)
    return {"kind": "checkpoint", "name": config.name, "weights": weights}, config


def _describe_gguf(path: Path) -> Found:
    from minicpm_mlc.compile.checkpoint.gguf import open_gguf

    gguf = open_gguf(path)
    report = {"kind": "GGUF file", "name": gguf.config.name, "weights": gguf.weights.bytes}
    return report, gguf.config


def _describe_remote(name: Name) -> Found:
    """By its config alone; what was pulled before is described where the hub can't be reached."""
    from minicpm_mlc.inspect.remote import remote_config

    try:
        config, listing, needed = remote_config(name)
    except UnreachableError:
        record = records.find(name)
        if record is None or not record.is_whole:
            raise
        return _found(str(record.path))
    return {
        "kind": "GGUF file of a hub" if needed.main.endswith(GGUF) else "repository of a hub",
        "name": str(name),
        "revision": listing.revision,
        "download": needed.bytes,
        "files": [file.path for file in needed.files],
    }, config


def _weights(path: Path, config: ModelConfig) -> int | str:
    """Bytes of the stored tensors, or what is wrong with them."""
    from minicpm_mlc.compile.checkpoint import open_checkpoint

    try:
        return open_checkpoint(path, config).bytes
    except CheckpointError as error:
        return str(error)


def _forecast(config: ModelConfig, limits: Callable[[], Limits] | None) -> dict[str, Any]:
    """The bundle's size, what a chat takes at each length, and tokens/s on a machine of these
    limits, per scheme.
    """
    from minicpm_mlc.compile.model.registry import count_parameters, sparse_settings
    from minicpm_mlc.inspect.forecast import bundle_bytes, needed_memory, speed_table
    from minicpm_mlc.inspect.schemes import scheme_rows

    config = replace(config, sparse=sparse_settings(config))
    needed = {name: needed_memory(config, name) for name in COMPARED}
    report = {
        "parameters": count_parameters(config),
        "bundle": {name: bundle_bytes(config, name) for name in COMPARED},
        "model": _facts(config.to_dict()),
        "schemes": scheme_rows(config),
        "memory": [
            {"context": n, **{name: need(n) for name, need in needed.items()}}
            for n in context_lengths(config.max_position_embeddings)
        ],
    }
    if limits is None:
        return report
    around = limits()
    speeds = speed_table(config, COMPARED, around)
    return report | {"this machine": around.text(), "speed": speeds}


def _facts(model: dict[str, Any]) -> dict[str, Any]:
    """The model's fields without the long list of rotary factors."""
    low, high = min(model["rope_factors"]), max(model["rope_factors"])
    return model | {"rope_factors": f"{len(model['rope_factors'])} from {low:.4g} to {high:.4g}"}


def as_text(report: dict[str, Any]) -> str:
    """The report for people: a line per fact, then the memory table."""
    lines = [f"{shown(report['name'])} ({report['kind']})"]
    for key, value in report.items():
        if key not in ("kind", "name", "model", "memory", "schemes", "speed"):
            lines.append(f"  {key:<24} {shown(_as_text(key, value))}")
    lines += [
        f"  {shown(key):<24} {shown(_as_text(key, value))}"
        for key, value in report["model"].items()
        if key != "name"
    ]
    columns = list(report["memory"][0])
    cells = [
        [str(row["context"]), *(human_bytes(row[name]) for name in columns[1:])]
        for row in report["memory"]
    ]
    tables = [["memory", plain_table([columns, *cells])]]
    if report.get("schemes"):
        from minicpm_mlc.inspect import schemes

        tables.append(["weights, by compile --quant", schemes.as_text(report["schemes"])])
    if report.get("speed"):
        tables.append(["forecast of tokens/s", _speeds_as_text(report["speed"])])
    return "\n".join([*lines, *(f"\n{title}\n{table}" for title, table in tables)])


def _speeds_as_text(rows: list[dict[str, Any]]) -> str:
    columns = list(rows[0])
    cells = [
        [f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in rows
    ]
    return plain_table([columns, *cells])


def _as_text(key: str, value: Any) -> str:
    if key in ("size", "weights", "download", *COMPARED) and isinstance(value, int):
        return human_bytes(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(name, item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if key == "parameters" else str(value)
