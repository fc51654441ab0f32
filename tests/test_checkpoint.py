"""Checkpoints: rows come out as stored, and every kind of damage is one sentence naming file and
tensor.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_tensors, tiny_config, write_checkpoint, write_json, write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile.checkpoint import RandomCheckpoint, open_checkpoint
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.compile.config.presets import PRESETS
from minicpm_mlc.compile.model.registry import count_parameters, published_tensors

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "num_kv_heads": 1,
    "vocab_size": 325,
}
UNTIED = tiny_config("MiniCPM5-1B", **SHAPE)
TIED = tiny_config("MiniCPM4-0.5B", **SHAPE)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoint"


def refused(folder, config, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_out_as_written(folder, dtype, shards):
    weights = write_checkpoint(folder, UNTIED, dtype=dtype, shards=shards)
    checkpoint = open_checkpoint(folder, UNTIED)
    assert checkpoint.names() == list(published_tensors(UNTIED))
    assert checkpoint.bytes == count_parameters(UNTIED) * (4 if dtype == "f32" else 2)
    for name, shape in published_tensors(UNTIED).items():
        rows = checkpoint.rows(name)
        assert (rows.dtype, rows.shape, checkpoint.shape(name)) == (np.float32, shape, shape)
        np.testing.assert_array_equal(rows, weights[name])


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_rows_are_slices_in_memory_of_their_own(folder, dtype):
    weights = write_checkpoint(folder, UNTIED, dtype=dtype)
    checkpoint = open_checkpoint(folder, UNTIED)
    rows = checkpoint.rows(Q_PROJ, 7, 20)
    np.testing.assert_array_equal(rows, weights[Q_PROJ][7:20])
    rows += 1
    np.testing.assert_array_equal(checkpoint.rows(Q_PROJ, 7, 20), weights[Q_PROJ][7:20])
    np.testing.assert_array_equal(
        checkpoint.rows("model.norm.weight", 60), weights["model.norm.weight"][60:]
    )


def test_bf16_keeps_infinities_and_signs(tmp_path):
    values = np.array([[0.0, -0.0, np.inf, -np.inf, 1.0, -1.5]], np.float32)
    save_tensors(tmp_path / SINGLE, {"x": values})
    found = SafetensorsFile(tmp_path / SINGLE).rows("x")
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


def test_reading_rows_holds_only_those_rows(tmp_path):
    save_tensors(tmp_path / SINGLE, {"x": np.zeros((4096, 1024), np.float32)})
    file = SafetensorsFile(tmp_path / SINGLE)
    tracemalloc.start()
    file.rows("x", 0, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 16 * 1024 * 4


@pytest.mark.parametrize("tied_alias", [False, True])
def test_tied_head_may_be_absent_or_an_alias(folder, tied_alias):
    write_checkpoint(folder, TIED, tied_alias=tied_alias)
    assert HEAD not in open_checkpoint(folder, TIED).names()


def test_tied_head_with_other_numbers_is_refused(folder):
    weights = write_checkpoint(folder, TIED)
    head = weights[EMBEDDING].copy()
    head[-1, -1] += 1
    write_tensors(folder, {**weights, HEAD: head})
    refused(folder, TIED, "lm_head.weight differs from model.embed_tokens.weight")
    write_tensors(folder, {**weights, HEAD: head[:-1]})
    refused(folder, TIED, r"lm_head.weight has shape \[324, 64\], expected \[325, 64\]")


def test_frequencies_of_older_exports_are_passed_over(folder):
    weights = write_checkpoint(folder, UNTIED)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(64, np.float32)}
    write_tensors(folder, {**weights, **buffer})
    assert open_checkpoint(folder, UNTIED).names() == list(weights)


@pytest.mark.parametrize("shards", [1, 2])
def test_missing_extra_and_misshaped_tensors_are_named(folder, shards):
    weights = write_checkpoint(folder, UNTIED, shards=shards)
    one_less = {name: value for name, value in weights.items() if name != Q_PROJ}
    write_tensors(folder, one_less, shards=shards)
    refused(folder, UNTIED, f"model.safetensors.*{Q_PROJ} is missing")
    write_tensors(
        folder,
        {**weights, "model.layers.0.self_attn.q_proj.bias": np.zeros(4, np.float32)},
        shards=shards,
    )
    refused(
        folder,
        UNTIED,
        "safetensors: tensor model.layers.0.self_attn.q_proj.bias is not part of the model",
    )
    write_tensors(folder, {**weights, Q_PROJ: weights[Q_PROJ].T.copy()}, shards=shards)
    refused(folder, UNTIED, rf"{Q_PROJ} has shape \[64, 512\], expected \[512, 64\]")


def test_another_models_weights_name_how_many_are_missing(folder):
    write_checkpoint(folder, UNTIED)
    refused(
        folder,
        tiny_config("MiniCPM5-1B", **SHAPE, num_layers=3),
        r"layers\.2.* is missing and so are 8 others",
    )


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1])
def test_truncated_file_is_refused(folder, keep):
    write_checkpoint(folder, UNTIED)
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:keep])
    assert SINGLE in refused(folder, UNTIED, "truncated|header of")


def test_bytes_after_the_last_tensor_are_refused(folder):
    write_checkpoint(folder, UNTIED)
    with (folder / SINGLE).open("ab") as file:
        file.write(b"\0")
    refused(folder, UNTIED, "followed by bytes of no tensor")


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "header isn't a JSON object"),
        (b"{]", "header isn't JSON"),
        (b"[" * 50_000, "header isn't JSON"),
        (b'{"x": {}, "x": {}}', "occurs twice"),
        ({"x": {"dtype": "F32"}}, "tensor x has no dtype, shape and data_offsets"),
        ({"x": entry(shape=(2, -2))}, "tensor x has a shape or offset that isn't a whole number"),
        ({"x": entry(shape=(2, True))}, "tensor x has a shape or offset"),
        (
            {"x": entry(shape=(2, 3))},
            r"tensor x spans 16 bytes, its shape \[2, 3\] in F32 needs 24",
        ),
        ({"x": entry(shape=(2**40, 2**40), offsets=(0, 0))}, "tensor x spans 0 bytes"),
        ({"x": entry(dtype="F8_E5M2")}, "tensor x has dtype F8_E5M2, expected BF16, F16 or F32"),
        ({"x": entry(offsets=(16, 32))}, "tensor x starts at byte"),
        ({"x": entry(), "y": entry(offsets=(8, 24))}, "tensor y starts at byte"),
        ({"x": entry(), "y": entry(offsets=(16, 32))}, "is truncated"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, message):
    write_raw(tmp_path / SINGLE, header, bytes(16))
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(tmp_path / SINGLE)


def test_a_weight_of_another_dtype_is_refused(folder):
    write_checkpoint(folder, UNTIED)
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content.replace(b'"BF16"', b'"I16" '))
    refused(
        folder, UNTIED, "tensor model.embed_tokens.weight has dtype I16, expected BF16, F16 or F32"
    )


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"x": 3}}']
)
def test_damaged_index_is_refused(folder, content):
    write_checkpoint(folder, UNTIED, shards=2)
    (folder / INDEX).write_bytes(content)
    refused(folder, UNTIED, "model.safetensors.index.json.*weight_map")


def test_index_and_files_must_agree(folder):
    write_checkpoint(folder, UNTIED, shards=2)
    index = json.loads((folder / INDEX).read_text())
    places, first, second = (
        index["weight_map"],
        *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    )

    def with_places(changed):
        write_json(folder / INDEX, {"weight_map": changed})

    with_places({**places, Q_PROJ: "elsewhere.safetensors"})
    refused(folder, UNTIED, "index.json names elsewhere.safetensors, which is not in the folder")
    with_places({**places, Q_PROJ: "../outside.safetensors"})
    refused(folder, UNTIED, "must map tensors to names of files beside it")
    other = second if places[Q_PROJ] == first else first
    with_places({**places, Q_PROJ: other})
    refused(folder, UNTIED, f"places tensor {Q_PROJ} in {other}, which doesn't hold it")
    with_places({name: place for name, place in places.items() if name != Q_PROJ})
    refused(
        folder, UNTIED, f"{places[Q_PROJ]} holds tensor {Q_PROJ}, which {INDEX} doesn't place there"
    )


def test_folders_without_weights_say_what_to_do(tmp_path):
    refused(tmp_path / "nowhere", UNTIED, "is not a folder")
    refused(tmp_path, UNTIED, "has no model.safetensors and no model.safetensors.index.json")
    (tmp_path / "weights.pth").touch()
    refused(tmp_path, UNTIED, r"has weights.pth but no model.safetensors; .*save_pretrained")
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    refused(tmp_path, UNTIED, "download the index too")


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / SINGLE
    save_tensors(path, {"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float32)})
    return path.read_bytes()


@settings(derandomize=True, max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_raises_anything_else(intact, tmp_path_factory, data):
    content = bytearray(intact[: data.draw(st.integers(0, len(intact)))])
    if content:
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        for name in file.entries:
            file.rows(name)
    except CheckpointError as error:
        assert "damaged.safetensors" in str(error)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F64", "X", 3]),
                "shape": st.lists(st.integers(-1, 4) | st.just(2**63) | st.none(), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40) | st.just("0"), max_size=3),
            }
        ),
    )
)
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    write_raw(path, header, bytes(16))
    try:
        file = SafetensorsFile(path)
        assert sum(entry.nbytes for entry in file.entries.values()) == 16
    except CheckpointError:
        pass


def test_random_rows_do_not_depend_on_how_they_are_asked_for():
    source = RandomCheckpoint(PRESETS["MiniCPM4-8B"], seed=3)
    name = "model.layers.31.mlp.down_proj.weight"
    whole = source.rows(name, 100, 260)
    assert whole.shape == (160, 16384)
    pieces = [source.rows(name, start, min(start + 37, 260)) for start in range(100, 260, 37)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(
        RandomCheckpoint(PRESETS["MiniCPM4-8B"], seed=3).rows(name, 100, 260), whole
    )
    assert not np.array_equal(
        RandomCheckpoint(PRESETS["MiniCPM4-8B"], seed=4).rows(name, 100, 260), whole
    )
    assert source.rows(name, 4000).shape == (96, 16384)


def test_random_weights_keep_activations_near_one():
    source = RandomCheckpoint(UNTIED)
    assert source.names() == list(published_tensors(UNTIED))
    assert (source.rows("model.norm.weight") == 1).all()
    assert source.rows(Q_PROJ).std() == pytest.approx(1 / 8, rel=0.05)
    embedding = RandomCheckpoint(TIED).rows(EMBEDDING)
    assert embedding.std() == pytest.approx(1 / TIED.scale_emb, rel=0.05)


def test_random_rows_and_tensors_differ():
    source = RandomCheckpoint(UNTIED)
    up, gate = (source.rows(f"model.layers.0.mlp.{kind}_proj.weight") for kind in ("up", "gate"))
    assert np.linalg.matrix_rank(up) == 64
    assert abs(np.corrcoef(up.ravel(), gate.ravel())[0, 1]) < 0.1
