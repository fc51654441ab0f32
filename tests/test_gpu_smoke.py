"""bench/gpu_smoke.py and bench/gpu_session.py on the OpenCL device that is here, so that they are
known to work when a GPU is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_session as session
import gpu_smoke as smoke
import pytest
from gpu_cases import needs_opencl

import minicpm_mlc.compile
from minicpm_mlc.base.errors import BundleError

BENCH = str(Path(__file__).parents[1] / "bench")
START, WAIT = subprocess.Popen, subprocess.Popen.wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, compiled: Callable[..., Path]) -> Path:
    """What `make` writes, of the demo's bundles that other tests have too."""
    folder = tmp_path_factory.mktemp("smoke") / "smoke"
    compile_anew = minicpm_mlc.compile.compile_model

    def compile_once(source: Any, out: Path, **options: Any) -> None:
        if options.get("random_weights"):
            compile_anew(source, out, **options)
            return
        assert options.pop("activations", "f32") == "f32", "what float32 weights have anyway"
        shutil.copytree(compiled(source, **{"device": "cpu", **options}), out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicpm_mlc.compile.compile_model", compile_once)
        smoke.make(folder, ["opencl"], None, "tiny")
    return folder


def test_a_session_runs_where_there_is_no_compiler():
    code = (
        f"import sys; sys.modules['tvm'] = None; sys.path.insert(0, {BENCH!r}); import gpu_session"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_opencl
def test_a_run_checks_kernels_and_answers_and_times_the_shapes(folder: Path):
    report = "\n".join(smoke.run(folder))
    assert "attend_tree" in report and "WRONG" not in report
    assert "- 3 answers, speculation eagle: 3 the CPU's" in report
    assert "| decode | dense | 64 |" in report and report.count("| prefill |") == 2


QUICK = ["limits", "speed", "llama.cpp"]  # steps that take seconds; a campaign does all


def _found(folder: Path, out: Path, steps: list[str]) -> dict[str, dict[str, Any]]:
    """What each step of a session found, nothing of which is wrong."""
    lines = list(session.run(folder, out, 1000, steps, patience=session.PATIENCE))
    assert [line.split()[1] for line in lines] == steps
    tables = ["opencl-tuning.json"] * ("sweep" in steps)
    assert sorted(path.name for path in out.iterdir()) == [*tables, "report.json", "report.md"]
    report = json.loads((out / "report.json").read_text())
    assert not any(each["wrong"] for each in report["steps"])
    return {each["step"]: each for each in report["steps"]}


@needs_opencl
def test_a_session_measures_the_device_and_keeps_a_report(folder: Path, tmp_path: Path):
    found = _found(folder, tmp_path, QUICK)
    limits = dict(found["limits"]["table"][1:])
    assert float(limits["memory reads"].split()[0]) > 0
    assert float(limits["float32 multiply-adds"].split()[0]) > 0
    assert "rows verified" in found["speed"]["notes"][-1]
    assert "no llama-bench on PATH" in found["llama.cpp"]["notes"][0]
    text = (tmp_path / "report.md").read_text()
    assert "## opencl: speed" in text and "| decode | dense | 64 |" in text


@needs_opencl
@pytest.mark.campaign
def test_a_session_does_everything(folder: Path, tmp_path: Path):
    found = _found(folder, tmp_path, list(session.ALL))
    kernels = {row[0] for row in found["large-kernels"]["table"]}
    assert {"attend_decode", "linear", "likeliest"} <= kernels
    assert [row[0] for row in found["long-context"]["table"][1:]] == ["dense"]
    assert "no compute-sanitizer" in found["sanitizer"]["notes"][0]
    assert ["demo-draft", "eagle", "3", "3"] in found["answers"]["table"]
    assert any(row[1] == "attend_tree" for row in found["demo-kernels"]["table"])


@needs_opencl
def test_what_is_wrong_and_a_device_that_is_not_here_are_named_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "cuda" / "demo-draft").mkdir(parents=True)
    (folder / "cuda" / smoke.PLAN).write_text(
        json.dumps({"device": "cuda", "shapes": "tiny", "answers": {"demo-draft": []}})
    )
    path = folder / "opencl" / smoke.PLAN
    plan = json.loads(path.read_text())
    ids, tokens = plan["answers"]["demo-draft"][0]
    path.write_text(json.dumps(plan | {"answers": {"demo-draft": [(ids, [*tokens[:-1], -1])]}}))
    verified = SimpleNamespace(failed=["embed"], plain=lambda: "")  # as the test above did
    monkeypatch.setattr(smoke, "verify_bundle", lambda _: verified)
    monkeypatch.setitem(smoke.SHAPES, "tiny", replace(smoke.SHAPES["tiny"], presets=()))
    found = [f"demo-draft: answers, speculation {way}" for way in ("off", "ngram", "eagle")]
    with pytest.raises(SystemExit) as left:
        list(smoke.run(folder))
    missing, *wrong = str(left.value).split("; demo-draft: ")
    assert missing.startswith("wrong: cuda: ") and "demo-draft has no manifest.json" in missing
    assert [f"demo-draft: {each}" for each in wrong] == ["demo-draft: embed", *found]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["run", "nowhere"],
            "nowhere has no */smoke.json; make it first: python bench/gpu_smoke.py make nowhere",
        ),
        (["make", "."], ". is there already; give another folder"),
        (
            ["make", "new", "--device", "cuda,toaster"],
            "--device toaster: not a device; there is cpu",
        ),
    ],
)
def test_what_can_not_be_made_or_run_is_one_line(
    arguments, says, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", *arguments])
    with pytest.raises(SystemExit) as left:
        smoke.main()
    assert str(left.value).startswith(says) and not list(tmp_path.iterdir())


def _step_process(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Every step's process runs this instead; `out` is where its result goes."""

    def instead(command: list[str], **options: Any) -> Any:
        out = command[command.index("--out") + 1]
        return START([sys.executable, "-c", f"out = {out!r}\n{code}"], **options)

    monkeypatch.setattr(session.subprocess, "Popen", instead)


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    (tmp_path / "made" / "cuda").mkdir(parents=True)
    (tmp_path / "made" / "cuda" / smoke.PLAN).write_text("{}")
    return tmp_path / "made"


RESULT = '{"table": [["a"], ["1"]], "notes": [], "wrong": [], "files": {"b.json": "{}"}}'


def test_what_was_measured_is_kept_when_time_runs_out(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _step_process(monkeypatch, f"open(out, 'w').write({RESULT!r})")
    monkeypatch.setattr(session, "LEAST", 300)
    steps, monotonic = ["limits", "speed"], iter([0.0, 100.0, 100.0, 120.0, 120.0])
    monkeypatch.setitem(session.ALL, "limits", (None, 400))
    monkeypatch.setattr(session.time, "monotonic", lambda: next(monotonic))
    lines = list(session.run(planned, tmp_path / "out", 401, steps))
    assert lines[0].endswith("20.0 s  ok") and lines[1].endswith("left out: 281 s were left")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## cuda: limits, 20.0 s" in text and "- left out: 281 s were left" in text


def test_a_step_that_dies_or_hangs_is_wrong_and_the_others_go_on(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = f"import os; 'speed' in out and os.abort(); open(out, 'w').write({RESULT!r})"
    _step_process(monkeypatch, code)
    with pytest.raises(SystemExit, match="wrong: speed: exit status -6: it said nothing"):
        list(session.run(planned, tmp_path / "out", 100, ["speed", "limits"]))
    assert "| a |" in (tmp_path / "out" / "report.md").read_text(), "what limits found"
    assert (tmp_path / "out" / "b.json").read_text() == "{}"


def test_what_a_hanging_step_had_found_is_kept_and_all_that_it_started_is_ended(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = tmp_path / "pid"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(out, "w").write({RESULT!r})
open("{told}.part", "w").write(str(child.pid))
os.rename("{told}.part", "{told}")
time.sleep(60)
"""

    def wait(process: subprocess.Popen[bytes], seconds: float | None = None) -> int:
        while seconds == 60 and not told.exists():
            time.sleep(0.01)
        if seconds == 60:
            raise subprocess.TimeoutExpired("step", seconds)
        return WAIT(process, seconds)

    _step_process(monkeypatch, code)
    monkeypatch.setattr(START, "wait", wait)
    with pytest.raises(SystemExit, match="wrong: limits: not done in 60 s"):
        list(session.run(planned, tmp_path / "out", 100, ["limits"]))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a |" in text and "**wrong**: not done in 60 s" in text
    while _runs(int(told.read_text())):
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """By Linux' table of processes, where one that has ended may stay for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_session_without_a_device_or_a_folder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(device: str) -> None:
        raise BundleError(f"no {device} device was found")

    # tests/shim_cases.py gives TVM a Metal device in whichever process collects it
    monkeypatch.setattr(session, "open_memory", missing)
    with pytest.raises(SystemExit, match=r"make it first: python bench/gpu_session\.py make"):
        list(session.run(tmp_path, tmp_path, 10, []))
    with pytest.raises(SystemExit, match=r"none of metal is here.*make devices"):
        list(session.dry_run(["metal"], 10, tmp_path, []))
