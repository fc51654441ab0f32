"""Packages for Android and iOS with the engine: what their own tools will read, as far as it can be
read here. Neither tool has built them.
"""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import android_stubs
import pytest
from conftest import DEMO
from mach_o import IOS, read_archive, read_mach_o
from test_bundle import MANIFEST, TARGET
from test_package import TRIPLES, contents

from minicpm_mlc.bundle.manifest import CPU_MANIFEST
from minicpm_mlc.compile import compile_model
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder
from minicpm_mlc.compile.engine_ios import anchors
from minicpm_mlc.compile.package import package_bundle
from minicpm_mlc.compile.writer import BundleWriter
from minicpm_mlc.targets.link import zig

LIBRARIES = {"android": ["model.so", "model.tar"], "ios": ["model.a"]}
ANDROID_NAME = "{http://schemas.android.com/apk/res/android}name"


def packaged(platform: str, folder: Path) -> dict[str, bytes]:
    """The package of a bundle whose libraries are empty, by file."""
    target = TARGET | {"triple": TRIPLES[platform], "features": []}
    with BundleWriter(folder / "tiny") as bundle:
        for library in LIBRARIES[platform]:
            bundle.add_file(library, f"{library}".encode())
        bundle.add_json("tensor-cache.json", {"records": []})
        bundle.finish(replace(MANIFEST, target=target, library=LIBRARIES[platform][0]))
    for name in ("out", "again"):
        package_bundle(folder / "tiny", platform, folder / f"{name}.zip", engine=True)
    assert (folder / "out.zip").read_bytes() == (folder / "again.zip").read_bytes()
    return contents(folder / "out.zip")


def test_a_swift_package_names_what_it_holds(tmp_path: Path) -> None:
    files = packaged("ios", tmp_path)
    manifest = files["Package.swift"].decode()
    assert manifest.startswith("// swift-tools-version:")
    assert manifest.count("(") == manifest.count(")") and manifest.count("[") == manifest.count("]")
    roots = {"tvm": "wheels/tvm", "tvm_ffi": "wheels/tvm_ffi", "native": "runtime"}
    for part, folders in (("runtime", roots), ("engine", {"src": "engine/src"})):
        for line in files[f"native/{part}/sources.txt"].decode().splitlines():
            if line and not line.startswith("#"):
                root, _, rest = line.partition("/")
                assert f"native/{folders[root]}/{rest}" in files, line
    for name in (*re.findall(r'path: "([^"]+)"', manifest), "native/ios/include", "native/ios/src"):
        assert any(file.startswith(f"{name}/") for file in files), name
    headers = re.findall(r'"([\w/]+)"', manifest.partition("let headers")[2].partition("]")[0])
    assert len(headers) == 7
    for name in headers:
        assert any(file.startswith(f"native/{name}/") for file in files), name
    info = plistlib.loads(files["MinicpmModel.xcframework/Info.plist"])
    (library,) = info["AvailableLibraries"]
    path = f"MinicpmModel.xcframework/{library['LibraryIdentifier']}/{library['LibraryPath']}"
    assert files[path] == files["tiny/model.a"] == b"model.a"
    assert (info["CFBundlePackageType"], info["XCFrameworkFormatVersion"]) == ("XFWK", "1.0")
    assert b'return "tiny_w4_"' in files["native/ios/src/model.cc"]


def test_its_module_and_own_sources_compile_for_apples_processors(tmp_path: Path) -> None:
    """With zig's headers of macOS, in the place of iOS's; os/proc.h is a stub."""
    with zipfile.ZipFile(_swift_package(tmp_path)) as archive:
        archive.extractall(tmp_path)
    native = tmp_path / "tiny-ios" / "native"
    (tmp_path / "os").mkdir()
    (tmp_path / "os" / "proc.h").write_text("unsigned long os_proc_available_memory(void);\n")
    (tmp_path / "app.m").write_text("@import CMinicpm;\nint version = MINICPM_VERSION;\n")
    module = native / "ios/include/module.modulemap"
    cache = f"-fmodules-cache-path={tmp_path}"
    sources = {
        tmp_path / "app.m": ["cc", "-fmodules", cache, f"-fmodule-map-file={module}"],
        native / "ios/src/model.cc": ["c++", "-std=c++17"],
        native / "ios/src/host.cc": ["c++", "-std=c++17"],
    }
    paths = [native / "engine/include", native / "engine/src", native / "ios/include", tmp_path]
    flags = ["-target", "aarch64-macos.13.0", "-c", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-I{path}" for path in paths]
    for source, command in sources.items():
        zig(*command, *flags, "-o", str(tmp_path / f"{source.stem}.o"), str(source))
    parts = read_mach_o((tmp_path / "model.o").read_bytes()).undefined
    assert parts == set(anchors("tiny_w4_"))


def _swift_package(folder: Path) -> Path:
    packaged("ios", folder)
    return folder / "out.zip"


def test_a_gradle_project_names_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program").write_bytes(b"program")
    monkeypatch.setattr(EngineBuild, "program", lambda build: tmp_path / "program")
    files = packaged("android", tmp_path)
    root = "native/android"
    modules = re.findall(r"':(\w+)'", files[f"{root}/settings.gradle"].decode())
    assert modules == ["minicpm", "app"]
    for module in modules:
        build = files[f"{root}/{module}/build.gradle"].decode()
        assert build.count("{") == build.count("}")
        ElementTree.fromstring(files[f"{root}/{module}/src/main/AndroidManifest.xml"])
    said = files[f"{root}/model.properties"].decode()
    properties = dict(line.split("=") for line in said.splitlines())
    assert (properties["bundle"], properties["linked"]) == ("tiny", "tiny_w4_")
    used = re.findall(r"model\.(\w+)\}", files[f"{root}/app/build.gradle"].decode())
    assert set(used) == properties.keys()
    assert files[f"{root}/minicpm/model.tar"] == b"model.tar"
    cmake = files[f"{root}/minicpm/CMakeLists.txt"].decode()
    assert "max-page-size=16384" in cmake and f"{root}/minicpm/src/main/cpp/jni.cc" in files
    app = ElementTree.fromstring(files[f"{root}/app/src/main/AndroidManifest.xml"])
    (activity,) = app.iter("activity")
    kotlin = f"{root}/app/src/main/java/org/minicpm/chat{activity.attrib[ANDROID_NAME]}.kt"
    layout = files[f"{root}/app/src/main/res/layout/chat.xml"].decode()
    ElementTree.fromstring(layout)
    for name in re.findall(
        r"R\.id\.(\w+)", files[kotlin.replace("chat.Chat", "chat/Chat")].decode()
    ):
        assert f"@+id/{name}" in layout
    assert native_folder().joinpath("android/minicpm/proguard.pro").is_file()


def test_a_gradle_project_has_both_libraries_of_a_gpus_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[EngineBuild] = []
    (tmp_path / "program").write_bytes(b"program")

    def program(build: EngineBuild) -> Path:
        built.append(build)
        return tmp_path / "program"

    monkeypatch.setattr(EngineBuild, "program", program)
    target = TARGET | {"triple": TRIPLES["android"], "features": []}
    made = replace(MANIFEST, target=target)
    with BundleWriter(tmp_path / "tiny") as bundle:
        for name in ("model.so", "model.tar", "cpu-model.so", "cpu-model.tar"):
            bundle.add_file(name, name.encode())
        second = replace(made, library="cpu-model.so", files=bundle.entries)
        bundle.add_file(CPU_MANIFEST, second.to_bytes())
        bundle.finish(replace(made, target=target | {"device": "opencl"}))
    package_bundle(tmp_path / "tiny", "android", tmp_path / "out.zip", engine=True)
    files = contents(tmp_path / "out.zip")
    root = "native/android/minicpm"
    assert files[f"{root}/model.tar"] == b"model.tar"
    assert files[f"{root}/cpu-model.tar"] == b"cpu-model.tar"
    assert files[f"{root}/devices.cmake"] == b"set(MINICPM_DEVICES opencl)\n"
    assert {"native/apis/CL/cl.h", "native/src/opencl/device.cc"} < files.keys()
    model = built[0].model
    assert model and (model.objects.name, model.prefix) == ("cpu-model.tar", "tiny_w4_")
    manifest = ElementTree.fromstring(files[f"{root}/src/main/AndroidManifest.xml"])
    (driver,) = manifest.iter("uses-native-library")
    assert driver.attrib[ANDROID_NAME] == "libOpenCL.so"


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("kotlinc"), reason="no kotlinc: apt install kotlin")
def test_the_example_app_is_kotlin(tmp_path: Path) -> None:
    """Against signatures of what it takes of Android."""
    android = native_folder() / "android"
    stubs = [path for path in android_stubs.write(tmp_path / "stubs") if path.is_file()]
    sources = [*stubs, *(android / "minicpm/src/main/java").rglob("*.java")]
    (app,) = (android / "app/src/main/java").rglob("*.kt")
    command = ["kotlinc", "-Werror", "-jvm-target", "1.8", "-d", tmp_path / "app", app, *sources]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "app/org/minicpm/chat/ChatActivity.class").is_file()


@pytest.mark.campaign
def test_an_archive_for_ios_holds_the_parts_that_the_app_names(tmp_path: Path) -> None:
    compile_model(DEMO, tmp_path / "phone", device="ios", gpu="none", scheme="f32")
    members = read_archive(tmp_path / "phone" / "model.a")
    objects = [read_mach_o(data) for data in members.values()]
    assert {o.platform for o in objects} == {IOS}
    names = anchors("MiniCPM4_1_demo_f32_")
    assert all(sum(name in o.exported for o in objects) == 1 for name in names)
    assert all(any(name in o.exported for name in names) for o in objects)
    assert not any("ulock" in name for o in objects for name in o.undefined)  # not for apps
