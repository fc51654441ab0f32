"""Drawing from a row's largest logits, held against drawing from all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm_mlc.ops.candidates import Candidates
from minicpm_mlc.prompt.sampling import SamplingParams
from minicpm_mlc.runtime_py.device_rows import DeviceRow, DeviceRows
from minicpm_mlc.runtime_py.few_candidates import RowsCandidates
from minicpm_mlc.runtime_py.sampler import Sampler

VOCAB = 1000


class Device:
    """Rows of logits "on a device", and how often they and their candidates were asked for."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.reads, self.finds = logits, 0, 0

    def rows(self) -> DeviceRows:
        ids = self.logits.argmax(1).astype(np.int32)
        values = self.logits[np.arange(len(ids)), ids]
        few = RowsCandidates(len(ids), self._find)
        return DeviceRows(self._fetch, ids, values, self.logits.nbytes, candidates=few)

    def _fetch(self) -> np.ndarray:
        self.reads += 1
        return self.logits

    def _find(self, temperatures: np.ndarray) -> list[np.ndarray]:
        self.finds += 1
        ids, values, sums = Candidates.of(VOCAB).define(self.logits, temperatures)
        return [ids, values.astype(np.float32), sums.astype(np.float32)]


def peaked(seed: int, rows: int = 1, scale: float = 4.0) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((rows, VOCAB), np.float32) * scale
    return np.round(logits, 1)  # ties


@given(
    st.integers(0, 1000),
    st.sampled_from([0.2, 0.7, 1.0, 1.5]),
    st.sampled_from([0, 1, 20, 64, 100]),
    st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_the_same_tokens_are_drawn_as_from_all(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
):
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    here, there = Sampler(params, VOCAB), Sampler(params, VOCAB)
    for step in range(4):
        logits = peaked(seed + step)
        assert here.sample(logits[0]) == there.sample(Device(logits).rows()[0])
    few = there._from_few(Device(logits).rows()[0])
    if few:
        ids, probs = here.probabilities(logits[0])
        np.testing.assert_array_equal(few[0], ids)
        np.testing.assert_allclose(few[1], probs, rtol=1e-12)


def drawn(device: Device, count: int = 1, **options: Any) -> None:
    """Draws from a row `count` times, each time of a new step."""
    sampler = Sampler(SamplingParams(seed=1, **{"temperature": 1.0, **options}), VOCAB)
    for _ in range(count):
        sampler.sample(device.rows()[0])


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"top_k": 64}, 0),
        ({"top_p": 0.8}, 0),
        ({"min_p": 0.2}, 0),
        ({"top_k": 65}, 1),  # more than are found
        ({"top_p": 1.0}, 1),  # nothing is cut
        ({"top_k": 5, "presence_penalty": 1.0}, 1),
    ],
)
def test_all_logits_are_read_where_few_are_not_enough(options: dict[str, Any], reads: int):
    device = Device(peaked(1))
    drawn(device, **options)
    assert device.reads == reads


def test_a_flat_row_is_read_whole_and_so_are_those_after_it():
    device = Device(peaked(1, scale=0.1))
    drawn(device, 17, top_p=0.95)
    assert (device.reads, device.finds) == (17, 1)
    drawn(device, 18, top_p=0.95)
    assert device.finds == 3


def test_candidates_of_all_rows_are_found_together_and_not_after_a_copy():
    device = Device(peaked(2, rows=3))
    rows = device.rows()
    found = [row.few(0.7) for row in rows]
    assert device.finds == 1 and all(few is not None for few in found)
    assert rows[0].few(0.9) is not None and device.finds == 2
    rows.keep()
    assert isinstance(rows[1], DeviceRow) and rows[1].few(0.7) is None
