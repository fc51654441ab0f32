"""Logits that stay on a device until somebody reads them: a greedy step sends only its token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex, overload

import numpy as np

from minicpm_mlc.runtime_py.few_candidates import Few, RowsCandidates


class DeviceRows:
    """Logits float32 [rows, vocab] of one step. `ids` and `values`: of each row the likeliest token
    and its logit, which the device found.

    `fetch` copies all rows, at most once. A step that writes into the same memory calls `keep`
    first, so that they stay what they were; `noticed` is called when somebody reads them.
    `candidates` are found on the device until then.
    """

    def __init__(
        self,
        fetch: Callable[[], np.ndarray],
        ids: np.ndarray,
        values: np.ndarray,
        nbytes: int,
        noticed: Callable[[], None] = lambda: None,
        candidates: RowsCandidates | None = None,
    ) -> None:
        """`nbytes`: what they take on the device."""
        self.ids, self.values, self.nbytes = ids, values, nbytes
        self._noticed, self._candidates = noticed, candidates
        self._fetch: Callable[[], np.ndarray] | None = fetch
        self._rows = np.empty((0, 0), np.float32)

    def keep(self) -> np.ndarray:
        """All rows, copied if they weren't before."""
        if self._fetch:
            self._rows, self._fetch = self._fetch(), None
        return self._rows

    def read(self) -> np.ndarray:
        """All rows, for somebody who reads them."""
        self._noticed()
        return self.keep()

    def few(self, row: int, temperature: float) -> Few | None:
        """The largest logits of a row; None where the device can't find them any more."""
        if self._candidates is None or self._fetch is None:
            return None
        return self._candidates.of(row, temperature)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> DeviceRow: ...

    @overload
    def __getitem__(self, row: slice) -> np.ndarray: ...

    def __getitem__(self, row: int | slice) -> DeviceRow | np.ndarray:
        """One of them, or some, which are copied."""
        if isinstance(row, slice):
            return self.read()[row]
        return DeviceRow(self, range(len(self))[row])

    def __iter__(self) -> Iterator[DeviceRow]:
        return (DeviceRow(self, row) for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


class DeviceRow:
    """One of them, float32 [vocab], as NumPy takes it. Its largest is known without a copy."""

    __slots__ = ("_row", "_rows")

    def __init__(self, rows: DeviceRows, row: int) -> None:
        self._rows, self._row = rows, row

    def argmax(self) -> np.intp:
        """The likeliest token, the lowest id among equals; one whose logit is NaN comes first."""
        return np.intp(self._rows.ids[self._row])

    def few(self, temperature: float) -> Few | None:
        """Its largest logits, where its device finds them."""
        return self._rows.few(self._row, temperature)

    def __getitem__(self, token_id: SupportsIndex) -> np.float32:
        """The logit of a token."""
        if token_id == self.argmax():
            return self._rows.values[self._row]
        return self._rows.read()[self._row, token_id]

    def __len__(self) -> int:
        return self._rows.read().shape[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._rows.read()[self._row], dtype)
