"""The bundle on disk: whole or not there at all, and refused with a sentence where it can't run."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.base.partial import hold
from minicpm_mlc.bundle.host import Host, missing_features, this_host
from minicpm_mlc.bundle.manifest import Bundle, Manifest, read_bundle
from minicpm_mlc.bundle.params import load_params
from minicpm_mlc.bundle.state import StateEntry
from minicpm_mlc.compile import writer as bundle_module
from minicpm_mlc.compile.mlc_chat_config import mlc_chat_config, tokenizer_info
from minicpm_mlc.compile.writer import BundleFile, BundleWriter

HOST = Host("linux", "x86_64", frozenset({"avx2", "fma"}))
TARGET = {
    "device": "cpu",
    "triple": "x86_64-linux-gnu",
    "cpu": "x86-64-v3",
    "features": ["avx2", "fma", "fast-gather"],
}
MANIFEST = Manifest(
    name="tiny",
    scheme="w4",
    embedding_scheme="w4",
    target=TARGET,
    model={
        "model_type": "minicpm4",
        "num_layers": 2,
        "vocab_size": 100,
        "bos_token_id": 1,
        "eos_token_ids": [2, 90],
        "rope_factors": [1.0],
        "tie_word_embeddings": True,
        "sparse": None,
    },
    kv_dtype="float16",
    state=[
        StateEntry("keys", (0, 1), (2, 64, 64), "float16"),
        StateEntry("values", (0, 1), (2, 64, 64), "float16"),
    ],
    max_context=4096,
    prefill_chunk=512,
    params=["a.weight"],
    memory={"weights": 1000, "kv_per_token": 10, "activations": 500},
    tvm="1.2.3",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write(path, manifest=MANIFEST, content=b"library", **options):
    with BundleWriter(path, **options) as bundle:
        bundle.add_file("model.so", content)
        bundle.add_json("tensor-cache.json", {"records": []})
        bundle.finish(manifest)
    return path


def read(path, **options) -> Bundle:
    return read_bundle(path, **{"host": HOST, "tvm": "1.2.3", **options})


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def flip_byte(path):
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return stat


# ---- written whole or not at all


def test_what_is_written_is_read_back(place):
    bundle = read(write(place / "b"))
    assert dataclasses.replace(bundle.manifest, files={}) == MANIFEST
    assert names(place / "b") == ["manifest.json", "model.so", "tensor-cache.json"]
    assert bundle.manifest.files["model.so"]["bytes"] == 7
    assert names(place) == ["b"]


def test_same_input_gives_the_same_bytes(place):
    for name in names(write(place / "a")):
        assert (place / "a" / name).read_bytes() == (write(place / name) / name).read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_nothing(place, failure):
    with pytest.raises(failure), BundleWriter(place / "b") as bundle:
        bundle.add_file("model.so", b"library")
        bundle.create("params_shard_0.bin").write(b"half")
        raise failure
    assert names(place) == []


def test_leaving_without_finish_leaves_nothing(place):
    with BundleWriter(place / "b") as bundle:
        bundle.add_file("model.so", b"library")
    assert names(place) == []


def test_a_file_that_was_not_closed_is_refused(place):
    with pytest.raises(CompileError, match=r"params_shard_0\.bin was not written to its end"):
        with BundleWriter(place / "b") as bundle:
            bundle.create("params_shard_0.bin").write(b"half")
            bundle.finish(MANIFEST)
    assert names(place) == []


@pytest.mark.parametrize("step", ["write", "close"])
def test_a_full_disk_is_told_with_the_bytes_needed_and_leaves_nothing(place, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CompileError, match="is full after 7 of 5,000 bytes; free some space"):
        with BundleWriter(place / "b", need_bytes=5000) as bundle:
            bundle.add_file("model.so", b"library")
            monkeypatch.setattr(BundleFile, step, full)
            bundle.add_file("config.json", b"")
    assert names(place) == []


def test_a_library_is_not_begun_on_a_disk_that_may_not_hold_its_objects(place, monkeypatch):
    usage = shutil.disk_usage(place)._replace(free=32 << 20)
    with pytest.raises(CompileError, match="is full after 7 bytes; free some space"):
        with BundleWriter(place / "b") as bundle:
            bundle.add_file("config.json", b"content")
            monkeypatch.setattr(bundle_module.shutil, "disk_usage", lambda _: usage)
            with bundle.scratch():
                pytest.fail("LLVM would end the process")
    assert names(place) == []


def test_too_little_space_is_refused_before_anything_is_written(place, monkeypatch):
    monkeypatch.setattr(
        bundle_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10_000, 5_000, 5_000)
    )
    with pytest.raises(CompileError, match=r"needs 6,000 bytes and the disk of .* has 5,000 free"):
        write(place / "b", need_bytes=6000)
    assert names(place) == []


def test_a_missing_parent_folder_is_refused(place):
    with pytest.raises(CompileError, match="doesn't exist: mkdir -p"):
        write(place / "missing" / "b")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", "..", "manifest.json", "model.so"])
def test_a_file_name_that_leaves_the_folder_or_is_taken_is_refused(place, name):
    with (
        pytest.raises(CompileError, match="can't be the name"),
        BundleWriter(place / "b") as bundle,
    ):
        bundle.add_file("model.so", b"library")
        bundle.add_file(name, b"")


# ---- replacing


def test_a_bundle_is_replaced_only_when_asked(place):
    write(place / "b")
    with pytest.raises(CompileError, match="exists already: replace it with --force"):
        write(place / "b", content=b"other")
    assert (place / "b/model.so").read_bytes() == b"library"
    write(place / "b", content=b"other", overwrite=True)
    assert (place / "b/model.so").read_bytes() == b"other"
    assert names(place) == ["b"]


def test_the_old_bundle_stays_when_its_replacement_fails(place):
    write(place / "b")
    with pytest.raises(RuntimeError), BundleWriter(place / "b", overwrite=True) as bundle:
        bundle.add_file("model.so", b"other")
        raise RuntimeError
    assert read(place / "b").manifest.files["model.so"]["bytes"] == 7
    assert names(place) == ["b"]


def test_the_old_bundle_returns_when_the_last_rename_fails(place, monkeypatch):
    write(place / "b")
    rename = bundle_module.Path.rename

    def fail_on_partial(path, target):
        if ".partial-" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(bundle_module.Path, "rename", fail_on_partial)
    with pytest.raises(OSError):
        write(place / "b", content=b"other", overwrite=True)
    assert (place / "b/model.so").read_bytes() == b"library"
    assert names(place) == ["b"]


def test_a_folder_with_anything_else_in_it_is_never_replaced(place):
    (write(place / "b") / "thesis.txt").write_text("mine")
    (place / "folder").mkdir()
    (place / "folder" / "thesis.txt").write_text("mine")
    (place / "file").write_text("mine")
    for name in ("b", "folder", "file"):
        with pytest.raises(CompileError, match="isn't a bundle, or holds other files too"):
            write(place / name, overwrite=True)
    assert (place / "b/thesis.txt").read_text() == "mine"


def test_a_bundle_of_an_earlier_version_is_replaced(place):
    manifest = write(place / "b") / "manifest.json"
    fields = json.loads(manifest.read_bytes())
    fields |= {"abi": fields["abi"] - 1, "kv_layout": fields.pop("state")}
    manifest.write_text(json.dumps(fields))
    read(write(place / "b", overwrite=True))


def test_an_empty_folder_may_become_the_bundle(place):
    (place / "b").mkdir()
    read(write(place / "b"))


def test_leftovers_of_dead_runs_are_removed_and_those_of_living_ones_kept(place):
    for pid in (111, 222):
        (place / f".b.partial-{pid}").mkdir()
    living = hold(place / ".b.partial-222")
    write(place / "b")
    assert names(place) == [".b.partial-222", "b"]
    living.close()
    write(place / "b", overwrite=True)
    assert names(place) == ["b"]


# ---- refused with a sentence


def test_folders_that_are_not_bundles_are_refused_with_the_next_command(place):
    (place / "checkpoint").mkdir()
    (place / "checkpoint/config.json").write_text("{}")
    (place / "checkpoint/model.safetensors").write_text("")
    (place / "file").write_text("")
    with pytest.raises(BundleError, match=r"is a checkpoint, .*: minicpm-mlc compile .*checkpoint"):
        read(place / "checkpoint")
    with pytest.raises(
        BundleError,
        match=r"has no manifest\.json, so it isn't a bundle; make one: minicpm-mlc compile",
    ):
        read(place)
    with pytest.raises(BundleError, match="is not there"):
        read(place / "missing")
    with pytest.raises(BundleError, match="is a file"):
        read(place / "file")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"activations": "int8"}, "weight_layout"),
        ({"weight_layout": "rows8"}, "weight_layout"),
        ({"activations": "int4"}, "activations"),
    ],
)
def test_a_layout_that_the_activations_do_not_go_with_is_refused(place, change, field):
    write(place / "b", dataclasses.replace(MANIFEST, **change))
    with pytest.raises(BundleError, match=f"damaged at '{field}'"):
        read(place / "b")


@pytest.mark.parametrize("change", [{"format": 2}, {"abi": 1}])
def test_another_format_or_abi_is_refused(place, change):
    write(place / "b", dataclasses.replace(MANIFEST, **change))
    with pytest.raises(
        BundleError, match="this minicpm-mlc reads format 1 and ABI 7; compile it again"
    ):
        read(place / "b")


def test_another_tvm_is_refused(place):
    with pytest.raises(
        BundleError, match=r"compiled with apache-tvm 1\.2\.3, and 0\.9 is installed"
    ):
        read(write(place / "b"), tvm="0.9")


def test_the_installed_tvm_is_what_counts_by_default(place):
    with pytest.raises(BundleError, match="is installed"):
        read_bundle(write(place / "b"), host=HOST)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"device": "webgpu"}, "compiled for device webgpu"),
        (
            {"triple": "aarch64-unknown-linux-gnu"},
            "compiled for aarch64 linux, and this machine is x86_64 linux",
        ),
        ({"triple": "x86_64-apple-darwin23"}, "compiled for x86_64 darwin"),
        ({"triple": "aarch64-linux-android24"}, "compiled for aarch64 android"),
        (
            {"cpu": "znver4", "features": ["avx2", "avx512vnni", "avx512bf16"]},
            "CPU lacks avx512bf16, avx512vnni",
        ),
    ],
)
def test_another_device_or_cpu_is_refused(place, target, why):
    write(place / "b", dataclasses.replace(MANIFEST, target={**TARGET, **target}))
    with pytest.raises(BundleError, match=f"can't run here: .*{why}.*minicpm-mlc compile"):
        read(place / "b")


@pytest.mark.parametrize(
    ("there", "device", "options"),
    [
        (this_host(), "metal", "--device cpu --cpu native"),
        (this_host(), "vulkan", "--device vulkan --cpu native"),
        (Host("linux", "x86_64", frozenset({"avx2"})), "cpu", "--device cpu --cpu x86-64-v3"),
        (Host("linux", "x86_64", frozenset()), "opencl", "--device opencl --cpu x86-64-v2"),
        (Host("linux", "aarch64", frozenset()), "cpu", "--device linux-arm64"),
        (Host("linux", "aarch64", frozenset()), "cuda", "--device linux-arm64 --gpu cuda"),
        (Host("android", "aarch64", frozenset()), "opencl", "--device android"),
        (Host("darwin", "aarch64", None), "cpu", "--device macos-arm64"),
        (Host("ios", "aarch64", None), "metal", "--device ios"),
        (Host("windows", "x86_64", None), "cpu", "--device windows-x64"),
    ],
)
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="hints are for x86-64 Linux",
)
def test_the_refusal_names_the_device_that_fits_the_machine(place, there, device, options):
    write(
        place / "b",
        dataclasses.replace(
            MANIFEST, target=TARGET | {"device": device, "triple": "riscv64-unknown-linux-gnu"}
        ),
    )
    with pytest.raises(BundleError, match=f"can't run here: .* minicpm-mlc compile .*{options}$"):
        read_bundle(place / "b", host=there, tvm=MANIFEST.tvm)


def test_unknown_features_of_a_host_or_a_target_are_not_missing():
    assert missing_features(["avx2", "fast-gather"], HOST) == []
    assert missing_features(["avx512f"], Host("darwin", "x86_64", None)) == []


def test_this_host_lacks_none_of_its_own_features():
    host = this_host()
    assert host.machine and host.system
    assert missing_features(sorted(host.features or ()), host) == []


# ---- damage


def test_a_flipped_byte_is_refused(place):
    flip_byte(write(place / "b") / "model.so")
    with pytest.raises(BundleError, match=r"model\.so is damaged: its SHA-256"):
        read(place / "b")


def test_a_truncated_or_missing_file_is_refused_even_without_hashing(place):
    (write(place / "b") / "model.so").write_bytes(b"lib")
    with pytest.raises(BundleError, match=r"model\.so has 3 bytes, expected 7"):
        read(place / "b", verify="never")
    (place / "b/model.so").unlink()
    with pytest.raises(BundleError, match=r"lacks model\.so"):
        read(place / "b", verify="never")


def test_hashes_are_checked_once_and_again_after_a_change(place, monkeypatch):
    read(write(place / "b"))
    hashed = []
    monkeypatch.setattr(
        "minicpm_mlc.bundle.manifest._check_hashes", lambda _, names: hashed.extend(names)
    )
    read(place / "b")
    assert hashed == ["model.so"]  # what runs is hashed each time
    monkeypatch.undo()
    flip_byte(place / "b/tensor-cache.json")
    os.utime(place / "b/tensor-cache.json", ns=(1, 1))
    with pytest.raises(BundleError, match=r"tensor-cache\.json is damaged"):
        read(place / "b")


def test_verify_always_sees_what_size_and_time_hide_and_never_does_not_look(place, cache):
    read(write(place / "b"))
    stat = flip_byte(place / "b/tensor-cache.json")
    os.utime(place / "b/tensor-cache.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    read(place / "b", verify="auto")
    read(place / "b", verify="never")
    with pytest.raises(BundleError, match="is damaged"):
        read(place / "b", verify="always")


def test_a_copy_elsewhere_is_verified_on_its_own(place):
    read(write(place / "b"))
    shutil.copytree(place / "b", place / "copy")
    stat = flip_byte(place / "copy/model.so")
    os.utime(place / "copy/model.so", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(BundleError, match="is damaged"):
        read(place / "copy")


def test_a_cache_that_cannot_be_written_does_no_harm(place, cache):
    cache.write_text("a file where the folder should be")
    read(write(place / "b"))
    read(place / "b")


def test_verify_must_be_one_of_three(place):
    with pytest.raises(ValueError, match="verify is 'sometimes'"):
        read(write(place / "b"), verify="sometimes")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"'])
def test_a_manifest_that_is_not_a_json_object_is_refused(place, text):
    (write(place / "b") / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json|format None"):
        read(place / "b")


ANY_JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just({"x": 1}),
)


@given(st.data())
@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_manifest_with_a_wrong_or_missing_field_raises_only_bundle_errors(tmp_path, data):
    folder = tmp_path / "damaged"
    if not folder.exists():
        write(folder)
        (tmp_path / "manifest").write_bytes((folder / "manifest.json").read_bytes())
    manifest = json.loads((tmp_path / "manifest").read_bytes())
    key = data.draw(st.sampled_from(sorted(manifest)))
    if data.draw(st.booleans()):
        del manifest[key]
    else:
        manifest[key] = data.draw(ANY_JSON)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        loaded = Manifest.load(folder)
        assert loaded.memory_need(64) >= 0 or key == "memory"
    except BundleError as error:
        assert str(folder) in str(error)


def test_a_manifest_that_names_files_outside_the_bundle_is_refused(place):
    file = write(place / "b") / "manifest.json"
    file.write_text(file.read_text().replace("model.so", "../model.so"))
    with pytest.raises(BundleError, match="is damaged at"):
        read(place / "b")


@pytest.mark.parametrize(
    "records", ["[]", '[{"dataPath": "../x", "records": []}]', "3", '{"x": 1}', "[{}]"]
)
def test_a_tensor_cache_that_lacks_the_weights_is_refused(place, records):
    with BundleWriter(place / "b") as bundle:
        bundle.add_file("tensor-cache.json", f'{{"records": {records}}}'.encode())
        manifest = bundle.finish(MANIFEST)
    with pytest.raises(BundleError, match=r"tensor-cache\.json doesn't describe the weights"):
        load_params(Bundle(place / "b", manifest))


# ---- what the manifest tells


@pytest.mark.parametrize(("context", "pages"), [(1, 1), (64, 1), (65, 2), (4096, 64)])
def test_memory_need_counts_whole_pages(context, pages):
    assert MANIFEST.memory_need(context) == 1000 + pages * 64 * 10 + 500


def test_mlc_chat_config_carries_limits_stop_tokens_and_chatml():
    config = mlc_chat_config(
        MANIFEST,
        {"model_type": "minicpm", "pad_token_id": 2},
        {"temperature": 0.7},
        {},
        ["tokenizer.json"],
    )
    assert config["context_window_size"] == config["model_config"]["context_window_size"] == 4096
    assert config["prefill_chunk_size"] == 512 and config["vocab_size"] == 100
    assert (
        config["model_type"] == "minicpm"
        and config["temperature"] == 0.7
        and config["pad_token_id"] == 2
    )
    template = config["conv_template"]
    assert template["stop_token_ids"] == [2, 90] and template["stop_str"] == ["<|im_end|>"]
    user = (
        template["roles"]["user"]
        + template["role_content_sep"]
        + template["role_templates"]["user"]
        + template["seps"][0]
    )
    assert user == "<|im_start|>user\n{user_message}<|im_end|>\n"


def test_tokenizer_info_tells_byte_fallback_from_byte_level():
    sentencepiece = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Strip", "start": 1, "stop": 0}],
        },
    }
    assert tokenizer_info(sentencepiece) == {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": True,
        "strip_space_in_decode": True,
    }
    assert tokenizer_info({"normalizer": None, "decoder": {"type": "ByteLevel"}}) == {
        "token_postproc_method": "byte_level",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
