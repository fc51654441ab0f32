"""What the files of a bundle say reaches compiled code only if the library says the same."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from odd_bundles import ODD, copy_of, drop, put, rewrite_allowed, ways
from test_bundle import MANIFEST, write

from minicpm_mlc import Engine, cli
from minicpm_mlc.base.errors import BundleError
from minicpm_mlc.bundle.kernel_cases import (
    KERNEL_CASES,
    Case,
    Expected,
    Tiled,
    from_bytes,
    load_cases,
    to_bytes,
)
from minicpm_mlc.bundle.manifest import Bundle, Manifest, read_bundle
from minicpm_mlc.bundle.npy import from_npy
from minicpm_mlc.bundle.params import load_draft_ids, load_params
from minicpm_mlc.inspect.describe import as_text, describe
from minicpm_mlc.runtime_py.library import LocalLibrary


@pytest.fixture(scope="module")
def tiny(tiny_bundle) -> Path:
    return tiny_bundle("MiniCPM4-0.5B").path


@pytest.fixture
def odd(tiny: Path, tmp_path: Path) -> Path:
    return copy_of(tiny, tmp_path / "odd")


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        Engine(folder, context=64)


# ---- manifest.json


@pytest.mark.parametrize("size", [0, 128, 1000, 4096, 64.0, True])
def test_rob_03_page_size_is_the_one_that_is_compiled_in(odd: Path, size: Any) -> None:
    rewrite_allowed(odd, lambda manifest: manifest.update(page_size=size))
    refused(odd, "damaged at 'page_size'.*expected 64")


def test_rob_03_the_vocabulary_is_held_against_the_library(odd: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["model"]["vocab_size"] = 10_000_000

    rewrite_allowed(odd, change)
    refused(odd, r"damaged at 'model: vocab_size': 10000000, and model\.so was compiled for \d+")


def test_rob_03_no_number_of_a_manifest_may_differ_from_the_library(odd: Path) -> None:
    good = json.loads((odd / "manifest.json").read_bytes())
    numbers = [way for way in ways(good) if way[0] != "files"]
    numbers = [way for way in numbers if isinstance(_at(good, way), int | float | str)]
    assert len(numbers) > 40
    seen = set()
    for way in numbers:
        value = _at(good, way)
        other = (
            f"{value}x" if isinstance(value, str) else not value if value in (0, 1) else value * 2
        )
        rewrite_allowed(odd, lambda manifest, w=way, o=other: put(manifest, w, o))
        with pytest.raises(BundleError) as error:
            LocalLibrary(read_bundle(odd, tvm=_read_tvm(odd)), 1)
        seen.add("was compiled for" in str(error.value))
        put(good, way, value)
        (odd / "manifest.json").write_text(json.dumps(good))
    assert seen == {True, False}  # some are wrong alone, some only beside the library


def _at(value: Any, way: tuple[str | int, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def _read_tvm(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_bytes())["tvm"]


@pytest.mark.parametrize("name", ["../elsewhere.so", "/tmp/elsewhere.so", "..", "", "a/b", "C:x"])
def test_rob_04_a_library_outside_the_bundle_is_refused(odd: Path, name: str) -> None:
    shutil.move(odd / "model.so", odd.parent / "elsewhere.so")

    def change(manifest: dict[str, Any]) -> None:
        manifest.update(files={}, library=name)

    (odd / "model.so").touch()
    rewrite_allowed(odd, change)
    refused(odd, "damaged at 'library'")


def test_rob_04_a_library_that_no_hash_covers_is_refused(odd: Path) -> None:
    rewrite_allowed(odd, lambda manifest: manifest["files"].pop("model.so"))
    refused(odd, "damaged at 'library': \"model.so\", expected one of files")


@pytest.mark.parametrize("name", ["tensor-cache.json", "params_shard_0.bin", KERNEL_CASES])
def test_rob_04_a_needed_file_that_no_hash_covers_is_refused(odd: Path, name: str) -> None:
    rewrite_allowed(odd, lambda manifest: manifest["files"].pop(name))
    refused(odd, name)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja"])
def test_rob_04_a_file_that_would_be_read_and_is_not_listed_is_refused(
    odd: Path, name: str
) -> None:
    rewrite_allowed(odd, lambda manifest: manifest["files"].pop(name, None))
    (odd / name).write_text("{}")
    refused(odd, f"{name} isn't in the manifest")


def test_rob_04_another_program_than_ours_is_refused_in_a_sentence(odd: Path) -> None:
    (library,) = Path(np.__file__).parent.glob("linalg/_umath_linalg.*.so")
    shutil.copyfile(library, odd / "model.so")
    rewrite_allowed(odd)
    refused(odd, r"model\.so does not load")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"model": {"vocab_size": None}}, "model: vocab_size"),
        ({"model": {"rope_factors": []}}, "model: rope_factors"),
        ({"model": {"sparse": -1}}, "model: sparse"),
        ({"model": {"eos_token_ids": [[1]]}}, "model: eos_token_ids: 0"),
        ({"target": {"features": [[]]}}, "target: features: 0"),
        ({"page_size": 0}, "page_size"),
        ({"memory": {"kv_per_token": 0}}, "memory: kv_per_token"),
        ({"state": [{"k": [1, 1099511627776]}]}, "state: fields"),
    ],
    ids=str,
)
def test_rob_21_a_field_of_another_shape_is_named(
    odd: Path, change: dict[str, Any], place: str
) -> None:
    def merge(manifest: dict[str, Any]) -> None:
        for key, value in change.items():
            manifest[key] = manifest[key] | value if isinstance(value, dict) else value

    rewrite_allowed(odd, merge)
    refused(odd, rf"manifest\.json is damaged at '{place}")
    shown = CliRunner().invoke(cli.main, ["inspect", str(odd)])
    assert shown.exit_code == 1 and f"is damaged at '{place}" in shown.stderr


def test_rob_21_mutated_manifests_end_in_bundle_errors(tmp_path: Path, odd: Path) -> None:
    draw = random.Random(21)
    good = (odd / "manifest.json").read_text()
    passed = 0
    for _ in range(1500):
        manifest = json.loads(good)
        for _ in range(draw.randint(1, 2)):
            way = draw.choice(list(ways(manifest)))
            drop(manifest, way) if draw.random() < 0.2 else put(manifest, way, draw.choice(ODD))
        (odd / "manifest.json").write_text(json.dumps(manifest))
        try:
            as_text(describe(str(odd)))
            passed += 1
        except BundleError as error:
            assert str(odd) in str(error)
    assert passed < 1000


@pytest.mark.parametrize(
    "text", [b"\xff", b"[" * 100_000, b'{"a": ' * 100_000, b"9" * 5000, b"NaN"]
)
def test_rob_21_bytes_that_are_no_manifest(odd: Path, text: bytes) -> None:
    (odd / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON|bundle format None"):
        Manifest.load(odd)


@pytest.mark.parametrize("key", ["page_size", "model", "name"])
def test_rob_21_a_value_that_is_nested_deeply_is_told_shortly(odd: Path, key: str) -> None:
    manifest = json.loads((odd / "manifest.json").read_bytes())
    text = json.dumps(manifest | {key: "HERE"})
    for depth in (10, 600, 900, 950, 990):
        (odd / "manifest.json").write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
        with pytest.raises(BundleError) as error:
            Manifest.load(odd)
        assert len(str(error.value)) < len(str(odd)) + 300


# ---- tensor-cache.json and draft-ids.npy


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("byteOffset", 1 << 40, "byteOffset"),
        ("byteOffset", -64, "byteOffset"),
        ("nbytes", 4, "nbytes"),
        ("dtype", "object", "dtype"),
        ("dtype", "O", "dtype"),
        ("shape", [1 << 40], "shape"),
        ("shape", [], "shape"),
    ],
)
def test_rob_21_weights_that_lie_elsewhere_are_refused(
    odd: Path, key: str, value: Any, why: str
) -> None:
    cache = json.loads((odd / "tensor-cache.json").read_bytes())
    cache["records"][0]["records"][0][key] = value
    (odd / "tensor-cache.json").write_text(json.dumps(cache))
    rewrite_allowed(odd)
    refused(odd, f"tensor-cache.json doesn't describe the weights at .*{why}")


def test_rob_03_a_tensor_of_another_shape_is_refused_before_the_library_sees_it(odd: Path) -> None:
    cache = json.loads((odd / "tensor-cache.json").read_bytes())
    records = cache["records"][0]["records"]
    record = next(each for each in records if len(set(each["shape"])) > 1)
    record["shape"] = record["shape"][::-1]
    (odd / "tensor-cache.json").write_text(json.dumps(cache))
    rewrite_allowed(odd)
    refused(odd, rf"damaged at '{record['name']}': .*model\.so was compiled for")


@pytest.mark.parametrize("ids", [[0, 100], [-1, 0], [0], [[0, 1]], [0.0, 1.0]], ids=str)
def test_rob_03_draft_ids_are_tokens_of_the_model(tmp_path: Path, ids: list[Any]) -> None:
    folder = write(tmp_path / "b")
    manifest = json.loads(MANIFEST.to_bytes()) | {
        "draft": {"vocab": 2},
        "files": {"draft-ids.npy": {}},
    }
    dtype = np.float64 if isinstance(ids[-1], float) else np.int32
    np.save(folder / "draft-ids.npy", np.array(ids, dtype))
    with pytest.raises(BundleError, match=r"draft-ids\.npy holds"):
        load_draft_ids(Bundle(folder, Manifest(**manifest)))
    np.save(folder / "draft-ids.npy", np.array([99, 0], np.int32))
    assert load_draft_ids(Bundle(folder, Manifest(**manifest))).tolist() == [99, 0]


def test_rob_21_mutated_tensor_caches_end_in_bundle_errors(odd: Path) -> None:
    draw = random.Random(4)
    good = (odd / "tensor-cache.json").read_text()
    bundle = Bundle(odd, Manifest.load(odd))
    for _ in range(300):
        cache = json.loads(good)
        way = draw.choice(list(ways(cache)))
        drop(cache, way) if draw.random() < 0.2 else put(cache, way, draw.choice(ODD))
        (odd / "tensor-cache.json").write_text(json.dumps(cache))
        try:
            assert len(load_params(bundle)) == len(bundle.manifest.params)
        except BundleError as error:
            assert str(odd) in str(error)


# ---- kernel-cases.npz


def cases() -> list[Case]:
    table, pool = np.arange(3, dtype=np.int32), np.zeros((4, 8), np.float32)
    record = {"file": "embed", "operator": "embed", "fields": {"width": 8}}
    places = np.array([1, 5], np.int32)
    changed = Expected(1, Tiled.whole(np.ones(2, np.float32)), places)
    words = Expected(3, Tiled(np.ones((1, 2, 33), np.float32), (2, 2, 33)), None, True)
    made = Expected(2, Tiled(pool[:1], (4, 8)))
    return [
        Case("k", record, 0.0, [Tiled.whole(table), Tiled.whole(pool)], [changed, made, words]),
        Case("l", record, 1e-5, [Tiled(table[:1], (64,))], [Expected(1, Tiled.whole(table))]),
    ]


def test_cases_are_read_back_as_they_were_written() -> None:
    again = from_bytes(to_bytes(cases()))
    assert to_bytes(again) == to_bytes(cases())
    assert again[1].inputs[0].array().tolist() == [0] * 64


@pytest.mark.parametrize("change", ["empty", "other", "cut", "one bit"])
def test_rob_13_kernel_cases_of_another_making_are_refused(odd: Path, change: str) -> None:
    file = odd / KERNEL_CASES
    data = file.read_bytes()
    changed = {
        "empty": b"",
        "other": to_bytes(load_cases(odd)[:3]),
        "cut": data[: len(data) // 2],
        "one bit": data[:-200] + bytes([data[-200] ^ 1]) + data[-199:],
    }
    file.write_bytes(changed[change])
    rewrite_allowed(odd)
    refused(odd, rf"{KERNEL_CASES} is missing or not the one that model\.so was compiled with")
    result = CliRunner().invoke(cli.main, ["verify", str(odd)])
    assert result.exit_code == 1 and result.stderr.startswith("error: ")
    assert KERNEL_CASES in result.stderr and "Aborted" not in result.output


def test_rob_13_mutated_kernel_cases_end_in_bundle_errors(tmp_path: Path) -> None:
    draw = random.Random(13)
    good = to_bytes(cases())
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        load_or_refuse(tmp_path, bytes(data))


def test_rob_13_an_index_of_other_shapes_ends_in_bundle_errors(tmp_path: Path) -> None:
    draw = random.Random(14)
    with np.load(io.BytesIO(to_bytes(cases()))) as stored:
        arrays = dict(stored)
    good = arrays.pop("index").tobytes()
    refusals = 0
    for _ in range(800):
        index = json.loads(good)
        way = draw.choice(list(ways(index)))
        drop(index, way) if draw.random() < 0.2 else put(index, way, draw.choice(ODD))
        file = io.BytesIO()
        np.savez(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
        refusals += load_or_refuse(tmp_path, file.getvalue())
    assert refusals > 400


def load_or_refuse(folder: Path, data: bytes) -> bool:
    """Whether a file of these bytes is refused; what is read has arrays of its own sizes."""
    (folder / KERNEL_CASES).write_bytes(data)
    try:
        for case in load_cases(folder):
            assert all(each.tile.nbytes <= len(data) for each in case.inputs)
        return False
    except BundleError as error:
        assert KERNEL_CASES in str(error)
        return True


def test_rob_13_packed_arrays_are_refused_however_small(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / KERNEL_CASES, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.npy", bytes(50_000_000))
    assert load_or_refuse(tmp_path, (tmp_path / KERNEL_CASES).read_bytes())


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
        b"((((((((((" * 1000,
        b"",
    ],
)
def test_rob_13_a_header_that_numpy_would_not_write_is_refused(header: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4)
    with pytest.raises(ValueError):
        from_npy(data)
