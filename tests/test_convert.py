"""Conversion: stacking, placing, streaming; what is written is what the runtime maps."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import tvm_ffi

from minicpm_mlc.base.errors import CheckpointError, CompileError
from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.bundle.params import load_params
from minicpm_mlc.compile import convert as conversion
from minicpm_mlc.compile.checkpoint import Checkpoint
from minicpm_mlc.compile.convert import Param, convert, stored_bytes, stored_tensors
from minicpm_mlc.compile.shards import ShardWriter, StoredTensor, place
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.runtime_py.library import load_runtime


class FakeCheckpoint(Checkpoint):
    """Tensors made row by row when asked, so that a large one costs no memory."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes

    @property
    def bytes(self) -> int:
        return sum(4 * int(np.prod(shape)) for shape in self.shapes.values())

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        shape = self.shapes[name]
        width = shape[1] if len(shape) == 2 else 1
        row = np.arange(*slice(start, stop).indices(shape[0]), dtype=np.float32)[:, None]
        rows = np.sin(row * 1.7 + len(name)) * np.cos(np.arange(width, dtype=np.float32) * 0.3)
        return rows.reshape(-1, *shape[1:])


CHECKPOINT = FakeCheckpoint(
    {"q": (40, 64), "k": (10, 64), "v": (11, 64), "norm": (64,), "head": (50, 96)}
)


def params_of(scheme: str) -> list[Param]:
    return [
        Param("norm", ("norm",), 64, 0, SCHEMES["f32"]),
        Param("qkv", ("q", "k", "v"), 61, 64, SCHEMES[scheme]),
        Param("head", ("head",), 50, 96, SCHEMES[scheme]),
    ]


def manifest_of(names: list[str]) -> Manifest:
    target = {"device": "cpu", "triple": "x86_64-linux-gnu", "cpu": "x86-64-v3", "features": []}
    return Manifest(
        name="tiny",
        scheme="w4",
        embedding_scheme="w4",
        target=target,
        model={"num_layers": 1},
        kv_dtype="float16",
        state=[],
        max_context=64,
        prefill_chunk=64,
        params=names,
        memory={"weights": 0, "kv_per_token": 0, "activations": 0},
        tvm="0",
    )


def write(folder, params, checkpoint=CHECKPOINT, **options) -> Bundle:
    with BundleWriter(folder) as bundle:
        names = convert(params, checkpoint, bundle, **options)
        return Bundle(folder, bundle.finish(manifest_of(names)))


def stacked(param: Param) -> np.ndarray:
    return np.concatenate([CHECKPOINT.rows(source) for source in param.sources])


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_mapped_params_are_the_quantised_stacked_rows(tmp_path, monkeypatch, scheme, block_bytes):
    monkeypatch.setattr(conversion, "BLOCK_BYTES", block_bytes)
    params = params_of(scheme)
    bundle = write(tmp_path / "b", params)
    arrays = dict(
        zip([t.name for p in params for t in stored_tensors(p)], load_params(bundle), strict=True)
    )
    assert np.array_equal(arrays["norm.weight"], stacked(params[0]))
    for param in params[1:]:
        prefix, expected = f"{param.name}.", param.scheme.quantize(stacked(param))
        mapped = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        assert list(mapped) == list(expected)
        stored = param.scheme.unpack(mapped, param.rows)
        for name, part in expected.items():
            assert stored[name].dtype == part.dtype and np.array_equal(stored[name], part)
        assert np.abs(param.scheme.dequantize(stored) - stacked(param)).max() < 0.2


def test_stored_tensors_match_what_is_mapped(tmp_path):
    for scheme in SCHEMES:
        params = params_of(scheme)
        expected = [tensor for param in params for tensor in stored_tensors(param)]
        arrays = load_params(write(tmp_path / scheme, params))
        assert [tensor.shape for tensor in expected] == [array.shape for array in arrays]
        assert sum(array.nbytes for array in arrays) == stored_bytes(params)


def test_mapped_params_are_aligned_and_writing_to_them_leaves_the_files_alone(tmp_path):
    bundle = write(tmp_path / "b", params_of("w4"))
    arrays = load_params(bundle)
    assert all(
        array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
        for array in arrays
    )
    before = (bundle.path / "params_shard_0.bin").read_bytes()
    arrays[0][:] = 7
    assert (bundle.path / "params_shard_0.bin").read_bytes() == before


def test_same_input_gives_the_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 1)
    first = write(tmp_path / "a", params_of("w4"), threads=1)
    second = write(tmp_path / "b", params_of("w4"), threads=2)
    names = sorted(file.name for file in first.path.iterdir())
    assert names == sorted(file.name for file in second.path.iterdir())
    assert all(
        (first.path / name).read_bytes() == (second.path / name).read_bytes() for name in names
    )


def test_tensor_cache_describes_the_shards(tmp_path):
    folder = write(tmp_path / "b", params_of("w4")).path
    cache = json.loads((folder / "tensor-cache.json").read_bytes())
    assert cache["metadata"]["ParamBytes"] == stored_bytes(params_of("w4"))
    assert cache["metadata"]["ParamSize"] == 5
    for shard in cache["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        assert shard["format"] == "raw-shard" and shard["nbytes"] == len(data)
        assert shard["md5sum"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert all(record["byteOffset"] % 64 == 0 for record in shard["records"])


def test_tvm_loads_the_shards(tmp_path):
    load_runtime()
    for scheme in ("w4", "bf16"):
        bundle = write(tmp_path / scheme, params_of(scheme))
        tvm_ffi.get_global_func("vm.builtin.tensor_cache.load")(str(bundle.path), 1, 0)
        for name, expected in zip(bundle.manifest.params, load_params(bundle), strict=True):
            loaded = tvm_ffi.get_global_func("vm.builtin.tensor_cache.get")(name)
            assert tuple(loaded.shape) == expected.shape
            if str(loaded.dtype) != "bfloat16":
                assert np.array_equal(np.from_dlpack(loaded), expected)
        tvm_ffi.get_global_func("vm.builtin.tensor_cache.clear")()


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    write(
        tmp_path / "b", params_of("w4"), progress=lambda _, *seen_so_far: seen.append(seen_so_far)
    )
    total = stored_bytes(params_of("w4"))
    assert seen == sorted(seen) and seen[-1] == (total, total)


def test_a_200_mb_matrix_is_converted_in_little_memory(tmp_path):
    checkpoint = FakeCheckpoint({"big": (12_800, 4096)})
    params = [Param("big", ("big",), 12_800, 4096, SCHEMES["w4"])]
    tracemalloc.start()
    try:
        write(tmp_path / "b", params, checkpoint, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert checkpoint.bytes > 200e6
    assert peak < 48 << 20


def test_sources_that_do_not_stack_to_the_parameter_are_refused(tmp_path):
    with pytest.raises(CompileError, match=r"parameter qkv is \(60, 64\), and q, k, v of shapes"):
        write(tmp_path / "b", [Param("qkv", ("q", "k", "v"), 60, 64, SCHEMES["w4"])])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_stop_the_conversion_and_leave_nothing(tmp_path, monkeypatch):
    def rows(name, start=0, stop=None):
        return np.full((50, 96), np.nan, np.float32)[start:stop]

    monkeypatch.setattr(CHECKPOINT, "rows", rows)
    with pytest.raises(CheckpointError, match="tensor head holds NaN"):
        write(tmp_path / "b", params_of("w4")[2:])
    assert list(tmp_path.iterdir()) == []


def test_shards_fill_up_to_their_cap_and_larger_tensors_stand_alone():
    tensors = [
        StoredTensor(name, (size,), "int8")
        for name, size in (("a", 60), ("b", 30), ("c", 200), ("d", 1))
    ]
    assert [(spot.shard, spot.offset) for spot in place(tensors, cap=100)] == [
        (0, 0),
        (0, 64),
        (1, 0),
        (2, 0),
    ]


def test_writing_out_of_order_or_too_little_is_refused(tmp_path):
    tensors = [StoredTensor("a", (4,), "int8"), StoredTensor("b", (4,), "int8")]
    with BundleWriter(tmp_path / "b") as bundle:
        shards = ShardWriter(bundle, tensors, 8)
        with pytest.raises(CompileError, match="tensor b was written out of order; expected a"):
            shards.add("b", [])
    with BundleWriter(tmp_path / "b") as bundle:
        with pytest.raises(CompileError, match="tensor a took 3 bytes; expected 4"):
            ShardWriter(bundle, tensors, 8).add("a", [np.zeros(3, np.int8)])
    with BundleWriter(tmp_path / "b") as bundle:
        with pytest.raises(CompileError, match="tensor a was never written"):
            ShardWriter(bundle, tensors, 8).close()
