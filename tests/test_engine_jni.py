"""org.minicpm.Engine from a JVM that checks every JNI call."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from engine_process import HERE

from minicpm_mlc import Engine
from minicpm_mlc.compile.engine_build import EngineBuild, native_folder

JAVAC = shutil.which("javac")
HOME = Path(JAVAC).resolve().parents[1] if JAVAC else Path()
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not (HOME / "include/jni.h").is_file(), reason="no JDK"),
]
MAIN = Path(__file__).with_name("EngineCheck.java")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    source = native_folder() / "android/minicpm/src/main/java/org/minicpm/Engine.java"
    subprocess.run(["javac", "-Xlint:all", "-d", folder, source, MAIN], check=True)
    headers = [HOME / "include", HOME / "include" / platform.system().lower()]
    methods = native_folder() / "android/minicpm/src/main/cpp/jni.cc"
    library = EngineBuild(HERE).shared(methods, headers)
    shutil.copy(library, folder / "libminicpm_jni.so")
    return folder


def test_a_jvm_answers_without_a_warning(classes: Path, demo_bundle: Path) -> None:
    command = ["java", "-Xcheck:jni", f"-Djava.library.path={classes}", "-cp", classes]
    result = subprocess.run(
        [*map(str, command), "EngineCheck", str(demo_bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr
    with Engine(demo_bundle, context=512) as engine:
        asked = [{"role": "user", "content": "What is 4827 + 356?"}]
        expected = engine.chat_events(asked, temperature=0, max_tokens=48, speculate="off")
        text = "".join(piece for kind, piece in expected if kind == "answer")
    assert f"answer: {text}\n" in result.stdout
    for line in ("emoji: whole", "thrown: from the listener", "cancelled", "closed 100 times"):
        assert line in result.stdout
