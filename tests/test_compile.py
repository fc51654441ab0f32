"""compile_model end to end: the same bytes twice, a forecast that writes nothing, bad input that
leaves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import PUBLISHED_ROPE, tiny_config, write_checkpoint

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CheckpointError, CompileError, ConfigError, MiniCPMError
from minicpm_mlc.bundle.manifest import Manifest, read_bundle
from minicpm_mlc.compile import CompileResult, compile_model
from minicpm_mlc.compile.code_progress import CODE
from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.compile.limits import choose_prefill_chunk
from minicpm_mlc.runtime_py.gears import Gears

OPTIONS: dict[str, Any] = {"cpu": "x86-64-v3", "context": 4096}


def written(folder: Path) -> Path:
    write_checkpoint(folder, tiny_config("MiniCPM5-1B", num_layers=1))
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return written(tmp_path / "model")


class Made(NamedTuple):
    """A bundle of OPTIONS, what compile_model said of it, and each stage's progress."""

    path: Path
    result: CompileResult
    progress: dict[str, list[tuple[int, int]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder, seen = tmp_path_factory.mktemp("made"), {}
    result = compile_model(
        written(folder / "model"),
        folder / "out",
        progress=lambda *event: seen.setdefault(event[0], []).append(event[1:]),
        **OPTIONS,
    )
    return Made(folder / "out", result, seen)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_input_gives_the_same_bytes(made, checkpoint, tmp_path):
    compile_model(checkpoint, tmp_path / "again", **OPTIONS)
    assert hashes(tmp_path / "again") == hashes(made.path)
    bundle = read_bundle(made.path, verify="always")
    assert bundle.manifest.target["cpu"] == "x86-64-v3"
    assert set(bundle.manifest.files) >= {
        "model.so",
        "tensor-cache.json",
        "tokenizer.json",
        "mlc-chat-config.json",
    }


def test_progress_is_reported_for_weights_and_library(made):
    assert set(made.progress) == {"weights", "library"}
    assert all(done == total for (*_, (done, total)) in made.progress.values())


def test_the_library_is_reported_kernel_by_kernel(made):
    done, totals = zip(*made.progress["library"], strict=True)
    (total,) = set(totals)
    kernels = total // (2 + CODE)  # its cases, lowering, and code
    assert done[: 2 * kernels + 1] == tuple(range(2 * kernels + 1)) and done[-1] == total
    assert kernels > 10


def test_dry_run_writes_nothing_and_forecasts_what_the_manifest_says(made, checkpoint, tmp_path):
    forecast = compile_model(checkpoint, tmp_path / "out", dry_run=True, **OPTIONS)
    assert not forecast.written and not (tmp_path / "out").exists()
    assert [row["context"] for row in forecast.memory] == [1024, 2048, 4096]
    manifest = Manifest.load(made.path)
    needs = [{"context": n, "bytes": manifest.memory_need(n)} for n in (1024, 2048, 4096)]
    assert made.result.memory == forecast.memory == needs


def test_published_shapes_forecast_without_weights():
    forecast = compile_model("MiniCPM4.1-8B", scheme="w4", random_weights=True, dry_run=True)
    assert 4.2e9 < forecast.weights < 5e9
    assert forecast.memory[-1] == {"context": 65536, "bytes": forecast.memory[-1]["bytes"]}


def test_head_and_embedding_have_their_own_scheme(no_code, checkpoint, tmp_path):
    compile_model(checkpoint, tmp_path / "out", scheme="w4", embedding_scheme="f16")
    stored = json.loads((tmp_path / "out" / "tensor-cache.json").read_text())
    dtypes = {r["name"]: r["dtype"] for shard in stored["records"] for r in shard["records"]}
    assert dtypes["embedding.weight"] == dtypes["head.weight"] == "float16"
    assert dtypes["layers.0.mlp.down.weight"] == "uint8"


@pytest.mark.parametrize(
    "options, activations, layout, quads",
    [
        ({"cpu": "x86-64-v3"}, "int8", "rows16x4", True),
        (
            {"cpu": "x86-64-v3", "scheme": "f16", "embedding_scheme": "w8"},
            "int8",
            "rows16x4",
            False,
        ),
        ({"cpu": "x86-64-v3", "activations": "f32"}, "f32", "rows16", False),
        ({"cpu": "x86-64-v3", "scheme": "f16"}, "f32", "rows16", False),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_activations_are_int8_where_integer_weights_meet_int8_instructions(
    no_code, checkpoint, tmp_path, options, activations, layout, quads
):
    compile_model(checkpoint, tmp_path / "out", **options)
    check_stored(tmp_path / "out", activations, layout, quads)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_a_processor_without_int8_instructions_gets_exact_activations(checkpoint, tmp_path):
    compile_model(checkpoint, tmp_path / "out", cpu="x86-64-v2")
    check_stored(tmp_path / "out", "f32", "rows16", False)


def check_stored(bundle: Path, activations: str, layout: str, quads: bool) -> None:
    """quads: whether a row of a linear's weight holds four columns of 16 rows."""
    manifest = Manifest.load(bundle)
    assert (manifest.activations, manifest.weight_layout) == (activations, layout)
    stored = json.loads((bundle / "tensor-cache.json").read_text())
    shapes = {r["name"]: r["shape"] for shard in stored["records"] for r in shard["records"]}
    assert (shapes["layers.0.mlp.down.weight"][-1] == 64) == quads
    assert (shapes["embedding.weight"][-1] == 64) == (activations == "int8")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activations": "int8", "scheme": "f16"}, "use --quant w4a or w8, or --activations f32"),
        ({"activations": "int4"}, "--activations int4: choose auto, int8 or f32"),
        (
            {"activations": "int8", "cpu": "x86-64-v2"},
            "x86-64-v2 has no int8 dot products; use --activations f32",
        ),
        (
            {"activations": "int8", "device": "vulkan"},
            "kernels for vulkan have no int8 dot products without --arch dot8; "
            "use --activations f32",
        ),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 processors")
def test_activations_that_can_not_be_are_refused(checkpoint, tmp_path, options, message):
    with pytest.raises(CompileError, match=message):
        compile_model(checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def damage(checkpoint: Path, **changes: object) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "gpt2|GPT2"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_a_config_with_other_maths_is_refused_by_name(checkpoint, tmp_path, changes, message):
    damage(checkpoint, **changes)
    before = set(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=message):
        compile_model(checkpoint, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "toaster"}, "toaster.*cpu"),
        ({"cpu": "pentium9"}, "pentium9.*native"),
        ({"scheme": "w3"}, "w3.*w4"),
        ({"context": 0}, "--context 0"),
        ({"prefill_chunk": -1}, "--prefill-chunk -1"),
        ({"out": "no/such/folder/out"}, "mkdir -p"),
    ],
)
def test_options_out_of_range_are_refused(checkpoint, tmp_path, options, message):
    before = set(tmp_path.iterdir())
    with pytest.raises(CompileError, match=message):
        compile_model(checkpoint, **{"out": tmp_path / "out", **options})
    assert set(tmp_path.iterdir()) == before


def test_a_context_that_no_list_covers_is_refused(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"1048576.*131072"):
        compile_model(checkpoint, tmp_path / "out", context=1 << 20)
    assert not (tmp_path / "out").exists()


def test_the_published_128k_lists_apply_when_the_context_asks_for_them():
    forecast = compile_model("MiniCPM4.1-8B", random_weights=True, context=131072, dry_run=True)
    assert forecast.memory[-1]["context"] == 131072
    with pytest.raises(ConfigError, match="32768"):
        compile_model("MiniCPM4-0.5B", random_weights=True, context=131072, dry_run=True)


@pytest.mark.parametrize("kind", ["native", "128K"])
def test_a_checkpoint_with_the_published_decimals_compiles_for_128k(tmp_path, kind):
    write_checkpoint(
        tmp_path,
        tiny_config("MiniCPM4-8B", rope_factors=tuple(PUBLISHED_ROPE["MiniCPM4-8B"][kind])),
    )
    forecast = compile_model(tmp_path, tmp_path / "out", context=131072, dry_run=True)
    assert forecast.memory[-1]["context"] == 131072


def test_a_budget_of_more_blocks_than_the_context_has_is_cut_to_them(tmp_path):
    sparse = SparseConfig(topk=2**31 - 1, window_size=128, init_blocks=2, dense_len=64)
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM4.1-8B", num_layers=1, sparse=sparse))
    compile_model(tmp_path / "model", tmp_path / "out", scheme="f32", context=500)
    gears = Gears.of(Manifest.load(tmp_path / "out"), "sparse")
    assert gears.budget == 8 and gears.blocks(500) == (8, 8)
    ids = list(range(3, 303))
    with (
        Engine(tmp_path / "out", attention="sparse") as sparse,
        Engine(tmp_path / "out", attention="dense") as dense,
    ):
        assert np.abs(sparse.logits(ids) - dense.logits(ids)).max() <= 1e-5


def test_a_prefill_chunk_keeps_its_block_scores_small():
    options = {"random_weights": True, "context": 131072, "dry_run": True}
    compile_model("MiniCPM4.1-8B", prefill_chunk=3072, **options)
    with pytest.raises(
        CompileError,
        match=r"--prefill-chunk 3073: .* 131072 tokens .* --prefill-chunk 3072 or less",
    ):
        compile_model("MiniCPM4.1-8B", prefill_chunk=3073, **options)
    compile_model("MiniCPM4.1-8B", prefill_chunk=3073, attention="dense", **options)
    compile_model(
        "MiniCPM4.1-8B", prefill_chunk=6144, random_weights=True, dry_run=True
    )  # half as many blocks


def test_the_default_prefill_chunk_shrinks_for_many_key_heads():
    many = replace(
        tiny_config("MiniCPM4.1-8B"), num_heads=64, num_kv_heads=64, sparse=SparseConfig()
    )
    assert (
        choose_prefill_chunk(many, 32768, None) == 384
        and choose_prefill_chunk(many, 4096, None) == 512
    )


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MiniCPMError, match=r"config\.json"):
        compile_model(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a folder"):
        compile_model(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CheckpointError, match="--random-weights"):
        compile_model("MiniCPM4-8B", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_midway_leaves_nothing(no_code, checkpoint, tmp_path, monkeypatch):
    from minicpm_mlc.compile import writer as bundle

    written = 0

    def write(self, data):
        nonlocal written
        written += len(data)
        if written > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    original = bundle.BundleFile.write
    monkeypatch.setattr(bundle.BundleFile, "write", write)
    before = set(tmp_path.iterdir())
    with pytest.raises(CompileError, match="full"):
        compile_model(checkpoint, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_an_existing_bundle_is_replaced_only_when_asked(no_code, checkpoint, tmp_path):
    compile_model(checkpoint, tmp_path / "out")
    with pytest.raises(CompileError, match="--force"):
        compile_model(checkpoint, tmp_path / "out", scheme="w8")
    compile_model(checkpoint, tmp_path / "out", scheme="w8", overwrite=True)
    assert Manifest.load(tmp_path / "out").scheme == "w8"
