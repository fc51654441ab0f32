"""A model made of NumPy: its logits depend on the whole history, read back through the page
table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers
from tokenizers import processors

from minicpm_mlc.bundle.manifest import Bundle, Manifest
from minicpm_mlc.bundle.state import StateEntry
from minicpm_mlc.runtime_py.local_machine import LocalMachine
from minicpm_mlc.runtime_py.outputs import Outputs

TOKENIZER = tiny_tokenizers.sentencepiece()
TOKENIZER.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
)
VOCAB = TOKENIZER.get_vocab_size() + 3
EOS = 4  # <|im_end|>
PAGE = 4


def token(text: str) -> int:
    found = TOKENIZER.token_to_id(text)
    assert found is not None
    return found


class FakeLibrary:
    """Stores tokens in the pages as a model stores keys; counts what it computes. `say` may script
    the answer.
    """

    device_name = device_identity = "no device"
    local = None
    vocab_size = VOCAB

    def __init__(
        self, say: Callable[[list[int]], int] | None = None, made: Manifest | None = None
    ) -> None:
        self.manifest = made or manifest()
        self.say = say
        self.calls: list[int] = []  # rows of each call

    def new_pools(self, num_pages: int) -> Any:
        return SimpleNamespace(
            tokens=np.full((num_pages, PAGE), -1), positions=np.full((num_pages, PAGE), -1)
        )

    def pool_arrays(self, pools: Any) -> list[np.ndarray]:
        return [pools.tokens, pools.positions]

    def prefill(
        self, token_ids, positions, slots, page_table, logit_rows, pools, sparse=False
    ) -> Outputs:
        assert {a.dtype for a in (token_ids, positions, slots, page_table, logit_rows)} == {
            np.dtype(np.int32)
        }
        self.calls.append(len(token_ids))
        pools.tokens[page_table[slots // PAGE], slots % PAGE] = token_ids
        pools.positions[page_table[slots // PAGE], slots % PAGE] = positions
        return Outputs(np.stack([self._row(slots[r], page_table, pools) for r in logit_rows]))

    def decode(self, token_ids, positions, slots, page_tables, pools, sparse=False) -> Outputs:
        assert len(token_ids) == len(page_tables) and page_tables.ndim == 2
        calls = len(self.calls)
        rows = zip(token_ids, positions, slots, page_tables, strict=True)
        outs = [self._decoded(row, pools) for row in rows]
        self.calls[calls:] = [len(token_ids)]
        return Outputs(np.concatenate(outs))

    def _decoded(self, row: tuple[Any, ...], pools: Any) -> np.ndarray:
        token_id, position, slot, table = map(np.atleast_1d, row)
        return self.prefill(token_id, position, slot, table, np.zeros(1, np.int32), pools).logits

    def verify(
        self, token_ids, positions, slots, base, page_table, ancestors, pools, sparse=False
    ) -> Outputs:
        """Every row's history is what it sees: the slots before the base, then its ancestors in the
        tree.
        """
        self.calls.append(len(token_ids))
        assert slots[0] >= base[0] and (np.diff(slots) == 1).all()
        pools.tokens[page_table[slots // PAGE], slots % PAGE] = token_ids
        pools.positions[page_table[slots // PAGE], slots % PAGE] = positions
        rows = []
        for mask in ancestors.view("<u8")[:, 0].tolist():
            path = [int(base[0]) + node for node in range(64) if mask >> node & 1]
            rows.append(self._seen(np.array([*range(int(base[0])), *path]), page_table, pools))
        return Outputs(np.stack(rows))

    def commit(self, sources, slots, page_table, pools) -> None:
        assert (np.diff(sources) > 0).all() and (slots <= sources).all()
        for pool in (pools.tokens, pools.positions):
            pool[page_table[slots // PAGE], slots % PAGE] = pool[
                page_table[sources // PAGE], sources % PAGE
            ]

    def _row(self, last: int, page_table: np.ndarray, pools: Any) -> np.ndarray:
        return self._seen(np.arange(last + 1), page_table, pools)

    def _seen(self, slots: np.ndarray, page_table: np.ndarray, pools: Any) -> np.ndarray:
        history = pools.tokens[page_table[slots // PAGE], slots % PAGE].tolist()
        assert pools.positions[page_table[slots // PAGE], slots % PAGE].tolist() == list(
            range(len(slots))
        )
        return self.row(history)

    def row(self, history: list[int]) -> np.ndarray:
        logits = np.random.default_rng(history).standard_normal(VOCAB).astype(np.float32)
        logits[[*range(FIRST_WORD), *range(VOCAB - 3, VOCAB)]] -= (
            20  # readable text, no accidental end
        )
        if self.say:
            logits[self.say(history)] += 100
        return logits


class RecurrentLibrary(FakeLibrary):
    """The same, but what it knows of the history is one state, which only goes forward: it begins
    anew at position 0.
    """

    def __init__(self) -> None:
        super().__init__(
            made=manifest(state=[StateEntry("state", (0,), (8,), "float32", "sequence")])
        )

    def new_pools(self, num_pages: int) -> Any:
        return SimpleNamespace(state=[])

    def prefill(
        self, token_ids, positions, slots, page_table, logit_rows, pools, sparse=False
    ) -> Outputs:
        self.calls.append(len(token_ids))
        if positions[0] == 0:
            pools.state = []
        start = len(pools.state)
        assert positions.tolist() == list(range(start, start + len(token_ids)))
        pools.state = [*pools.state, *token_ids.tolist()]
        return Outputs(np.stack([self.row(pools.state[: start + r + 1]) for r in logit_rows]))

    def verify(self, *_: Any, **__: Any) -> Outputs:
        raise AssertionError("a recurrent state can't verify trees")


FIRST_WORD = token("▁hello")


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "fake",
        "scheme": "f32",
        "embedding_scheme": "f32",
        "target": {"device": "cpu"},
        "tvm": "",
        "params": [],
        "model": {
            "num_layers": 1,
            "vocab_size": VOCAB,
            "bos_token_id": 1,
            "eos_token_ids": [2],
            "rope_factors": [1.0],
            "tie_word_embeddings": True,
            "sparse": None,
        },
        "kv_dtype": "float32",
        "state": [],
        "page_size": PAGE,
        "max_context": 200,
        "prefill_chunk": 5,
        "memory": {"weights": 1000, "kv_per_token": 10, "activations": 100},
    }
    return Manifest(**(values | changes))


def use_fake_library(
    patch: pytest.MonkeyPatch, open_library: Callable[[], FakeLibrary] = FakeLibrary, **changes: Any
) -> None:
    """Every bundle that is opened on this machine is a FakeLibrary's; `changes` of its manifest."""
    made = manifest(**changes)
    patch.setattr(
        LocalMachine, "read_bundle", lambda machine, path, device=None: Bundle(Path(path), made)
    )
    patch.setattr(LocalMachine, "open_library", lambda *_: open_library())
