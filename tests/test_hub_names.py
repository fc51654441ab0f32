"""Names of models, and which files of a repository they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm_mlc.base.errors import HubError
from minicpm_mlc.hub.listing import RemoteFile
from minicpm_mlc.hub.names import Name, parse_name
from minicpm_mlc.hub.needed import needed_files

SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
NOT_READ = ["README.md", "modeling_minicpm.py", ".gitattributes", "original/consolidated.pth"]


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 10) for path in paths]


def taken(*paths: str, choice: str | None = None) -> tuple[list[str], str]:
    needed = needed_files(files(*paths), choice, "org/name")
    assert needed.bytes == 10 * len(needed.files)
    return sorted(file.path for file in needed.files), needed.main


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("openbmb/MiniCPM4.1-8B", Name("hf", "openbmb/MiniCPM4.1-8B")),
        ("hf:openbmb/MiniCPM4.1-8B", Name("hf", "openbmb/MiniCPM4.1-8B")),
        ("modelscope:OpenBMB/MiniCPM4-8B", Name("modelscope", "OpenBMB/MiniCPM4-8B")),
        ("a/b-GGUF:Q4_K_M", Name("hf", "a/b-GGUF", None, "Q4_K_M")),
        ("a/b@v1.0:sub/x.gguf", Name("hf", "a/b", "v1.0", "sub/x.gguf")),
    ],
)
def test_names_of_repositories(source: str, name: Name) -> None:
    assert parse_name(source) == name
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "source", ["MiniCPM4.1-8B", "./a/b", "/a/b", "a/b/c", "~/a", "a\\b", "../b", "a/b?x", "a/b\n"]
)
def test_what_is_no_name(source: str) -> None:
    assert parse_name(source) is None


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_name("openbmb/tiny") is not None
    (tmp_path / "openbmb" / "tiny").mkdir(parents=True)
    assert parse_name("openbmb/tiny") is None


def test_a_hub_without_a_repository_is_refused() -> None:
    with pytest.raises(HubError, match=r"'hf:openbmb' is no name; give .*modelscope:OpenBMB/Mini"):
        parse_name("hf:openbmb")


def test_a_checkpoint_is_its_config_its_tokenizer_and_one_form_of_weights() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    others = ["pytorch_model.bin", "MiniCPM-Q4_K_M.gguf", "consolidated.safetensors", *NOT_READ]
    assert taken(*SMALL, index, *shards, *others) == (sorted([*SMALL, index, *shards]), "")
    # MLX has both; MiniCPM5-2B a single file that is numbered
    assert taken("config.json", index, "model.safetensors")[0] == [
        "config.json",
        "model.safetensors",
        index,
    ]
    one = "model-00000-of-00001.safetensors"
    assert taken("config.json", index, one)[0] == sorted(["config.json", index, one])
    assert taken("config.json", "model_gptq.safetensors")[0][1] == "model_gptq.safetensors"
    assert taken("config.json", "pytorch_model.bin", "training_args.bin")[0][1:] == [
        "pytorch_model.bin"
    ]
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert taken(*adapter, "optimizer.pt", "README.md")[0] == adapter


def test_weights_in_a_folder_of_the_repository() -> None:
    head = [f"MiniCPM4_1-8B-Eagle3-bf16/{name}" for name in ("config.json", "model.safetensors")]
    assert taken("README.md", *head) == (head, "MiniCPM4_1-8B-Eagle3-bf16")


def test_several_forms_need_a_choice() -> None:
    paths = ["config.json", "model_gptq.safetensors", "model_gptq_marlin.safetensors"]
    with pytest.raises(HubError, match=r"several forms; give one as org/name:FILE: model_gptq.saf"):
        taken(*paths)
    assert taken(*paths, choice="model_gptq.safetensors") == (paths[:2], "")


def test_a_gguf_repository_gives_one_file() -> None:
    paths = [f"MiniCPM4.1-8B-{name}.gguf" for name in ("F16", "Q4_K_M", "Q5_K_M", "Q8_0")]
    assert taken(*paths, "README.md", "config.json", "mmproj-F16.gguf") == (
        [paths[1]],
        paths[1],
    )
    assert taken(*paths, choice="q8_0")[1] == paths[3]
    assert taken(*paths, choice=paths[0])[1] == paths[0]
    assert taken("bitcpm-tq2_0.gguf")[1] == "bitcpm-tq2_0.gguf"
    with pytest.raises(HubError, match=r"there is no Q3_K_S; there are MiniCPM4\.1-8B-F16\.gguf"):
        taken(*paths, choice="Q3_K_S")
    with pytest.raises(HubError, match=r"several models; give one as org/name:FILE: a-Q6_K\.gguf"):
        taken("a-Q6_K.gguf", "b-Q5_0.gguf")


def test_split_and_unsloth_gguf_files() -> None:
    parts = [f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert taken(*parts, "m-UD-Q4_K_XL.gguf", choice="Q8_0") == (parts, parts[0])
    assert taken("m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", choice="Q4_K_M")[1] == "m-Q4_K_M.gguf"
    assert taken("m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", choice="UD-Q4_K_M")[1] == "m-UD-Q4_K_M.gguf"


def test_a_part_of_a_split_model_that_is_missing_is_told() -> None:
    with pytest.raises(HubError, match=r"has 1 of the 2 files of model-00002-of-00002\.safetens"):
        taken("config.json", "model-00002-of-00002.safetensors")
    with pytest.raises(HubError, match=r"has 2 of the 3 files of m-Q8_0-00001-of-00003\.gguf"):
        taken(*(f"m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 3)), choice="Q8_0")


def test_a_repository_without_weights_says_what_it_holds() -> None:
    with pytest.raises(HubError, match=r"no weights that are read .* but README.md, model.onnx"):
        taken("README.md", "model.onnx")


def test_paths_that_lead_out_of_the_folder_are_left_out() -> None:
    with pytest.raises(HubError, match="but nothing"):
        taken("../config.json", "/model.safetensors", "a/../../b.gguf", "..\\c.gguf")
