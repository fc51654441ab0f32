"""GGUF files: what the metadata stands for, whole, in parts, of other models and damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CHAT_TEMPLATE
from test_gguf_blocks import blocks
from tiny_tokenizers import byte_level, sentencepiece
from tokenizers import Tokenizer

from minicpm_mlc.base.errors import CheckpointError, CompileError, ConfigError, MiniCPMError
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.checkpoint.gguf import find_gguf, open_gguf
from minicpm_mlc.compile.checkpoint.gguf.container import GgufFile
from minicpm_mlc.compile.checkpoint.gguf.spm_merges import merges_of
from minicpm_mlc.compile.checkpoint.gguf.types import BLOCKS
from minicpm_mlc.compile.config.model_config import SparseConfig
from minicpm_mlc.inspect.describe import describe
from minicpm_mlc.ops.formats.weights import SCHEMES

gguf = pytest.importorskip("gguf", reason="writes and reads the files: pip install gguf")

HIDDEN, WIDE, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
SCALED = {
    "embedding_scale": 12.0,
    "residual_scale": 1.4 / LAYERS**0.5,
    "logit_scale": HIDDEN / 32.0,
}


def write_gguf(
    path: Path,
    arch: str = "llama",
    stored: str = "Q8_0",
    per_part: int = 0,
    heads: tuple[int, int, int] = (HEADS, KV_HEADS, HIDDEN // HEADS),
    lists: Mapping[str, np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """A small model. `changes` sets metadata keys, None removes one; tensors are `stored`, all in
    one file or `per_part` in each. `heads`: of queries, of keys, and their size. `lists`: more
    tensors, of float32.
    """
    keys = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 256,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": WIDE,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **tokenizer_keys(byte_level(), "gpt2"),
        "tokenizer.ggml.pre": "gpt-2",
        **changes,
    }
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=per_part)
    for key, value in keys.items():
        add_key(writer, key, value)
    if keys.get(f"{arch}.rope.scaling.type") == "longrope":
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", factors(heads[2]))
    for name, numbers in (lists or {}).items():
        writer.add_tensor(name, numbers)
    rng = np.random.default_rng(0)
    for name, shape in shapes(len(keys["tokenizer.ggml.tokens"]), arch, heads).items():
        numbers = rng.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, numbers)
            continue
        kind = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(name, quantized(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(numbers: np.ndarray, kind: Any) -> np.ndarray:
    """Stored rows of a matrix; drawn for the K types, which the gguf package only reads."""
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(numbers, kind)
    return blocks(BLOCKS[kind], numbers.size // 256).reshape(len(numbers), -1)


def add_key(writer: Any, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case str():
            writer.add_string(key, value)
        case int():
            writer.add_uint32(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            writer.add_float32(key, float(value))


def factors(head_dim: int) -> np.ndarray:
    """LongRoPE's list."""
    return np.linspace(1, 40, head_dim // 2).astype(np.float32)


def shapes(vocab: int, arch: str, heads: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    queries, keys, head = heads
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (queries * head, HIDDEN),
        "attn_k": (keys * head, HIDDEN),
        "attn_v": (keys * head, HIDDEN),
        "attn_output": (HIDDEN, queries * head),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (WIDE, HIDDEN),
        "ffn_up": (WIDE, HIDDEN),
        "ffn_down": (HIDDEN, WIDE),
    }
    if arch == "qwen3":
        layer |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    whole = {"token_embd.weight": (vocab, HIDDEN), "output_norm.weight": (HIDDEN,)}
    return whole | {
        f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()
    }


def tokenizer_keys(tokenizer: Tokenizer, model: str) -> dict[str, Any]:
    """A tokenizer as llama.cpp's converter writes it; scores are the ranks of merges."""
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: token.special for token in added.values()}
    kinds = [1 if token not in special else 3 if special[token] else 4 for token in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": vocab["<s>"],
        "tokenizer.ggml.eos_token_id": vocab["</s>"],
        "tokenizer.ggml.add_bos_token": False,
    }


def rebuilt(path: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(open_gguf(path).files.object("tokenizer.json")))


def test_rows_of_q_and_k_come_back_in_their_published_order(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", stored="F16")
    weights = open_gguf(path).weights
    stored = GgufFile(path).raw("blk.1.attn_k.weight").view("<f2").astype(np.float32)
    head = HIDDEN // HEADS
    expected = stored.reshape(KV_HEADS, head // 2, 2, HIDDEN).swapaxes(1, 2).reshape(-1, HIDDEN)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert np.array_equal(weights.rows(name), expected)
    assert np.array_equal(weights.rows(name, 5, 9), expected[5:9])
    values = GgufFile(path).raw("blk.1.attn_v.weight").view("<f2")
    assert np.array_equal(weights.rows("model.layers.1.self_attn.v_proj.weight"), values)


def test_qwen3_has_its_rows_in_their_published_order_and_norms_per_head(tmp_path):
    sizes = {"qwen3.attention.key_length": HIDDEN // HEADS, "tokenizer.ggml.pre": "qwen2"}
    path = write_gguf(tmp_path / "m.gguf", "qwen3", "F16", **sizes)
    opened = open_gguf(path)
    assert (opened.config.model_type, opened.config.head_dim) == ("qwen3", HIDDEN // HEADS)
    stored = GgufFile(path).raw("blk.0.attn_q.weight").view("<f2")
    assert np.array_equal(opened.weights.rows("model.layers.0.self_attn.q_proj.weight"), stored)
    norm = GgufFile(path).raw("blk.0.attn_k_norm.weight").view("<f4")[0]
    assert np.array_equal(opened.weights.rows("model.layers.0.self_attn.k_norm.weight"), norm)


def test_minicpm_scalings_are_the_published_decimals(tmp_path):
    scaled: dict[str, Any] = {f"minicpm.{key}": np.float32(value) for key, value in SCALED.items()}
    opened = open_gguf(write_gguf(tmp_path / "m.gguf", "minicpm", **scaled))
    config = opened.config
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12, 1.4, 32)
    assert config.rms_norm_eps == 1e-5 and opened.notes == []
    old = open_gguf(write_gguf(tmp_path / "old.gguf", "minicpm"))
    assert (old.config.scale_emb, old.config.dim_model_base) == (12, 256)
    assert len(old.notes) == 3 and "has no minicpm.logit_scale" in old.notes[2]


def test_a_byte_level_tokenizer_gives_the_same_ids(tmp_path):
    original, tokenizer = byte_level(), rebuilt(write_gguf(tmp_path / "m.gguf"))
    text = "hello  world's 你好 \r\n\t é <think>x</think> 123 <s>"
    assert tokenizer.encode(text).ids == original.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode(text).ids) == original.decode(
        original.encode(text, add_special_tokens=False).ids
    )


def test_a_sentencepiece_tokenizer_gives_the_same_ids(tmp_path):
    original = sentencepiece()
    keys = tokenizer_keys(original, "llama")
    tokens = keys["tokenizer.ggml.tokens"]
    ranks = ["".join(merge.split(" ")) for merge in keys.pop("tokenizer.ggml.merges")]
    kinds = [6 if token.startswith("<0x") else 1 for token in tokens]
    for number, kind in enumerate(keys["tokenizer.ggml.token_type"]):
        kinds[number] = kind if kind != 1 else kinds[number]
    kinds[0] = 2
    keys |= {
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.scores": [
            -float(ranks.index(t)) if t in ranks else -1000.0 - i for i, t in enumerate(tokens)
        ],
    }
    tokenizer = rebuilt(write_gguf(tmp_path / "m.gguf", **keys))
    for text in ("hello world", " hello", "你好 é\n😀", "hell<|im_end|>o"):
        assert tokenizer.encode(text).ids == original.encode(text, add_special_tokens=False).ids
    keys["tokenizer.ggml.scores"] = [-1000.0] * len(tokens)
    with pytest.raises(CheckpointError, match=r"have no scores.*tokenizer\.json"):
        open_gguf(write_gguf(tmp_path / "flat.gguf", **keys))


def test_merges_of_scored_pieces_are_those_of_the_notes():
    pieces = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc"]
    scores = np.array([0, 0, 0, -4, -5, -6, 0, -1, -2], np.float32)
    expected = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    assert merges_of(pieces, scores) == expected


def test_the_scheme_follows_the_file_unless_another_is_asked_for(tmp_path):
    for stored, scheme in {"Q4_0": "w4", "Q4_1": "w4a", "Q8_0": "w8", "F16": "w4a"}.items():
        path = write_gguf(tmp_path / f"tiny-{stored}.gguf", stored=stored)
        result = compile_model(path, dry_run=True)
        assert (result.out, result.notes) == (f"tiny-{scheme}-cpu", [])
        assert bool(result.offer) == (stored == "F16")  # only floats are rounded here
    [note] = compile_model(path.with_name("tiny-Q8_0.gguf"), scheme="w4", dry_run=True).notes
    assert "14 tensors of Q8_0 are quantised again, to w4: relative error" in note
    assert find_gguf(tmp_path / "none") is None
    with pytest.raises(CheckpointError, match="several GGUF files"):
        find_gguf(tmp_path)
    assert describe(str(path))["kind"] == "GGUF file"


@pytest.mark.parametrize(("stored", "name"), [("Q4_K", "w4k"), ("Q5_K", "w5k"), ("Q6_K", "w6")])
def test_k_quants_are_carried_as_they_are(tmp_path, monkeypatch, stored, name):
    monkeypatch.setattr("test_gguf.HIDDEN", 256)
    monkeypatch.setattr("test_gguf.WIDE", 512)
    path = write_gguf(tmp_path / "tiny.gguf", stored=stored, heads=(4, 2, 64))
    result = compile_model(path, dry_run=True)
    assert result.out == f"tiny-{name}-cpu" and result.notes == []
    weights, scheme = open_gguf(path).weights, SCHEMES[name]
    for tensor in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        parts = weights.carried(tensor, scheme, 16, 48)
        assert parts is not None
        assert np.array_equal(scheme.dequantize(parts), weights.rows(tensor, 16, 48))
        assert weights.carried(tensor, SCHEMES["w4"], 16, 48) is None
    [note] = compile_model(path, scheme="w8", dry_run=True).notes
    assert f"tensors of {stored} are quantised again, to w8" in note


def test_any_part_of_a_split_file_stands_for_all(tmp_path):
    whole = open_gguf(write_gguf(tmp_path / "tiny-Q8_0.gguf"))
    (tmp_path / "parts").mkdir()
    write_gguf(tmp_path / "parts" / "tiny-Q8_0.gguf", per_part=9)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == [f"tiny-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert find_gguf(tmp_path / "parts") == parts[0]
    for path in parts:
        opened = open_gguf(path)
        assert opened.config == whole.config and opened.config.name == "tiny"
        for name in whole.weights.names():
            assert np.array_equal(opened.weights.rows(name), whole.weights.rows(name))


def test_parts_that_are_not_one_file_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "m.gguf", per_part=9)
    first, second, third = sorted(tmp_path.iterdir())
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf: is part 3 of 3, expected"):
        open_gguf(first)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"2 of the 3 parts of .*, and not m-00002-of-00003"):
        open_gguf(third)
    second.write_bytes(kept)
    write_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="several GGUF files"):
        find_gguf(tmp_path)
    with pytest.raises(CheckpointError, match="is one part of a split file, part 1 of 3"):
        open_gguf(first.rename(tmp_path / "renamed.gguf"))


def test_a_file_has_the_sparse_config_that_is_given_or_the_published_one(tmp_path):
    sizes = {"minicpm.attention.head_count": 32, "minicpm.attention.head_count_kv": 2}
    keys = {**sizes, "minicpm.attention.key_length": 128, "minicpm.context_length": 16384}
    path = write_gguf(tmp_path / "m.gguf", "minicpm", heads=(32, 2, 128), **keys)
    [*_, note] = compile_model(path, dry_run=True).notes
    assert "has no sparse_config: the published settings are used" in note
    given = tmp_path / "sparse.json"
    given.write_text('{"sparse_config": {"topk": 8, "dense_len": 1024}}')
    config = open_gguf(path, json.loads(given.read_text())["sparse_config"]).config
    assert config.sparse == SparseConfig(topk=8, dense_len=1024)
    notes = compile_model(path, dry_run=True, sparse_config=given).notes
    assert not any("sparse_config" in note for note in notes)
    with pytest.raises(ConfigError, match=r"sparse_config = .* is not implemented"):
        compile_model(write_gguf(tmp_path / "l.gguf"), dry_run=True, sparse_config=given)
    with pytest.raises(ConfigError, match=r"--sparse-config .*: there is no such file"):
        compile_model(path, dry_run=True, sparse_config=tmp_path / "none")


REFUSED = {
    "general.architecture": {"arch": "gemma"},
    "tokenizer.ggml.pre is 'other'": {"tokenizer.ggml.pre": "other"},
    "is one part of a split file": {"split.count": 2},
    "split.count is 'two', expected a whole number": {"split.count": "two"},
    "llama.expert_count is 4": {"llama.expert_count": 4},
    "rope.scaling.type is 'dynamic'": {"llama.rope.scaling.type": "dynamic"},
    "rope.scaling.attn_factor is 1.5, expected 1": {"llama.rope.scaling.attn_factor": 1.5},
    "yarn_log_multiplier is 1.0": {"llama.rope.scaling.yarn_log_multiplier": 1.0},
    "rope.scaling.factor is -2": {"llama.rope.scaling.factor": -2.0},
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_other_models_are_refused_by_name(tmp_path, wrong):
    path = write_gguf(tmp_path / "m.gguf", **REFUSED[wrong])
    with pytest.raises((CheckpointError, ConfigError), match=wrong):
        open_gguf(path)


def put(form: str, at: int, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(form, data, at, value)


def header(*tensor: int) -> bytes:
    """A file with one tensor "t" of these rank, sizes, type and offset, and no keys."""
    rank, *sizes, kind, offset = tensor
    head = struct.pack(f"<IQQQ1sI{len(sizes)}QIQ", 3, 1, 0, 1, b"t", rank, *sizes, kind, offset)
    return b"GGUF" + head + bytes(128)


DAMAGED = {
    "expected b'GGUF'": b"PK\3\4" + bytes(60),
    "version 1,": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "counts 18,446": b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0) + bytes(64),
    "has 9 sizes": header(9, 1, 0, 0),
    "expected rows of whole Q4_0": header(1, 33, 2, 0),
    "sizes \\[9223372036854775808": header(2, 1 << 63, 2, 0, 0),
    "stored as IQ2_XS": header(1, 256, 17, 0),
    "no multiple of 32": header(1, 8, 0, 4),
    "is cut off: it has": header(2, 1 << 40, 1 << 40, 0, 0),
    "is cut off: the version": b"GGUF",
}


@pytest.mark.parametrize("wrong", DAMAGED)
def test_damaged_files_are_refused(tmp_path, wrong):
    path = tmp_path / "m.gguf"
    path.write_bytes(DAMAGED[wrong])
    with pytest.raises(CheckpointError, match=wrong):
        GgufFile(path)


def test_any_cut_and_any_changed_byte_is_an_error_or_a_whole_file(tmp_path):
    scaled: dict[str, Any] = {f"minicpm.{key}": np.float32(v) for key, v in SCALED.items()}
    whole = write_gguf(tmp_path / "m.gguf", "minicpm", **scaled).read_bytes()
    path, rng = tmp_path / "damaged.gguf", np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(0, 9000)] if rng.random() < 0.2 else whole)
        for at in rng.integers(0, max(1, min(len(data), 2000)), 2):
            data[at : at + 1] = rng.bytes(1)
        path.write_bytes(data)
        try:
            open_gguf(path).files.check()
        except MiniCPMError as error:
            assert str(path) in str(error) or "config.json" in str(error)


def test_integers_of_the_file_are_not_rounded_again_by_calibration(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", stored="Q4_0")
    with pytest.raises(CompileError, match="would round again what the file has quantised"):
        compile_model(path, calibrate=[], dry_run=True)


@pytest.mark.parametrize(
    ("within", "name"),
    [("Mini CPM 4/1", "Mini-CPM-4-1"), ("../..", "sha256-4d7a"), (None, "sha256-4d7a")],
)
def test_a_file_that_is_named_by_its_hash_has_the_name_within(
    tmp_path: Path, within: str | None, name: str
) -> None:
    """ollama keeps models so. A name can't lead out of a folder."""
    path = write_gguf(tmp_path / "sha256-4d7a", **{"general.name": within})
    assert open_gguf(path).config.name == name
