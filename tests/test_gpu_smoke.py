"""bench/gpu_smoke.py on the OpenCL device that is here, so that it is known to work when a GPU
is.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from gpu_cases import needs_opencl

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
smoke = importlib.import_module("gpu_smoke")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "smoke"
    smoke.make(folder, ["opencl"], None, "tiny")
    return folder


@needs_opencl
def test_a_run_checks_kernels_and_answers_and_times_the_shapes(folder: Path):
    report = "\n".join(smoke.run(folder))
    assert "attend_tree" in report and "WRONG" not in report
    assert "- 3 answers, speculation eagle: 3 the CPU's" in report
    assert "| decode | dense | 64 |" in report and report.count("| prefill |") == 2


@needs_opencl
def test_a_wrong_answer_and_a_device_that_is_not_here_are_named_at_the_end(folder: Path):
    (folder / "cuda" / "demo-w4").mkdir(parents=True)
    (folder / "cuda" / smoke.PLAN).write_text(
        json.dumps({"device": "cuda", "shapes": "tiny", "answers": {"demo-w4": []}})
    )
    path = folder / "opencl" / smoke.PLAN
    plan = json.loads(path.read_text())
    plan["answers"] = {
        "demo-w4": [(ids, [*tokens[:-1], -1]) for ids, tokens in plan["answers"]["demo-w4"]]
    }
    path.write_text(json.dumps(plan))
    off, ngram = (f"demo-w4: answers, speculation {way}" for way in ("off", "ngram"))
    with pytest.raises(
        SystemExit, match=f"wrong: cuda: .*demo-w4 has no manifest.json.*; {off}; {ngram}"
    ):
        list(smoke.run(folder))


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
