"""The mean of each finished segment of 16 keys."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.kv import KEYS, KVFormat
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.tir import Buffer, Expr, T


def segment_means(
    operator: SegmentMeans,
    _: CpuTraits,
    dims: Dims,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    k_means: Buffer,
) -> None:
    """A row a task."""

    def row(r: Expr) -> None:
        slot = T.Bind(slots[r])
        table = r if operator.batched else 0
        with T.If(slot % SEGMENT_SIZE == SEGMENT_SIZE - 1), T.Then():
            page = T.Bind(T.Cast("int64", page_tables[table, slot // PAGE_SIZE]))
            segment = T.Bind(T.Cast("int64", slot % PAGE_SIZE // SEGMENT_SIZE))
            with T.serial(operator.num_kv_heads) as head:
                place = page, head
                write_mean(operator.kv, k_means, k_pages, operator.head_dim, segment, place, place)

    vector.spread(dims.n, row, serial_below=64)


def write_mean(
    kv: KVFormat,
    k_means: Buffer,
    k_pages: Buffer,
    head_dim: int,
    segment: Expr,
    to: tuple[Expr, ...],
    at: tuple[Expr, Expr],
) -> None:
    """k_means[*to, segment, :] = the mean of a segment of the keys k_pages[*at], of int8 keys as
    they are read.
    """
    scales = kv.cpu_scales(k_pages, head_dim, KEYS, *at, segment * SEGMENT_SIZE)
    with T.serial(head_dim) as i:
        keys = kv.cpu_load(k_pages, *at, i, segment * SEGMENT_SIZE)
        total = vector.fold(lambda a, b: a + b, T.Bind(keys if scales is None else keys * scales))
        T.buffer_store(k_means, total * T.float32(1 / SEGMENT_SIZE), [*to, segment, i])
