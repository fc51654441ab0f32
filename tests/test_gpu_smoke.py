"""bench/gpu_smoke.py on the OpenCL device that is here, so that it is known to work when a GPU is."""

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
    smoke.make(folder, "opencl", None, "tiny")
    return folder


@needs_opencl
def test_a_run_checks_kernels_and_answers_and_times_the_shapes(folder: Path):
    report = "\n".join(smoke.run(folder))
    assert "attend_tree" in report and "WRONG" not in report
    assert "- 3 answers, speculation eagle: 3 the CPU's" in report
    assert "| decode | dense | 64 |" in report and report.count("| prefill |") == 2


@needs_opencl
def test_a_wrong_answer_is_named_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch):
    plan = json.loads((folder / smoke.PLAN).read_text())
    plan["answers"] = {"demo-w4": [(ids, [*tokens[:-1], -1]) for ids, tokens in plan["answers"]["demo-w4"]]}
    (folder / smoke.PLAN).write_text(json.dumps(plan))
    with pytest.raises(SystemExit, match="wrong: demo-w4: answers, speculation off; demo-w4: answers, speculation ngram"):
        list(smoke.run(folder))
