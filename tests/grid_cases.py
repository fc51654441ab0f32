"""What the operator grid calls: generated shapes and data, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
from op_cases import nmse
from sparse_cases import Family, make_queries
from tree_cases import Tree, make_tree

from minicpm_mlc.ops.build import build, has_kernel
from minicpm_mlc.ops.cpu.attend import attend_definition
from minicpm_mlc.ops.cpu.attend_blocks import attend_blocks_definition
from minicpm_mlc.ops.cpu.attend_tree import attend_tree_blocks_definition, attend_tree_definition
from minicpm_mlc.ops.cpu.move_rows import move_rows_definition
from minicpm_mlc.ops.cpu.path_means import path_means_definition
from minicpm_mlc.ops.cpu.rope import rope_append_definition
from minicpm_mlc.ops.cpu.score_blocks import score_blocks_definition
from minicpm_mlc.ops.cpu.score_tree import score_tree_definition
from minicpm_mlc.ops.cpu.segment_means import segment_means_definition
from minicpm_mlc.ops.cpu.select_blocks import select_blocks_definition
from minicpm_mlc.ops.formats.kv import F16, F32, KV_FORMATS, KVFormat
from minicpm_mlc.ops.operator import Operator, all_records
from minicpm_mlc.ops.samples import Draw, Sample
from minicpm_mlc.ops.sparse_attention import Budget, all_segment_means
from minicpm_mlc.targets import Target

ROWS = (1, 2, 3, 4, 7, 8, 9, 16, 33, 65)
HEADS = [(4, 2, 64), (16, 1, 128)]  # heads, KV heads, head_dim: groups of 2 and 16
BUDGET = Budget(topk=3, window_blocks=2, init_blocks=1)


@dataclass(frozen=True)
class Kernel:
    """One function: a method of the kernel sets and its arguments. `dtype`: what the table tells
    apart.
    """

    operator: str
    dtype: str
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def build(self, target: Target) -> Any:
        return getattr(target.kernels, self.operator)(*self.arguments, **dict(self.options))

    def is_there(self, target: Target) -> bool:
        """Whether the target has such a kernel."""
        return hasattr(target.kernels, self.operator)


@dataclass(frozen=True)
class RecordKernel:
    """The same of an operator that has a record."""

    record: Operator

    @property
    def operator(self) -> str:
        return self.record.name

    @property
    def dtype(self) -> str:
        return self.record.dtype_label

    def build(self, target: Target) -> Any:
        return build(self.record, target.traits)

    def is_there(self, target: Target) -> bool:
        return has_kernel(type(self.record), target.traits) and self.record.fits(target.traits)


@dataclass(frozen=True)
class Case:
    """One call. `outcome` takes what counts from the arguments after it, the last one if nothing
    else is said.
    """

    kernel: Kernel | RecordKernel
    arguments: list[np.ndarray]
    expected: np.ndarray
    allowed: float = 1e-11  # NMSE
    outcome: Callable[[list[np.ndarray]], np.ndarray] = lambda arguments: arguments[-1]

    def error(self, call: Callable[..., None]) -> float:
        """The NMSE of a call on copies of the arguments."""
        arguments = [array.copy() for array in self.arguments]
        call(*arguments)
        return nmse(self.outcome(arguments), self.expected)


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def empty(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.full(shape, np.nan if dtype == "float32" else -9, dtype)


def paged(rng: np.random.Generator, rows: int, pages: int, batched: bool) -> np.ndarray:
    """Shuffled page tables."""
    return rng.permutation(pages * (rows if batched else 1)).astype(np.int32).reshape(-1, pages)


def appends(rng: np.random.Generator) -> Iterator[Case]:
    """rope_append and segment_means, which a row's key goes through."""
    for kv in KV_FORMATS.values():
        for (heads, kv_heads, d), batched in ((HEADS[0], False), (HEADS[1], True)):
            append = Kernel(
                "rope_append", kv.dtype, (heads, kv_heads, d, kv), (("batched", batched),)
            )
            mean = Kernel("segment_means", kv.dtype, (kv_heads, d, kv), (("batched", batched),))
            for n, first in (
                (1, 0),
                (2, 62),
                (7, int(rng.integers(1, 60))),
                (65, 3),
                (4, int(rng.integers(60, 120))),
            ):
                table = paged(rng, n, (first + n) // 64 + 1, batched)
                slots = (
                    rng.integers(0, first + n, n) if batched else np.arange(first, first + n)
                ).astype(np.int32)
                qkv, cos_sin = numbers(rng, n, (heads + 2 * kv_heads) * d), numbers(rng, n, d)
                pools, q = kv.random_pages(rng, table.size, kv_heads, d), empty(n, heads, d)
                after = [pool.copy() for pool in pools]
                turned = rope_append_definition(qkv, cos_sin, slots, table, *after, heads, kv)
                expected = np.concatenate([x.ravel() for x in (*kv.read(*after), turned)])
                allowed = 1e-12 if kv is F32 else 1e-6  # another way at a tie of the rounding
                arguments = [qkv, cos_sin, slots, table, *pools, q]
                yield Case(append, arguments, expected, allowed, partial(appended, kv))
                ends = (slots | 15) if batched else slots
                means, expected = np.zeros((2, table.size, kv_heads, 4, d), np.float32)
                segment_means_definition(ends, table, kv.read(*pools)[0], expected)
                yield Case(mean, [ends, table, pools[0], means], expected)


def appended(kv: KVFormat, arguments: list[np.ndarray]) -> np.ndarray:
    *_, k_pages, v_pages, q = arguments
    return np.concatenate([x.ravel() for x in (*kv.read(k_pages, v_pages), q)])


def moves(rng: np.random.Generator) -> Iterator[Case]:
    for kv in KV_FORMATS.values():
        for _ in range(4):
            pools, table = kv.random_pages(rng, 3, 2, 64), paged(rng, 1, 3, False)
            base, m = int(rng.integers(0, 100)), int(rng.integers(1, 20))
            sources = np.sort(base + rng.choice(60, m, replace=False)).astype(np.int32)
            slots = np.arange(base, base + m, dtype=np.int32)
            after = [pool.copy() for pool in pools]
            move_rows_definition(sources, slots, table, *after, kv)
            expected = np.concatenate([x.ravel() for x in kv.read(*after)])
            kernel = Kernel("move_rows", kv.dtype, (2, 64, kv))
            yield Case(kernel, [sources, slots, table, *pools], expected, 0, partial(moved, kv))


def moved(kv: KVFormat, arguments: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in kv.read(*arguments[-2:])])


def heads_for(kv: KVFormat) -> list[tuple[int, int, int]]:
    """Both groups for the two formats that every device is asked for, the cheaper one for the
    others.
    """
    return HEADS if kv in (F32, F16) else HEADS[:1]


def dense(rng: np.random.Generator) -> Iterator[Case]:
    """attend_prefill and attend_decode."""
    for kv in KV_FORMATS.values():
        for kind, (heads, kv_heads, d) in product(("prefill", "decode"), heads_for(kv)):
            kernel, batched = (
                Kernel(f"attend_{kind}", kv.dtype, (heads, kv_heads, d, kv)),
                kind == "decode",
            )
            contexts = (1, 64, 65, *rng.integers(2, 700, 4).tolist())
            for context in contexts:
                n = min(int(rng.choice(ROWS[:6])), context)
                table = paged(rng, n, -(-context // 64), batched)
                slots = np.sort(rng.choice(context, n, replace=False)).astype(np.int32)
                slots[-1] = context - 1
                q, pools = (
                    numbers(rng, n, heads, d, scale=2),
                    kv.random_pages(rng, table.size, kv_heads, d),
                )
                expected = attend_definition(q, *kv.read(*pools), table, slots)
                yield Case(kernel, [q, *pools, table, slots, empty(n, heads * d)], expected)


def grown(rng: np.random.Generator, most: int = 400) -> Tree:
    """A token tree behind a random number of slots, 1 at least."""
    return make_tree(
        int(rng.integers(1, most)),
        int(rng.integers(1, 65)),
        int(rng.integers(100)),
        deep=bool(rng.integers(2)),
    )


def trees(rng: np.random.Generator) -> Iterator[Case]:
    for kv in KV_FORMATS.values():
        for heads, kv_heads, d in heads_for(kv):
            for _ in range(4):
                tree = grown(rng)
                n, pages = len(tree.parents), -(-(tree.base + len(tree.parents)) // 64)
                q, pools = (
                    numbers(rng, n, heads, d, scale=2),
                    kv.random_pages(rng, pages, kv_heads, d),
                )
                place = [
                    paged(rng, 1, pages, False),
                    np.array([tree.base], np.int32),
                    tree.ancestors,
                ]
                expected = attend_tree_definition(q, *kv.read(*pools), *place)
                kernel = Kernel("attend_tree", kv.dtype, (heads, kv_heads, d, kv))
                yield Case(kernel, [q, *pools, *place, empty(n, heads * d)], expected)


@cache
def whole_means(seed: int, kv_heads: int, d: int, pages: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence's page table, and the means of all its segments."""
    rng = np.random.default_rng(seed)
    table, keys = paged(rng, 1, pages, False)[0], rng.standard_normal((pages, kv_heads, d, 64))
    return table, all_segment_means(keys, table, 64 * pages).astype(np.float32)


def sparse(rng: np.random.Generator) -> Iterator[Case]:
    """score_blocks and attend_blocks."""
    for heads, kv_heads, d in HEADS:
        for batched in (False, True):
            score = Kernel("score_blocks", "f32", (heads, kv_heads, d), (("batched", batched),))
            for pages in (2, *rng.integers(3, 40, 4).tolist()):
                n = int(rng.choice(ROWS[:7]))
                table, means = whole_means(pages, kv_heads, d, pages)
                positions = np.sort(rng.integers(0, 64 * pages, n)).astype(np.int32)
                q = make_queries("random", Family(heads, kv_heads, d, F32, 0), n)
                arguments = [q, means, np.tile(table, (n if batched else 1, 1)), positions]
                expected = score_blocks_definition(*arguments)
                yield Case(score, [*arguments, empty(*expected.shape)], expected, 1e-9)
    for kv in KV_FORMATS.values():
        for (heads, kv_heads, d), batched in ((HEADS[0], False), (HEADS[1], True)):
            options = (("batched", batched),)
            kernel = Kernel(
                "attend_blocks", kv.dtype, (heads, kv_heads, d, kv, BUDGET.blocks), options
            )
            for _ in range(5):
                n, pages = int(rng.choice(ROWS[:6])), int(rng.integers(1, 12))
                table, slots = (
                    paged(rng, n, pages, batched),
                    rng.integers(0, 64 * pages, n).astype(np.int32),
                )
                q, pools = (
                    numbers(rng, n, heads, d, scale=2),
                    kv.random_pages(rng, table.size, kv_heads, d),
                )
                chosen = choose(rng, slots, kv_heads, pages)
                expected = attend_blocks_definition(q, *kv.read(*pools), table, slots, chosen)
                yield Case(kernel, [q, *pools, table, slots, chosen, empty(n, heads * d)], expected)


def choose(
    rng: np.random.Generator, positions: np.ndarray, kv_heads: int, pages: int
) -> np.ndarray:
    """A selection by random scores."""
    scores = rng.uniform(0, 1, (len(positions), kv_heads, pages)).astype(np.float32)
    return select_blocks_definition(
        scores, positions, BUDGET.topk, BUDGET.window_blocks, BUDGET.init_blocks
    )


def sparse_trees(rng: np.random.Generator) -> Iterator[Case]:
    """path_means, score_tree and attend_tree_blocks."""
    for kv in KV_FORMATS.values():
        heads, kv_heads, d = HEADS[0]
        for _ in range(4):
            tree = grown(rng)
            n, pages = len(tree.parents), -(-(tree.base + len(tree.parents)) // 64)
            table, means = whole_means(pages, kv_heads, d, pages)
            pools, place = (
                kv.random_pages(rng, pages, kv_heads, d),
                [table[None], np.array([tree.base], np.int32)],
            )
            read = kv.read(*pools)
            expected = path_means_definition(read[0], means, place[0], place[1], tree.ancestors)
            kernel = Kernel("path_means", kv.dtype, (kv_heads, d, kv))
            yield Case(
                kernel, [pools[0], means, *place, tree.ancestors, empty(*expected.shape)], expected
            )
            q, chosen = (
                numbers(rng, n, heads, d, scale=2),
                choose(rng, tree.positions, kv_heads, pages),
            )
            kernel = Kernel("attend_tree_blocks", kv.dtype, (heads, kv_heads, d, kv, BUDGET.blocks))
            attended = attend_tree_blocks_definition(
                q, *read, place[0], place[1], tree.ancestors, chosen
            )
            yield Case(
                kernel, [q, *pools, *place, tree.ancestors, chosen, empty(n, heads * d)], attended
            )
            if kv is F32:
                arguments = [
                    q,
                    means,
                    expected.astype(np.float32),
                    table[None],
                    tree.positions,
                    place[1],
                ]
                scores = score_tree_definition(*arguments)
                yield Case(
                    Kernel("score_tree", "f32", (heads, kv_heads, d)),
                    [*arguments, empty(*scores.shape)],
                    scores,
                    1e-9,
                )


def selections(rng: np.random.Generator) -> Iterator[Case]:
    for budget in (BUDGET, Budget(topk=8, window_blocks=4, init_blocks=2)):
        limits = budget.topk, budget.window_blocks, budget.init_blocks
        for pages in (1, 5, 13, *rng.integers(14, 400, 5).tolist()):
            positions = rng.integers(0, 64 * pages, 6).astype(np.int32)
            scores = rng.choice(
                np.array([0, 1e-45, 0.25, 0.5, np.inf, *rng.uniform(0, 1, 20)], np.float32),
                (6, 2, pages),
            )
            expected = select_blocks_definition(scores, positions, *limits)
            out = empty(*expected.shape, dtype="int32")
            yield Case(
                Kernel("select_blocks", "f32", (2, *limits)), [scores, positions, out], expected, 0
            )


def records_of(kind: type[Operator], rng: np.random.Generator) -> Iterator[Case]:
    """An operator's own samples of all its variants."""
    draw = Draw(whole=True)
    draw.random = rng
    for record in kind.variants():
        for sample in record.samples(draw):
            yield record_case(record, sample)


def record_case(record: Operator, sample: Sample) -> Case:
    """A sample, and what counts of the definition's answer."""
    inputs = [tiled.array() for tiled in sample.inputs]
    if sample.outputs is None:
        after = record.answers(inputs)
    else:
        after = [*inputs, *(tiled.array() for tiled in sample.outputs)]
    outputs = [empty(*array.shape, dtype=str(array.dtype)) for array in after[len(inputs) :]]
    expected = record.outcome(after)
    kernel = RecordKernel(record)
    return Case(kernel, [*inputs, *outputs], expected, record.grid_limit, record.outcome)


FAMILIES = {
    family.__name__: family
    for family in (
        appends,
        moves,
        dense,
        trees,
        sparse,
        sparse_trees,
        selections,
    )
} | {name: partial(records_of, kind) for name, kind in all_records().items()}


@cache
def all_cases() -> dict[str, list[Case]]:
    """By family; no int8 products where this machine's processor has none."""
    rng = np.random.default_rng(2026)
    return {name: list(family(rng)) for name, family in FAMILIES.items()}
