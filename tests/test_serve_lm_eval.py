"""lm-evaluation-harness against a server: log-likelihoods and texts are the engine's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import DEMO, server

from minicpm_mlc.runtime_py.engine import Engine

pytestmark = pytest.mark.campaign
for library in ("lm_eval", "tenacity"):  # the latter is of its extra, api
    pytest.importorskip(library, reason="pip install 'lm_eval[api]'")
lm_eval = pytest.importorskip("lm_eval")
manager = pytest.importorskip("lm_eval.tasks")

CHECKPOINT = Path(__file__).parents[1] / "examples" / "demo_model" / DEMO
SUMS = [(4, 5), (12, 7), (31, 18), (120, 45)]
CHOICES = """
task: sums_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is {{{{a}}}} + {{{{b}}}}? The sum is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
TEXTS = """
task: sums_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "What is {{{{a}}}} + {{{{b}}}}? /no_think"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 24, temperature: 0}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two tasks, from a file of sums."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    docs = [{"a": a, "b": b, "choices": [f" {a + b}", f" {a + b + 1}"]} for a, b in SUMS]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "choice.yaml").write_text(CHOICES.format(file=file))
    (tmp_path / "text.yaml").write_text(TEXTS.format(file=file))
    return manager.TaskManager(include_path=str(tmp_path), include_defaults=False)


def evaluate(model: str, task: str, tasks: Any, **arguments: Any) -> list[dict[str, Any]]:
    """The samples of a run."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args={"model": DEMO, "num_concurrent": 1, "max_retries": 1, **arguments},
        tasks=[task],
        task_manager=tasks,
        bootstrap_iters=0,
        apply_chat_template=model == "local-chat-completions",
    )
    assert found is not None
    return found["samples"][task]


@pytest.mark.parametrize("backend", ["huggingface", "remote"])
def test_log_likelihoods(demo_bundle, tasks, tmp_path, backend):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(CHECKPOINT / name, tmp_path)  # transformers knows no model of this config.json
    with server(demo_bundle) as address:
        samples = evaluate(
            "local-completions",
            "sums_choice",
            tasks,
            base_url=f"{address}/v1/completions",
            tokenizer=str(tmp_path) if backend == "huggingface" else None,
            tokenizer_backend=backend,
            tokenized_requests=True,
            batch_size=4,
        )
    assert len(samples) == len(SUMS)
    with Engine(demo_bundle) as engine:
        for sample in samples:
            for request, reply in zip(sample["arguments"], sample["filtered_resps"], strict=True):
                expected, greedy = likelihood(engine, *request)
                assert reply[0] == pytest.approx(expected, abs=1e-3) and reply[1] == greedy


def test_the_manual_names_tasks_that_there_are():
    manual = (CHECKPOINT.parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = [line for line in manual.splitlines() if "| lm_eval" in line]
    named = [re.findall("`([^`]+)`", row)[-1] for row in rows]
    assert len(named) == 12
    known = manager.TaskManager().all_tasks
    assert [name for name in named if name not in known] == []


def likelihood(engine: Engine, context: str, continuation: str) -> tuple[float, bool]:
    """Of the continuation's tokens after the context, by `engine.logits`."""
    before, whole = (engine.tokenize(t, bos=False) for t in (context, context + continuation))
    logits = engine.logits(whole).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = range(len(before) - 1, len(whole) - 1)
    values = [logits[i, whole[i + 1]] for i in places]
    return sum(values), all(int(logits[i].argmax()) == whole[i + 1] for i in places)


def test_texts_of_chats(demo_bundle, tasks):
    with server(demo_bundle) as address:
        samples = evaluate(
            "local-chat-completions", "sums_text", tasks, base_url=f"{address}/v1/chat/completions"
        )
    with Engine(demo_bundle) as engine:
        for sample in samples:
            question = "What is {a} + {b}? /no_think".format(**sample["doc"])
            message = {"role": "user", "content": question}
            said = engine.chat([message], temperature=0, max_tokens=24, stop=["\n\n"])
            assert sample["resps"][0][0] == said
