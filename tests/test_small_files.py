"""The small files of a checkpoint: read alike by compile and the engine, and refused before any
weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import CHAT_TEMPLATE, tiny_config, write_checkpoint
from fake_library import manifest as fake_manifest

from minicpm_mlc.base.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    MiniCPMError,
    TemplateError,
)
from minicpm_mlc.bundle.manifest import Manifest
from minicpm_mlc.bundle.small_files import SmallFiles
from minicpm_mlc.compile import CompileResult, compile_model
from minicpm_mlc.compile import source as source_module
from minicpm_mlc.compile.companions import add_companions, open_companions
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.prompt.sampling import default_sampling
from minicpm_mlc.prompt.template import ChatTemplate
from minicpm_mlc.prompt.tokenizer import Tokenizer

VOCAB = 323
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", tiny_config("MiniCPM5-1B", num_layers=1))
    return tmp_path / "model"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a weight file is opened."""

    def opened(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(source_module, "open_checkpoint", opened)


def change(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; ... takes one away."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: v for key, v in values.items() if v is not ...}))


def plan(model: Path) -> CompileResult:
    """compile up to where it would write."""
    return compile_model(model, model.with_name("out"), dry_run=True)


def end_tokens(model: Path) -> list[int]:
    """Those of the manifest that compile would write."""
    made: list[Manifest] = []
    result = CompileResult.of

    def keep(path: Path, written: bool, manifest: Manifest, *args: Any) -> CompileResult:
        made.append(manifest)
        return result(path, written, manifest, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompileResult, "of", keep)
        plan(model)
    return made[0].model["eos_token_ids"]


# ---- what is read


SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", SMALL)
def test_case_20_a_byte_order_mark_is_no_part_of_a_file(model: Path, name: str) -> None:
    content = (model / name).read_bytes()
    (model / name).write_bytes(BOM + content)
    assert plan(model).notes == []
    files = open_companions(model)
    assert files.content(name) == content  # and so is the bundle's copy
    assert Tokenizer.from_folder(model, 1, VOCAB).encode("a") == [1, *[i for i in [259, 260]]]
    assert ChatTemplate.from_folder(model).source == CHAT_TEMPLATE


def test_case_20_a_template_file_with_a_byte_order_mark_writes_none(model: Path) -> None:
    (model / "chat_template.jinja").write_bytes(BOM + b"{{ messages[0].content }}")
    template = ChatTemplate.from_folder(model)
    assert template.render([{"role": "user", "content": "hi"}]) == "hi"


def test_what_is_copied_is_what_was_read(model: Path) -> None:
    files = open_companions(model)
    files.check()
    before = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").write_text("changed while the library is compiled")
    with BundleWriter(model.with_name("out")) as bundle:
        model_config = tiny_config("MiniCPM5-1B").to_dict()
        add_companions(bundle, files, fake_manifest(model=model_config))
        assert (bundle._folder / "tokenizer.json").read_bytes() == before


# ---- refused before any weight


TEMPLATES: dict[str, Callable[[Path, str], None]] = {
    "file": lambda model, text: (model / "chat_template.jinja").write_text(text) and None,
    "config": lambda model, text: change(model / "tokenizer_config.json", chat_template=text),
    "list": lambda model, text: change(
        model / "tokenizer_config.json", chat_template=[{"name": "default", "template": text}]
    ),
}


@pytest.mark.parametrize("place", TEMPLATES)
def test_case_23_a_template_that_does_not_parse_is_refused_with_its_line(
    model: Path, no_weights: None, place: str
) -> None:
    TEMPLATES[place](model, "\n{% for m in messages %}{{ m.content }}")
    with pytest.raises(TemplateError, match="line 2: Unexpected end of template"):
        plan(model)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n"
DAMAGED = {
    "cut off": (b'{"a": ', "is not JSON"),
    "empty": (b"", "is not JSON"),
    "no object": (b"[1]", "holds list, expected an object"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON.*utf-8"),
    "UTF-16": ("{}".encode("utf-16"), "is not JSON"),
    "nested": (b"[" * 100_000, "is not JSON"),
    "huge": (b"[" * (1 << 21), "is not JSON .it has more than 1,048,576 objects and lists"),
    "twice": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "git lfs": (LFS, "is a Git LFS pointer, not the file; fetch it: git lfs pull"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", [*SMALL, "special_tokens_map.json", "added_tokens.json"])
def test_case_63_damaged_small_files_are_refused_before_any_weight(
    model: Path, no_weights: None, name: str, damage: str
) -> None:
    content, message = DAMAGED[damage]
    (model / name).write_bytes(content)
    error = ConfigError if name == "config.json" else CheckpointError
    if (name, damage) == ("config.json", "no object"):
        message = "must be a JSON object"
    with pytest.raises(error, match=f"{name} .*{message}"):
        plan(model)


def test_a_name_that_occurs_twice_is_found_among_many(model: Path, no_weights: None) -> None:
    many = ",".join(f'"{i}":0' for i in range(200_000))
    (model / "added_tokens.json").write_text(f'{{{many},"7":0}}')
    with pytest.raises(CheckpointError, match="'7' occurs twice"):
        plan(model)


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja"])
def test_case_63_a_git_lfs_pointer_is_told_as_one(model: Path, no_weights: None, name: str) -> None:
    (model / name).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer"):
        plan(model)


def test_case_63_a_template_that_is_not_text_is_refused(model: Path, no_weights: None) -> None:
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text"):
        plan(model)


def test_a_folder_in_the_place_of_a_file_is_refused(model: Path, no_weights: None) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a file"):
        plan(model)


TOKENIZERS = {
    "no model": ({"model": ...}, "it has no model"),
    "vocab": ({"model": {"vocab": {"a": "b"}}}, "vocab doesn't map texts to token ids"),
    "added": ({"added_tokens": [{"id": "3"}]}, "the added token .* has no id and content"),
    "for the library": ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "can't be read"),
}


@pytest.mark.parametrize("damage", TOKENIZERS)
def test_case_63_a_tokenizer_that_is_none_is_refused(
    model: Path, no_weights: None, damage: str
) -> None:
    changes, message = TOKENIZERS[damage]
    change(model / "tokenizer.json", **changes)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{message}"):
        plan(model)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, no_weights: None) -> None:
    write_checkpoint(tmp_path / "m", tiny_config("MiniCPM5-1B", num_layers=1))
    change(tmp_path / "m" / "config.json", vocab_size=300, eos_token_id=2)
    with pytest.raises(CheckpointError, match="token id 320, but the model has 300 tokens"):
        plan(tmp_path / "m")


# ---- what a bundle can't do is said at once


def test_case_59_a_checkpoint_without_a_tokenizer_says_so(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    said: list[str] = []
    result = compile_model(model, model.with_name("out"), dry_run=True, say=said.append)
    assert said == result.notes and len(said) == 1
    assert (
        "has no tokenizer.json: the bundle will generate from token ids, but not chat; " in said[0]
    )
    assert "copy tokenizer.json and tokenizer_config.json from the base model" in said[0]
    assert f"note: {said[0]}" in result.plain() and json.loads(result.json())["notes"] == said


def test_case_59_a_tokenizer_model_alone_is_no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    assert "no tokenizer.json (tokenizer.model is not read): " in plan(model).notes[0]


def test_a_model_without_a_template_and_without_chatml_says_that_it_will_not_chat(
    model: Path,
) -> None:
    change(model / "tokenizer_config.json", chat_template=...)
    assert plan(model).notes == []  # its tokenizer has ChatML's tokens
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace("<|im_start|>", "[INST]"))
    assert "has no chat template, and its tokenizer has no ChatML tokens" in plan(model).notes[0]


def add_token(model: Path, token: str, number: int) -> None:
    values = json.loads((model / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"].append({"id": number, "content": token, "special": True} | flags)
    (model / "tokenizer.json").write_text(json.dumps(values))


def test_case_58_an_added_token_beyond_the_vocabulary_is_refused_only_in_a_text(
    model: Path,
) -> None:
    add_token(model, "<pad>", VOCAB)
    assert plan(model).notes == [
        "the added token '<pad>' has id 323, and the model has 323 tokens: a text that holds it "
        "will be refused"
    ]
    tokenizer = Tokenizer.from_folder(model, 1, VOCAB)
    assert max(tokenizer.encode("a harmless text")) < VOCAB
    assert VOCAB in tokenizer.encode("<pad>")  # the engine refuses such an id


def test_case_58_a_template_that_writes_such_a_token_is_refused(
    model: Path, no_weights: None
) -> None:
    add_token(model, "<turn>", VOCAB)
    change(model / "tokenizer_config.json", chat_template="<turn>{{ messages[0].content }}")
    message = r"the chat template writes its token '<turn>', of id 323; the model has 323 tokens"
    with pytest.raises(CheckpointError, match=message):
        plan(model)


# ---- end tokens


def test_case_41_the_tokenizers_eos_token_ends_an_answer(model: Path) -> None:
    change(model / "config.json", eos_token_id=2)
    (model / "generation_config.json").write_text('{"do_sample": false}')
    assert end_tokens(model) == [2, 321]  # </s>, and <|im_end|> of tokenizer_config.json


@pytest.mark.parametrize(
    "eos, ids",
    [({"content": "<|im_end|>"}, [2, 321]), (None, [2]), ("<not there>", [2]), ("a", [2, 260])],
)
def test_case_41_whatever_form_the_eos_token_has(model: Path, eos: object, ids: list) -> None:
    change(model / "config.json", eos_token_id=2)
    change(model / "tokenizer_config.json", eos_token=eos)
    assert end_tokens(model) == ids


def test_case_41_end_tokens_of_all_three_files_are_joined(model: Path) -> None:
    change(model / "config.json", eos_token_id=[2])
    change(model / "generation_config.json", eos_token_id=[7, 2])
    assert end_tokens(model) == [2, 7, 321]


def test_case_41_an_eos_token_that_is_no_text_is_refused(model: Path, no_weights: None) -> None:
    change(model / "tokenizer_config.json", eos_token=3)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: eos_token is 3"):
        plan(model)


def test_case_44_null_is_no_token(model: Path) -> None:
    change(model / "config.json", bos_token_id=None, eos_token_id=None)
    change(model / "generation_config.json", eos_token_id=5)
    change(model / "tokenizer_config.json", eos_token=None)
    assert end_tokens(model) == [5]
    files = SmallFiles(model)
    assert Tokenizer.from_files(files, None, VOCAB).encode("a")[0] != 1


def test_case_44_a_model_without_any_end_token_is_refused(model: Path, no_weights: None) -> None:
    change(model / "config.json", eos_token_id=None)
    change(model / "tokenizer_config.json", eos_token=...)
    with pytest.raises(ConfigError, match="an answer would never end; add eos_token_id to gen"):
        plan(model)


WRONG_EOS = [[[2]], 1.5, "2", "", {}, -1, [None], [True], True, [2, "3"], 10**30]


@pytest.mark.parametrize("eos", WRONG_EOS, ids=repr)
def test_rob_23_an_end_token_of_another_kind_is_refused_by_file_and_key(
    model: Path, no_weights: None, eos: object
) -> None:
    change(model / "generation_config.json", eos_token_id=eos)
    message = r"generation_config\.json: eos_token_id (is|1000)"
    with pytest.raises(CheckpointError, match=message):
        plan(model)
    if eos != 10**30:  # the engine's ids are checked against its vocabulary when they come
        with pytest.raises(BundleError, match=message):
            _ = SmallFiles(model).generation


# ---- sampling


def sampling(model: Path, **values: Any) -> dict[str, Any]:
    (model / "generation_config.json").write_text(json.dumps(values))
    plan(model)
    return vars(default_sampling(SmallFiles(model)))


def test_case_61_sampling_is_read_as_it_is_meant(model: Path) -> None:
    given = sampling(model, do_sample=True, temperature=0.7, top_k=-1)
    assert (given["temperature"], given["top_k"]) == (0.7, 0)
    assert sampling(model, do_sample=True, temperature=0.7, top_k=50.0)["top_k"] == 50
    assert sampling(model, top_k=None, temperature=None)["temperature"] == 0.6


def test_case_61_a_greedy_model_reads_no_sampling_values(model: Path) -> None:
    given = sampling(model, do_sample=False, temperature=-3, top_k="x", top_p=7, min_p=[])
    assert (given["temperature"], given["top_k"], given["top_p"]) == (0.0, 0, 0.95)
    assert sampling(model, do_sample=False, repetition_penalty=1.1)["repetition_penalty"] == 1.1


WRONG_SAMPLING: list[dict[str, Any]] = [
    {"top_k": -2},
    {"top_k": 1.5},
    {"top_k": 1e400},
    {"top_k": True},
    {"temperature": "0.7"},
    {"temperature": float("nan")},
    {"top_p": [0.9]},
    {"top_p": 2},
    {"repetition_penalty": -1},
    {"do_sample": 1},
    {"do_sample": "false"},
]


@pytest.mark.parametrize("values", WRONG_SAMPLING, ids=repr)
def test_case_61_other_values_are_refused_by_file_and_key(
    model: Path, no_weights: None, values: dict[str, Any]
) -> None:
    (model / "generation_config.json").write_text(json.dumps(values))
    message = rf"generation_config\.json: {next(iter(values))} is "
    with pytest.raises(CheckpointError, match=message):
        plan(model)
    with pytest.raises(BundleError, match=message):
        default_sampling(SmallFiles(model))


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_rob_23_the_engine_refuses_a_damaged_file_as_compile_does(
    model: Path, content: bytes
) -> None:
    (model / "generation_config.json").write_bytes(content)
    with pytest.raises(MiniCPMError, match=r"generation_config\.json"):
        default_sampling(SmallFiles(model))
