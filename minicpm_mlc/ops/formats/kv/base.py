"""What a key/value format is, and the formats that convert each number by itself.

A page holds 64 tokens. Its keys are [kv_heads, head_dim + scale_rows, 64], transposed so that the
scores of 64 tokens fill vectors; its values are [kv_heads, 64, head_dim]. Where a format scales
vectors, the float32 scales of the page's keys and then of its values are the rows behind the keys.

The definition of a format is `write` and `read`, in NumPy. Methods that begin with cpu_ or gpu_
emit TIR while a kernel is built; a token's place is (page, kv_head, slot in the page).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.gpu.kernel import store
from minicpm_mlc.ops.tir import Buffer, Expr, T

SCALE_ROWS = 4  # of 64 bytes: one float32 for each token of a page
ROW_SCALES = PAGE_SIZE // SCALE_ROWS
KEYS, VALUES = 0, SCALE_ROWS  # which of a token's two vectors; the row where its scales begin
Place = tuple[Expr, Expr, Expr]  # page, kv_head, slot in the page


@dataclass(frozen=True, repr=False)
class KVFormat:
    """A format. This class converts each number to the storage dtype; others override it."""

    name: str  # as `--kv` takes it
    dtype: str  # as the manifest calls it
    storage: str  # dtype of both pools
    scale_rows: ClassVar[int] = 0  # rows of a key page behind its keys

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    def named(name: str) -> KVFormat:
        """The format that `--kv` calls `name`, or one that lies beside it by its key. Raises
        KeyError.
        """
        from minicpm_mlc.ops.formats.kv import ALL_KV_FORMATS

        return ALL_KV_FORMATS[name]

    @staticmethod
    def of_dtype(dtype: str) -> KVFormat:
        """The format that a manifest's `kv_dtype` names. Raises KeyError."""
        from minicpm_mlc.ops.formats.kv import KV_FORMATS

        return {fmt.dtype: fmt for fmt in KV_FORMATS.values()}[dtype]

    def key_shape(self, kv_heads: int, head_dim: int) -> tuple[int, int, int]:
        """Of one page of keys."""
        return kv_heads, head_dim + self.scale_rows, PAGE_SIZE

    def value_shape(self, kv_heads: int, head_dim: int) -> tuple[int, int, int]:
        """Of one page of values."""
        return kv_heads, PAGE_SIZE, head_dim

    def beside(self, levels: int | None) -> KVFormat:
        """This format as attention multiplies it: with queries rounded to integers of at most
        `levels`, where it can; None where it rounds none.
        """
        return self

    @property
    def words(self) -> bool:
        """Whether attention multiplies its integers as they are, four at once."""
        return False

    def fits(self, traits: Any) -> bool:
        """Whether a kind of device has kernels for this format."""
        return True

    def place(self, row: Any, column: Any, columns: int) -> tuple[Any, Any]:
        """Where a page has the number of a row and column of its keys or values, which have so
        many columns: row and column. Integers, arrays of them, or expressions of TIR.
        """
        return row, column

    def multiplied_as_bfloat16(self, bf16_dot: bool) -> bool:
        """Whether attention multiplies pages as bfloat16 without widening them, on a processor
        that can (`bf16_dot`). It then rounds queries and softmax weights too.
        """
        return False

    # ---- the definition, in NumPy

    def empty(self, pages: int, kv_heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Pools of zeros: keys and values, [pages, ...] of the storage dtype."""
        shapes = self.key_shape(kv_heads, head_dim), self.value_shape(kv_heads, head_dim)
        keys, values = (np.zeros((pages, *shape), self.storage) for shape in shapes)
        return keys, values

    def write(
        self,
        k_pages: np.ndarray,
        v_pages: np.ndarray,
        page: int | slice,
        slot: int,
        k: np.ndarray,
        v: np.ndarray,
    ) -> None:
        """Store one token's key and value [kv_heads, d] at a place of the pools; of a slice of
        pages, one token [pages, kv_heads, d] in each.
        """
        keys, values = self._places(slot, v_pages.shape[-1])
        k_pages[page][(..., *keys)] = k
        v_pages[page][(..., *values)] = v

    def _places(self, slot: int, head_dim: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Where a page has a token's key, and where its value."""
        components = np.arange(head_dim)
        return self.place(components, slot, PAGE_SIZE), self.place(slot, components, head_dim)

    def read(self, k_pages: np.ndarray, v_pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers in pools: float64 [pages, kv_heads, d, 64] and [pages, kv_heads, 64, d]."""
        return k_pages.astype(np.float64), v_pages.astype(np.float64)

    def pack(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pools of these numbers, [pages, kv_heads, d, 64] and [pages, kv_heads, 64, d]."""
        pages, kv_heads, head_dim, _ = keys.shape
        pools = self.empty(pages, kv_heads, head_dim)
        for slot in range(PAGE_SIZE):
            self.write(*pools, slice(None), slot, keys[..., slot], values[:, :, slot])
        return pools

    def move(
        self, k_pages: np.ndarray, v_pages: np.ndarray, to: tuple[int, int], at: tuple[int, int]
    ) -> None:
        """Copy one token, bit for bit, from (page, slot) `at` to `to`."""
        head_dim = v_pages.shape[-1]
        targets, sources = (self._places(slot, head_dim) for _, slot in (to, at))
        for pool, target, source in zip((k_pages, v_pages), targets, sources, strict=True):
            pool[to[0]][(..., *target)] = pool[at[0]][(..., *source)]

    def rounded_queries(self, q: np.ndarray) -> np.ndarray:
        """q [..., d] as attention multiplies them, float64."""
        return q.astype(np.float64)

    def rounded_means(self, means: np.ndarray) -> np.ndarray:
        """Segments' means [..., d] as a chunk's scores multiply them, float64."""
        return means.astype(np.float64)

    def rounded_weights(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Softmax weights [..., g, t] of the tokens of one page as attention multiplies them with
        their values [..., t, d], float64.
        """
        return weights

    def random_pages(
        self, rng: np.random.Generator, pages: int, kv_heads: int, head_dim: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pools of normal numbers in every slot."""
        shape = 2, pages, kv_heads, PAGE_SIZE, head_dim
        keys, values = rng.standard_normal(shape, np.float32)
        return self.pack(keys.swapaxes(2, 3), values)

    # ---- CPU kernels

    def cpu_load(self, pool: Buffer, *index: Expr) -> Expr:
        """16 elements from `index` on along the last axis, as float32, without their scales."""
        return vector.load(pool, *index)

    def cpu_words(self, pool: Buffer, *index: Expr, lanes: int) -> Expr:
        """int8[4 lanes] of a format of `words`: of four rows from (page, kv_head, row, column) on,
        the numbers of `lanes` columns, those of one column side by side.
        """
        raise NotImplementedError

    def cpu_scales(
        self,
        k_pages: Buffer,
        head_dim: int,
        which: int,
        page: Expr,
        kv_head: Expr,
        token: Expr,
        lanes: int = vector.LANES,
    ) -> Expr | None:
        """float32[lanes]: the scales of the KEYS or VALUES of tokens from `token` on; None in a
        format without.
        """
        return None

    def cpu_stored(
        self, vectors: list[Expr], k_pages: Buffer, which: int, place: Place
    ) -> list[Expr]:
        """One token's key or value, float32 vectors of 16 lanes, as the pools hold it. Its scale,
        if there is one, is written here.
        """
        if self.storage == "float32":
            return vectors
        return [T.Cast(f"{self.storage}x{vector.LANES}", x) for x in vectors]

    def cpu_store_key(self, k_pages: Buffer, key: Buffer, place: Place) -> None:
        """Write a key [d], as stored: a token is a column of its key page."""
        with T.serial(int(key.shape[0])) as i:
            T.buffer_store(k_pages, key[i], [*place[:2], *self.place(i, place[2], PAGE_SIZE)])

    def cpu_store_value(self, v_pages: Buffer, value: list[Expr], place: Place) -> None:
        """Write a value, vectors of 16 as stored."""
        for j, x in enumerate(value):
            T.buffer_store(v_pages, x, [*place, T.ramp(j * vector.LANES, 1, vector.LANES)])

    def cpu_copy_key(
        self, target: Buffer, source: Buffer, head_dim: int, to: Place, at: Place
    ) -> None:
        """One token's key, and both its scales if there are any, bit for bit."""
        with T.serial(head_dim) as i:
            here, there = ([*place[:2], *self.place(i, place[2], PAGE_SIZE)] for place in (to, at))
            T.buffer_store(target, source[tuple(there)], here)

    def cpu_copy_value(
        self, target: Buffer, source: Buffer, head_dim: int, to: Place, at: Place
    ) -> None:
        """One token's value, bit for bit."""
        with T.serial(head_dim // vector.LANES) as j:
            lanes = T.ramp(j * vector.LANES, 1, vector.LANES)
            T.buffer_store(target, source[(*at, lanes)], [*to, lanes])

    # ---- GPU kernels

    def gpu_load(self, pool: Buffer, index: list[Expr]) -> Expr:
        """One element as float32, without its scale."""
        return pool[tuple(index)]

    def gpu_store(self, pool: Buffer, x: Expr, index: list[Expr]) -> None:
        """Store a float32 that was divided by its scale."""
        store(pool, x, index)

    def gpu_scales(self, k_pages: Buffer, head_dim: int) -> Buffer | None:
        """The rows behind the keys as float32 [pages, kv_heads, rows, 16]; None in a format
        without scales. To be made outside of workgroups.
        """
        return None

    def gpu_scale(
        self, each: Callable[[Expr], tuple[Expr, ...]], count: Expr, thread: Expr
    ) -> tuple[Expr, Expr] | None:
        """(scale, its inverse) of the numbers that `each(i)` gives for i < count, by all threads of
        a workgroup; None in a format without scales.
        """
        return None
