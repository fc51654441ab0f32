"""Packages: the same bytes each time, whole and checkable, and only for a platform that the bundle
fits.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_bundle import MANIFEST, TARGET, flip_byte, write

from minicpm_mlc.base.errors import BundleError, CompileError
from minicpm_mlc.compile.package import package_bundle

TRIPLES = {
    "linux": "x86_64-unknown-linux-gnu",
    "android": "aarch64-linux-android24",
    "macos": "arm64-apple-macos13.0",
    "ios": "arm64-apple-ios16.0",
    "web": "wasm32-unknown-wasi",
}


def bundle_for(platform: str, folder: Path) -> Path:
    return write(folder / "tiny", replace(MANIFEST, target=TARGET | {"triple": TRIPLES[platform]}))


def contents(archive: Path) -> dict[str, bytes]:
    """Files by their path below the archive's one folder."""
    if archive.suffix == ".tar":
        with tarfile.open(archive) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    else:
        with zipfile.ZipFile(archive) as zipped:
            assert zipped.testzip() is None
            files = {name: zipped.read(name) for name in zipped.namelist()}
    (root,) = {name.split("/")[0] for name in files}
    return {name.removeprefix(f"{root}/"): data for name, data in files.items()}


@pytest.mark.parametrize("platform", TRIPLES)
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_package_holds_the_bundle_its_licences_and_true_checksums(tmp_path, platform, suffix):
    bundle = bundle_for(platform, tmp_path)
    said = package_bundle(bundle, platform, tmp_path / f"out.{suffix}")
    files = contents(tmp_path / f"out.{suffix}")
    assert said.startswith(f"wrote {tmp_path / 'out'}.{suffix}: {len(files)} files")
    for name in ("manifest.json", "model.so", "tensor-cache.json"):
        assert files[f"tiny/{name}"] == (bundle / name).read_bytes()
    assert {
        f"licenses/{name}-LICENSE" for name in ("minicpm-mlc", "apache-tvm", "apache-tvm-ffi")
    } < files.keys()
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name != "SHA256SUMS"
    }
    text = files["README.md"].decode()
    assert (
        platform in text
        and "model.so" in text
        and ("pip install" in text) == (platform in ("linux", "macos"))
    )


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_the_same_bundle_gives_the_same_bytes(tmp_path, suffix):
    digests = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        out = tmp_path / place / f"out.{suffix}"
        package_bundle(bundle_for("linux", tmp_path / place), "linux", out)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("platform", TRIPLES)
def test_a_bundle_for_another_platform_is_refused(tmp_path, platform):
    bundle = bundle_for(platform, tmp_path)
    for other in TRIPLES.keys() - {platform}:
        with pytest.raises(CompileError, match=rf"doesn't fit --for {other}; .*--device \w+"):
            package_bundle(bundle, other, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_damaged_bundle_leaves_nothing_behind(tmp_path, suffix):
    bundle = bundle_for("linux", tmp_path)
    flip_byte(bundle / "model.so")
    with pytest.raises(BundleError, match=r"model\.so is damaged"):
        package_bundle(bundle, "linux", tmp_path / f"out.{suffix}")
    (bundle / "model.so").unlink()
    with pytest.raises(BundleError, match=r"lacks model\.so"):
        package_bundle(bundle, "linux", tmp_path / f"out.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_file_that_shrank_or_grew_is_damage(tmp_path):
    bundle = bundle_for("linux", tmp_path)
    for content in (b"lib", b"library and more"):
        (bundle / "model.so").write_bytes(content)
        for suffix in ("zip", "tar"):
            with pytest.raises(BundleError, match=r"model\.so is damaged"):
                package_bundle(bundle, "linux", tmp_path / f"out.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("name", ["demo.tar.gz", "demo", "demo.ZIP"])
def test_another_kind_of_archive_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(CompileError, match=rf"{name}: expected a name that ends in \.zip or \.tar"):
        package_bundle(bundle_for("linux", tmp_path), "linux", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    with pytest.raises(CompileError, match=r"can't be written .*-o"):
        package_bundle(bundle_for("linux", tmp_path), "linux", tmp_path / "nowhere" / "out.zip")
