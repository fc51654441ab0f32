"""Attention of rows over pages: dense, over selected blocks, and of a token tree's rows.

A workgroup takes one row's heads of one KV head and a share of its pages, and folds them in page by
page with a running maximum and sum. Where rows are few, each row is cut into splits that a second
kernel merges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from minicpm_mlc.bundle.manifest import PAGE_SIZE
from minicpm_mlc.ops.attend import AttendDecode, AttendPrefill, Attention
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.kv import KEYS, VALUES, KVFormat
from minicpm_mlc.ops.gpu.attend_last import LastMerge
from minicpm_mlc.ops.gpu.attend_parts import Parts
from minicpm_mlc.ops.gpu.attend_tiles import THREADS as TILE_THREADS
from minicpm_mlc.ops.gpu.attend_tiles import TileFold, Write, fits, most_splits
from minicpm_mlc.ops.gpu.float16_bits import constant
from minicpm_mlc.ops.gpu.intrinsics import tile
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    registers,
    shared,
    store_run,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.sequence import Paged, Place, Sequence
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import LOWEST, Buffer, Expr, T

MAX_SPLITS = 32
LEAST_PAGES = 2  # of a split on tensor cores: a merge of more costs more than a page

Visit = Callable[[Expr], None]  # of a page's number in the sequence, or -1
VisitAll = Callable[[Expr, Expr, Sequence, Expr, Expr, Visit], None]


@dataclass(frozen=True)
class Heads:
    """What a workgroup does: its threads score tokens by their keys, then sum one component of
    every `abreast`-th value.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv: KVFormat

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def abreast(self) -> int:
        return max(1, 128 // self.head_dim)

    @property
    def threads(self) -> int:
        return max(PAGE_SIZE, self.abreast * self.head_dim)

    @property
    def parts(self) -> int:
        """Threads that share a head's scores of a page."""
        return max(1, min(PAGE_SIZE, self.threads // self.group))

    @staticmethod
    def of(operator: Attention) -> Heads:
        heads = operator.num_heads, operator.num_kv_heads, operator.head_dim
        return Heads(*heads, operator.kv)

    def opened(self, k_pages: Buffer, v_pages: Buffer) -> Pools:
        return Pools(self.kv, self.head_dim, k_pages, v_pages)


class Fold:
    """The state of one workgroup: queries, each head's maximum, sum and output, over the pages seen
    so far.
    """

    def __init__(
        self,
        heads: Heads,
        pools: Pools,
        q: Buffer,
        row: Expr,
        kv_head: Expr,
        sequence: Sequence,
        thread: Expr,
    ) -> None:
        self.heads, self.pools, self.kv_head, self.thread = heads, pools, kv_head, thread
        self.sequence = sequence
        group, d = heads.group, heads.head_dim
        self.queries, self.scores = shared((group * d,)), shared((group * PAGE_SIZE,))
        self.maxima, self.sums, self.decay = (shared((group,)) for _ in range(3))
        self.partial = shared((group * heads.parts,))
        self.output = registers(group, value=0.0)
        self.component, self.first = T.Bind(thread % d), T.Bind(thread // d)
        with strided(group * d, thread, heads.threads) as i:
            value = q[row, kv_head * group + i // d, i % d]
            T.buffer_store(self.queries, value * constant(1 / sqrt(d)), [i])
        with T.If(thread < group), T.Then():
            T.buffer_store(self.maxima, T.float32(LOWEST), [thread])
            T.buffer_store(self.sums, T.float32(0), [thread])
        barrier()

    def page(self, number: Expr, count: Expr) -> None:
        """Fold in the first `count` tokens of the sequence's page `number`."""
        place = self.sequence.page(number)
        self._score(place, count)
        self._partial(LOWEST, lambda best, at: T.max(best, self.scores[at]), count)
        barrier()
        with T.If(self.thread < self.heads.group), T.Then():
            self._raise_maximum()
        barrier()
        self._partial(0.0, lambda total, at: total + self._weighed(at), count)
        barrier()
        with T.If(self.thread < self.heads.group), T.Then():
            T.buffer_store(
                self.sums, self.sums[self.thread] * self.decay[self.thread], [self.thread]
            )
            for part in range(self.heads.parts):
                accumulate(
                    self.sums, self.thread, self.partial[self.thread * self.heads.parts + part]
                )
        self._add_values(place, count)
        barrier()

    def _partial(self, start: float, fold: Callable[[Expr, Expr], Expr], count: Expr) -> None:
        """self.partial: what each thread folds of its share of a head's scores, every parts-th;
        fold(so far, place).
        """
        parts, state = self.heads.parts, registers(1, value=start)
        with T.If(self.thread < self.heads.group * parts), T.Then():
            head, part = T.Bind(self.thread // parts), T.Bind(self.thread % parts)
            with strided(count, part, parts) as t:
                T.buffer_store(state, fold(state[0], T.Bind(head * PAGE_SIZE + t)), [0])
            T.buffer_store(self.partial, state[0], [self.thread])

    def _weighed(self, at: Expr) -> Expr:
        """The weight at a place, which replaces its score."""
        weight = T.Bind(T.exp(self.scores[at] - self.maxima[at // PAGE_SIZE]))
        T.buffer_store(self.scores, weight, [at])
        return weight

    def _score(self, place: Place, count: Expr) -> None:
        """A thread takes one token and a share of the components, so that a key is read once for
        all heads.
        """
        d, group, sets = self.heads.head_dim, self.heads.group, self.heads.threads // PAGE_SIZE
        t, part = T.Bind(self.thread % PAGE_SIZE), T.Bind(self.thread // PAGE_SIZE)
        here, sums = T.Bind(T.And(part < sets, t < count)), registers(group, value=0.0)
        with T.If(here), T.Then():
            page, offset = place(t)
            with T.serial(d * part // sets, d * (part + 1) // sets) as i:
                key = T.Bind(self.pools.key(page, self.kv_head, i, offset))
                for h in range(group):
                    accumulate(sums, h, self.queries[h * d + i] * key)
            for h in range(group):
                T.buffer_store(
                    sums, self.pools.scaled_by(sums[h], KEYS, page, self.kv_head, offset), [h]
                )
        for turn in range(sets):
            with T.If(T.And(here, part.equal(turn))), T.Then():
                for h in range(group):
                    at = h * PAGE_SIZE + t
                    T.buffer_store(
                        self.scores, sums[h] if turn == 0 else self.scores[at] + sums[h], [at]
                    )
            barrier()

    def _raise_maximum(self) -> None:
        best = registers(1)
        T.buffer_store(best, self.maxima[self.thread], [0])
        for part in range(self.heads.parts):
            T.buffer_store(
                best, T.max(best[0], self.partial[self.thread * self.heads.parts + part]), [0]
            )
        T.buffer_store(self.decay, T.exp(self.maxima[self.thread] - best[0]), [self.thread])
        T.buffer_store(self.maxima, best[0], [self.thread])

    def _add_values(self, place: Place, count: Expr) -> None:
        """A thread takes one component and every abreast-th token, so that a value is read once for
        all heads.
        """
        with T.If(self.first < self.heads.abreast), T.Then():
            for h in range(self.heads.group):
                T.buffer_store(self.output, self.output[h] * self.decay[h], [h])
            with strided(count, self.first, self.heads.abreast) as t:
                page, offset = place(t)
                value = self.pools.value(page, self.kv_head, self.component, offset)
                value = T.Bind(self.pools.scaled_by(value, VALUES, page, self.kv_head, offset))
                for h in range(self.heads.group):
                    accumulate(self.output, h, self.scores[h * PAGE_SIZE + t] * value)

    def finish(self, write: Write) -> None:
        """What the workgroup has, by its threads."""
        d, whole = self.heads.head_dim, self.queries  # not needed any more
        for turn in range(self.heads.abreast):
            with T.If(self.first.equal(turn)), T.Then():
                for h in range(self.heads.group):
                    at = T.Bind(h * d + self.component)
                    T.buffer_store(
                        whole, self.output[h] if turn == 0 else whole[at] + self.output[h], [at]
                    )
            barrier()
        with strided(self.heads.group * d, self.thread, self.heads.threads) as i:
            head, value = T.Bind(i // d), registers(1)
            T.buffer_store(value, whole[i], [0])
            write(head, T.Bind(i % d), value, self.maxima[head], self.sums[head])


@dataclass(frozen=True)
class AttentionCall:
    """One launch: `sequence(row, thread)` is what a row sees, `visit(row, kv_head, sequence, split,
    splits, fold_page)` goes through the numbers of a split's pages. `factor`: of the sums where
    the outputs are words of quantize_rows.
    """

    heads: Heads
    n: Expr
    q: Buffer
    pools: Pools
    out: Buffer
    sequence: Callable[[Expr, Expr], Sequence]
    visit: VisitAll
    traits: GpuTraits
    factor: int | None

    @property
    def tiles(self) -> bool:
        """Whether tensor cores take this cache."""
        heads = self.heads
        return self.traits.f16_tiles and fits(heads.group, heads.head_dim, heads.kv)

    @property
    def threads(self) -> int:
        """Of a workgroup."""
        return TILE_THREADS if self.tiles else self.heads.threads

    def whole(self) -> None:
        """Every row in one piece."""
        heads = self.heads
        with workgroups(self.n * heads.num_kv_heads, self.threads) as (group, thread):
            row, kv_head = T.Bind(group // heads.num_kv_heads), T.Bind(group % heads.num_kv_heads)

            def write(head: Expr, i: Expr, values: Buffer, _: Expr, total: Expr) -> None:
                column = T.Bind((kv_head * heads.group + head) * heads.head_dim + i)
                for c in range(int(values.shape[0])):
                    T.buffer_store(values, values[c] / total, [c])
                store_run(self.out, values, [row], column)

            self._fold(row, kv_head, thread, T.int64(0), T.int64(1), write)

    def in_splits(self, splits: Expr, most: Expr) -> None:
        """Every row in `splits` of at most so many pieces, then their merge."""
        heads = self.heads
        weigh = _power_of_2 if self.tiles else T.exp
        parts = Parts.of(most, self.n, heads.num_heads, heads.head_dim, weigh)
        with workgroups(splits * self.n * heads.num_kv_heads, self.threads) as (group, thread):
            kv_head, rest = T.Bind(group % heads.num_kv_heads), T.Bind(group // heads.num_kv_heads)
            n = T.Bind(T.Cast("int32", self.n))
            row, split = T.Bind(rest % n), T.Bind(rest // n)

            first = T.Bind(kv_head * heads.group)

            def write(head: Expr, i: Expr, values: Buffer, best: Expr, total: Expr) -> None:
                parts.put([split, row, T.Bind(first + head)], i, values, best, total)

            fold = self._fold(row, kv_head, thread, split, splits, write)
            merged = isinstance(fold, TileFold) and self.traits.meets
            if isinstance(fold, TileFold) and merged:
                pair = T.Bind(row * heads.num_kv_heads + kv_head)
                last = LastMerge(parts, row, pair, first, heads.group, thread, fold.room())
                own, count = (T.Bind(T.Cast("int32", each)) for each in (split, splits))
                last.emit(own, count, self.out, self.factor, self.traits)
        if not merged:
            parts.merge(splits, self.n, self.out, self.factor, self.traits)

    def _fold(
        self, row: Expr, kv_head: Expr, thread: Expr, split: Expr, splits: Expr, write: Write
    ) -> TileFold | Fold:
        """All of a split's pages."""
        sequence = self.sequence(row, thread)
        if self.tiles:
            fold: TileFold | Fold = TileFold(
                self.heads.group, self.pools, self.q, row, kv_head, sequence, thread
            )
        else:
            fold = Fold(self.heads, self.pools, self.q, row, kv_head, sequence, thread)

        def fold_page(number: Expr) -> None:
            page = T.Bind(T.max(number, 0))
            count = T.Bind(T.min(sequence.slot + 1 - page * PAGE_SIZE, PAGE_SIZE))
            # all threads meet at the barriers of every page, even of none
            fold.page(page, T.Bind(T.Select(number < 0, 0, count)))

        self.visit(row, kv_head, sequence, split, splits, fold_page)
        fold.finish(write)
        return fold


def _power_of_2(x: Expr) -> Expr:
    return tile("float32", "power_of_2", x)


def splits_for(pages: Expr, least: int) -> Expr:
    """Pieces of `least` pages or more that keep a GPU busy where rows are few. `pages`: of the
    longest sequence.
    """
    return T.Bind(T.max(T.min((pages + least - 1) // least, MAX_SPLITS), 1))


def all_pages(
    _row: Expr, _kv_head: Expr, sequence: Sequence, split: Expr, splits: Expr, fold_page: Visit
) -> None:
    """A split's equal share of the pages up to the row's own."""
    begin, count = _share(T.Bind(sequence.slot // PAGE_SIZE + 1), split, splits)
    with T.serial(count) as step:
        fold_page(T.Bind(begin + step))


def _share(pages: Expr, split: Expr, splits: Expr) -> tuple[Expr, Expr]:
    """The first of a split's equal share of pages, and how many there are; kept, as a loop would
    divide again in every turn.
    """
    share, of = registers(2, "int32"), T.Bind(T.Cast("int32", splits))
    split = T.Bind(T.Cast("int32", split))
    T.buffer_store(share, pages * split // of, [0])
    T.buffer_store(share, pages * (split + 1) // of - share[0], [1])
    return share[0], share[1]


def selected_pages(
    selected: Buffer,
    row: Expr,
    kv_head: Expr,
    _sequence: Sequence,
    split: Expr,
    splits: Expr,
    fold_page: Visit,
) -> None:
    """A split's share of the row's list, which ends at its first -1."""
    begin, count = _share(T.int32(int(selected.shape[-1])), split, splits)
    with T.serial(count) as step:
        fold_page(T.Bind(selected[row, kv_head, begin + step]))


def attend_prefill(
    operator: AttendPrefill, traits: GpuTraits, dims: Dims, *buffers: Buffer
) -> None:
    """Every row in one piece."""
    launch(call_of(operator, traits, dims, buffers, False, all_pages))


def attend_decode(operator: AttendDecode, traits: GpuTraits, dims: Dims, *buffers: Buffer) -> None:
    """Every row in splits."""
    launch(call_of(operator, traits, dims, buffers, True, all_pages), dims.p)


def launch(call: AttentionCall, pages: Expr | None = None) -> None:
    """In splits of up to so many pages, or every row in one piece."""
    if pages is None:
        call.whole()
    elif call.tiles:
        most = most_splits(call.n, call.heads.num_kv_heads)
        call.in_splits(T.Bind(T.min(most, (pages + LEAST_PAGES - 1) // LEAST_PAGES)), most)
    else:
        splits = splits_for(pages, call.traits.split_pages)
        call.in_splits(splits, splits)


def call_of(
    operator: Attention,
    traits: GpuTraits,
    dims: Dims,
    buffers: tuple[Buffer, ...],
    batched: bool,
    visit: VisitAll,
) -> AttentionCall:
    """The launch over rows that have slots of their own, by AttendPrefill's buffers."""
    *given, page_tables, slots, out = buffers

    def sequence(row: Expr, _: Expr) -> Paged:
        return Paged(page_tables, row if batched else 0, slots, row)

    return made_call(operator, traits, dims.n, (*given, out), sequence, visit)


def made_call(
    operator: Attention,
    traits: GpuTraits,
    n: Expr,
    buffers: tuple[Buffer, ...],
    sequence: Callable[[Expr, Expr], Sequence],
    visit: VisitAll,
) -> AttentionCall:
    """The launch, by queries, pools and outputs."""
    q, k_pages, v_pages, out = buffers
    heads = Heads.of(operator)
    pools, factor = heads.opened(k_pages, v_pages), operator.sum_factor
    return AttentionCall(heads, n, q, pools, out, sequence, visit, traits, factor)
