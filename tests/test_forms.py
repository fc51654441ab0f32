"""Quantised checkpoints of other tools: the notes' worked numbers, the same weights in every form,
integers that are carried and not rounded again, and what is refused by name.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from checkpoints import write_json
from numpy_model import forward
from packers import small_config, write_quantised

from minicpm_mlc import Engine
from minicpm_mlc.base.errors import CheckpointError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint import Weights, open_checkpoint
from minicpm_mlc.compile.checkpoint.forms import Stated, open_form
from minicpm_mlc.compile.checkpoint.forms.fp8 import values_e4m3
from minicpm_mlc.compile.checkpoint.forms.marlin import scale_order, weight_order
from minicpm_mlc.compile.checkpoint.packed import unpack
from minicpm_mlc.compile.checkpoint.safetensors import SafetensorsFile
from minicpm_mlc.ops.formats.weights import SCHEMES
from minicpm_mlc.ops.formats.weights.base import Parts, Scheme

# the matrix of the notes: 8 outputs, 8 inputs, groups of 4 inputs
N, K = np.indices((8, 8))
Q = (3 * N + 5 * K + N * K) % 16
ROWS, GROUPS = np.indices((8, 2))
SCALE = (0.125 * (1 + ROWS % 4) / (1 + GROUPS)).astype(np.float16)
ZERO = 6 + (ROWS + GROUPS) % 4
ROW_0 = [-0.75, -0.125, 0.5, 1.125, -0.1875, 0.125, 0.4375, -0.25]
ASYMMETRIC, SYMMETRIC = "67dc9697", "714307a4"

GPTQ_WORDS = "3e94fa50 d71b5f93 7092b4d6 19191919 b2907e5c 5b17d39f f49e38d2 9d159d15".split()
AWQ_WORDS = "5f932c60 1919d5d5 d39f8e4a 9d1537bf 579be024 11119999 db97420e 951dfb73".split()


def hexed(words: np.ndarray) -> list[str]:
    return [f"{word:08x}" for word in words.reshape(-1).view(np.uint32).tolist()]


def crc(numbers: np.ndarray) -> str:
    return f"{zlib.crc32((np.ascontiguousarray(numbers, '<f4') + np.float32(0)).tobytes()):08x}"


def read_one(folder: Path, tensors: packers.Tensors, method: str, **values: Any) -> np.ndarray:
    """The matrix [8, 8] that the tensors of linear "p" stand for."""
    path = folder / "model.safetensors"
    path.write_bytes(packers.file_of({f"p.{end}": part for end, part in tensors.items()}))
    file = SafetensorsFile(path)
    reader = open_form(Stated(method, values, "x"), dict.fromkeys(file.entries, file))
    tensor = reader.tensor("p.weight", {"p.weight": (8, 8)})
    assert tensor is not None and set(tensor.stored) == set(file.entries)
    assert np.array_equal(tensor.rows(3, 7), tensor.rows()[3:7])
    return tensor.rows()


def test_gptq_words_and_weights_are_those_of_the_notes(tmp_path):
    v1 = packers.gptq_words(Q, SCALE, ZERO, 4, less=1)
    v2 = packers.gptq_words(Q, SCALE, ZERO, 4, less=0)
    assert hexed(v1["qweight"]) == GPTQ_WORDS
    assert hexed(v1["qzeros"]) == ["87658765", "58765876"]
    assert hexed(v2["qzeros"]) == ["98769876", "69876987"]
    weights = read_one(tmp_path, v1, "gptq", sym=False)
    assert weights[0].tolist() == ROW_0 and crc(weights) == ASYMMETRIC
    assert crc(read_one(tmp_path, v2, "gptq", sym=False, checkpoint_format="gptq_v2")) == ASYMMETRIC
    eight = packers.gptq_words(Q, SCALE, np.full((8, 2), 8), 4, less=1)
    assert set(hexed(eight["qzeros"])) == {"77777777"}
    assert crc(read_one(tmp_path, eight, "gptq", sym=True, bits=4)) == SYMMETRIC
    order = {"g_idx": (np.arange(8) // 4).astype(np.int32)}
    assert crc(read_one(tmp_path, eight | order, "gptq", desc_act=True)) == SYMMETRIC


def test_awq_words_and_weights_are_those_of_the_notes(tmp_path):
    packed = packers.awq_words(Q, SCALE, ZERO)
    assert hexed(packed["qweight"]) == AWQ_WORDS
    assert hexed(packed["qzeros"]) == ["97978686", "68689797"]
    assert crc(read_one(tmp_path, packed, "awq", bits=4, version="gemm")) == ASYMMETRIC
    del packed["qzeros"]
    assert crc(read_one(tmp_path, packed, "awq", zero_point=False)) == SYMMETRIC


def test_compressed_tensors_words_and_weights_are_those_of_the_notes(tmp_path):
    packed = packers.compressed_words(Q, SCALE, ZERO, 4)
    assert hexed(packed["weight_packed"]) == GPTQ_WORDS
    assert hexed(packed["weight_zero_point"]) == ["98769876", "69876987"]
    kind = {"format": "pack-quantized"}
    assert crc(read_one(tmp_path, packed, "compressed-tensors", **kind)) == ASYMMETRIC
    del packed["weight_zero_point"]
    assert crc(read_one(tmp_path, packed, "compressed-tensors", **kind)) == SYMMETRIC


MLX_WORDS = {
    3: "53977053 70539770 97705397",
    4: "4d6f81a3 c5e7092b 4d6f81a3 c5e7092b",
    6: "9f611283 90bbd2d9 b2579740 8f201eb3 9cab91d5 71538703",
}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_words_are_those_of_the_notes(bits):
    values = (7 * np.arange(32) + 3) % (1 << bits)
    words = packers.words_of(values[None], bits)
    if bits in MLX_WORDS:
        assert hexed(words) == MLX_WORDS[bits].split()
    assert unpack(words, bits, 32)[0].tolist() == values.tolist()


def test_mlx_weights_are_those_of_the_notes(tmp_path):
    words = packers.words_of((7 * np.arange(32) + 3)[None] % 16, 4).view("<u4")
    part = {"scales": np.full((1, 1), -0.25, np.float16), "biases": np.full((1, 1), 2, np.float16)}
    path = tmp_path / "m.safetensors"
    path.write_bytes(packers.file_of({"p.weight": words} | {f"p.{k}": v for k, v in part.items()}))
    file = SafetensorsFile(path)
    reader = open_form(Stated("mlx", {"mode": "affine"}, ""), dict.fromkeys(file.entries, file))
    tensor = reader.tensor("p.weight", {"p.weight": (1, 32)})
    assert tensor is not None and tensor.rows()[0, :4].tolist() == [1.25, -0.5, 1.75, 0]
    assert crc(tensor.rows()) == "02845dfe" and tensor.holders == ("w4a",)


def test_marlin_words_and_orders_are_those_of_the_notes():
    k, n = np.indices((16, 64))
    words = packers.marlin_words(((3 * k + n) % 16).T)
    assert hexed(words[0, :8]) == ["3bb30880"] * 4 + ["91196ee6"] * 4
    assert f"{zlib.crc32(words.tobytes()):08x}" == "bbb2a216"
    first = [0, 128, 8, 136, 16, 144, 24, 152, 256, 384, 264, 392, 272, 400, 280, 408]
    assert weight_order()[:16].tolist() == first
    assert scale_order(False)[:10].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]
    assert scale_order(True)[:9].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2]


def test_fp8_values_are_those_of_the_notes():
    values = values_e4m3()
    codes = {0x01: 2.0**-9, 0x07: 0.013671875, 0x08: 2.0**-6, 0x38: 1, 0x3F: 1.875, 0x7E: 448}
    assert {code: values[code] for code in codes} == codes and values[0xB8] == -1
    assert np.isnan(values[[0x7F, 0xFF]]).all() and np.isfinite(values).sum() == 254


GPTQ = {"quant_method": "gptq", "bits": 4}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
# form: how it is packed, the key and settings of config.json, and the scheme that carries it
FORMS: dict[str, tuple[packers.Packer, dict[str, Any], str | None]] = {
    "gptq": (packers.gptq(), GPTQ | {"sym": True, "desc_act": False}, "w4"),
    "gptq one group": (packers.gptq(group=0), GPTQ | {"group_size": -1}, "w4"),
    "gptq v2": (packers.gptq(less=0), GPTQ | {"checkpoint_format": "gptq_v2"}, "w4"),
    "gptq 8 bits": (packers.gptq(8), GPTQ | {"bits": 8}, "w8"),
    "gptq asymmetric": (packers.gptq(symmetric=False), GPTQ | {"sym": False}, "w4z"),
    "gptq act order": (packers.gptq(order=True), GPTQ | {"desc_act": True}, None),
    "awq": (packers.awq(), {"quant_method": "awq", "version": "gemm"}, "w4z"),
    "compressed": (packers.compressed(), COMPRESSED, "w4"),
    "compressed channel": (packers.compressed(group=0), COMPRESSED, "w4"),
    "compressed 8 bits": (packers.compressed(8), COMPRESSED, "w8"),
    "compressed asymmetric": (packers.compressed(symmetric=False), COMPRESSED, "w4z"),
    "compressed int8": (packers.compressed_int8, COMPRESSED | {"format": "int-quantized"}, "w8"),
    "mlx": (packers.mlx(), {"group_size": 64, "bits": 4}, "w4a"),
    "mlx 6 bits": (packers.mlx(6), {"group_size": 64, "bits": 6}, None),
    "fp8": (packers.fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}, None),
}


def written(folder: Path, form: str) -> Weights:
    pack, settings, _ = FORMS[form]
    key = "quantization" if form.startswith("mlx") else "quantization_config"
    config = write_quantised(folder, pack, {key: settings})
    return open_checkpoint(folder, config)


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_carried_where_a_scheme_holds_them(tmp_path, form):
    weights, scheme = written(tmp_path, form), FORMS[form][2]
    assert weights.schemes() == (scheme or "w8", None)
    linear = SCHEMES[scheme or "w8"]
    notes = " ".join(packers.notes_of(weights, scheme or "w8", "f16"))
    assert ("are quantised again, to w8: relative error" in notes) != bool(scheme)
    for name, tensor in weights.tensors.items():
        rows = weights.rows(name)
        assert np.array_equal(weights.rows(name, 5, 40), rows[5:40])
        if not tensor.quantised:
            continue
        parts = tensor.carried(linear, 5, 40)
        if scheme is None:
            assert parts is None
        else:
            check_carried(parts, linear, rows[5:40])
        if scheme == "w4z":
            check_carried(tensor.carried(SCHEMES["w8"], 5, 40), SCHEMES["w8"], rows[5:40])
            check_carried(tensor.carried(SCHEMES["w4a"], 5, 40), SCHEMES["w4a"], rows[5:40])
    if scheme == "w4z":  # a zero point times a scale needs 15 bits
        [*_, note] = packers.notes_of(weights, "w4a", "f16")
        assert "minimums are rounded to f16: relative error of their weights 0.0" in note


def check_carried(parts: Parts | None, scheme: Scheme, rows: np.ndarray) -> None:
    """They are what the scheme stores, and stand for these rows, but for a rounded minimum."""
    assert parts is not None
    restored = scheme.dequantize(parts)
    exact = np.array_equal(restored, rows)
    assert exact or (scheme.name == "w4a" and np.abs(restored - rows).max() < 2e-4)
    like = scheme.quantize(rows)
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == {
        k: (v.dtype, v.shape) for k, v in like.items()
    }


def test_another_scheme_than_the_stored_one_is_told(tmp_path):
    weights = written(tmp_path, "gptq asymmetric")
    assert packers.notes_of(weights, "w8", "w8")[1:] == []
    assert packers.notes_of(weights, "f32", "w8")[1:] == []
    [remark, note] = packers.notes_of(weights, "w4", "w8")
    assert note.startswith("7 tensors of GPTQ (4 bits) are quantised again, to w4: relative error")
    assert "GPTQModel before 0.9.0" in remark


def test_what_the_checkpoint_left_as_floats_is_told(tmp_path):
    settings = {"quantization_config": GPTQ | {"dynamic": {"-:.*down.*": {}}}}
    config = write_quantised(tmp_path, packers.gptq(), settings, only="gate_proj.weight")
    weights = open_checkpoint(tmp_path, config)
    assert weights.schemes() == ("w4", None)
    [note] = packers.notes_of(weights, "w4", "w8")
    assert note.startswith("6 tensors of F16, which the checkpoint left as floats, become w4: rel")


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@pytest.mark.parametrize("group", [64, 0])
def test_cpm_cus_marlin_is_the_same_weights_as_gptq(tmp_path, group):
    for name in ("gptq", "marlin"):
        (tmp_path / name).mkdir()
    settings = {"quantization_config": GPTQ}
    config = write_quantised(tmp_path / "gptq", packers.gptq(group=group), settings)
    write_quantised(tmp_path / "marlin", packers.marlin(group), {}, fuse=FUSED)
    whole = tmp_path / "marlin" / "model.safetensors"
    whole.rename(whole.with_name("model_gptq_marlin.safetensors"))  # as CPM.cu calls it
    plain, tiled = (open_checkpoint(tmp_path / name, config) for name in ("gptq", "marlin"))
    assert tiled.schemes() == ("w4", None)
    for name in plain.names():
        assert np.array_equal(plain.rows(name), tiled.rows(name)), name
        assert np.array_equal(plain.rows(name, 3, 90), tiled.rows(name, 3, 90)), name


def test_autogptqs_marlin_has_other_names(tmp_path):
    def pack(w: np.ndarray) -> packers.Tensors:
        packed = packers.marlin()(w)
        names = {"B": packed["qweight"], "s": packed["scales"]}
        return names | {"workspace": np.zeros(16, np.int32)}

    settings = {"quantization_config": GPTQ | {"checkpoint_format": "marlin"}}
    config = write_quantised(tmp_path, pack, settings)
    assert open_checkpoint(tmp_path, config).schemes() == ("w4", None)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_mlx_quantises_the_embedding_too(tmp_path, kind):
    config = small_config(tie_word_embeddings=kind == "tied")
    settings = {"quantization": {"group_size": 32, "bits": 4}}
    settings["quantization_config"] = settings["quantization"]
    write_quantised(tmp_path, packers.mlx(group=32), settings, config, only="weight")
    weights = open_checkpoint(tmp_path, config)
    assert weights.schemes() == ("w4a", "w4a")
    assert packers.notes_of(weights, "w4a", "w4a") == []


REFUSED: dict[str, dict[str, Any]] = {
    '"bitsandbytes" is not a form that is read': {"load_in_4bit": True},
    "rotation is": GPTQ | {"rotation": "hadamard"},
    'pack_dtype is "int64", expected "int32"': GPTQ | {"pack_dtype": "int64"},
    'checkpoint_format is "gptq_v9"': GPTQ | {"checkpoint_format": "gptq_v9"},
    "says 8; download both again": GPTQ | {"bits": 8},
    'version is "gemv"': {"quant_method": "awq", "version": "gemv"},
    'backend is "llm-awq"': {"quant_method": "awq", "backend": "llm-awq"},
    'format is "marlin-24"': COMPRESSED | {"format": "marlin-24"},
    "transform_config is": COMPRESSED | {"transform_config": {"u": 1}},
    'mode is "mxfp4", expected "affine"': {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "quantization_config is 4, expected an object": {},
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_other_forms_are_refused_by_the_key_that_says_so(tmp_path, wrong):
    settings = {"quantization_config": REFUSED[wrong] or 4}
    config = write_quantised(tmp_path, packers.gptq(), settings)
    with pytest.raises(CheckpointError, match=wrong.replace("(", "[(]")) as caught:
        open_checkpoint(tmp_path, config)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def damage(**parts: Any) -> packers.Packer:
    """GPTQ's tensors with some replaced; None takes one away."""

    def pack(w: np.ndarray) -> packers.Tensors:
        packed: dict[str, Any] = packers.gptq()(w)
        for end, change in parts.items():
            packed[end] = change(packed[end])
        return {end: part for end, part in packed.items() if part is not None}

    return pack


def with_last(part: np.ndarray, value: int) -> np.ndarray:
    part.reshape(-1)[-1] = value
    return part


DAMAGED = {
    "stores 15 in a file of version 1": (damage(qzeros=lambda part: with_last(part, -1)), False),
    "a zero point of 2, expected 8": (damage(qzeros=lambda part: part * 0 + 0x11111111), True),
    "names groups 0 to 9": (damage(g_idx=lambda part: with_last(part, 9)), True),
    "g_idx has shape": (damage(g_idx=lambda part: part[:-1]), True),
    "qzeros is missing": (damage(qzeros=lambda part: None), True),
    "scales is missing": (damage(scales=lambda part: None), True),
    "qweight has shape": (damage(qweight=lambda part: part[:-1]), True),
    "qweight has dtype F32, expected I32": (damage(qweight=lambda p: p.astype(np.float32)), True),
    "tensor model.layers.0.self_attn.q_proj.odd is not part": (
        lambda w: packers.gptq()(w) | {"odd": np.zeros(3, np.float32)},
        True,
    ),
}


@pytest.mark.parametrize("wrong", DAMAGED)
def test_damaged_linears_are_refused_by_name(tmp_path, wrong):
    pack, symmetric = DAMAGED[wrong]
    settings = {"quantization_config": GPTQ | {"sym": symmetric}}
    config = write_quantised(tmp_path, pack, settings)
    with pytest.raises(CheckpointError, match=wrong):
        open_checkpoint(tmp_path, config)


def test_settings_beside_the_config_are_found(tmp_path):
    config = write_quantised(tmp_path, packers.awq(), {})
    write_json(tmp_path / "quant_config.json", {"w_bit": 4, "version": "GEMM", "zero_point": True})
    assert open_checkpoint(tmp_path, config).schemes() == ("w4z", None)
    (tmp_path / "quant_config.json").unlink()
    (tmp_path / "other").mkdir()
    write_quantised(tmp_path / "other", packers.gptq(), {})  # CPM.cu says nothing
    assert open_checkpoint(tmp_path / "other", config).schemes() == ("w4", None)


SLOW = [form for form in FORMS if form != "gptq"]


@pytest.mark.parametrize(
    "form", ["gptq", *(pytest.param(form, marks=pytest.mark.campaign) for form in SLOW)]
)
def test_logits_are_those_of_the_weights_that_are_stored(tmp_path, form):
    weights = written(tmp_path / "model", form)
    exact: dict[str, Any] = {"embedding_scheme": "f32", "activations": "f32", "kv": "f32"}
    scheme = None if FORMS[form][2] else "f32"
    compile_model(tmp_path / "model", tmp_path / "out", scheme=scheme, context=64, **exact)
    ids = [5, 300, 17, 42, 7, 100, 260, 9]
    dense = {name: weights.rows(name) for name in weights.names()}
    with Engine(tmp_path / "out", context=64) as engine:
        logits = engine.logits(ids)
    expected = forward(small_config(), dense, ids, [False] * len(ids))
    rounded = FORMS[form][2] == "w4a"
    assert np.abs(logits - expected).max() <= (3e-3 if rounded else 1e-4)
