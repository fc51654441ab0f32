"""The mean of each finished segment of 16 keys."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.kv import KEYS
from minicpm_mlc.ops.gpu.kernel import accumulate, registers, strided, workgroups
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.segment_means import SegmentMeans
from minicpm_mlc.ops.tir import Buffer, T


def segment_means(
    operator: SegmentMeans,
    _: GpuTraits,
    dims: Dims,
    slots: Buffer,
    page_tables: Buffer,
    k_pages: Buffer,
    k_means: Buffer,
) -> None:
    """A row and key/value head a workgroup; a thread sums components."""
    pools, heads = Pools(operator.kv, operator.head_dim, k_pages), operator.num_kv_heads
    with workgroups(dims.n * heads) as (group, thread):
        row, head = T.Bind(group // heads), T.Bind(group % heads)
        slot = T.Bind(slots[row])
        table = row if operator.batched else 0
        with (
            T.If(slot % SEGMENT_SIZE == SEGMENT_SIZE - 1),
            T.Then(),
            strided(operator.head_dim, thread) as i,
        ):
            page = T.Bind(T.Cast("int64", page_tables[table, slot // PAGE_SIZE]))
            segment = T.Bind(slot % PAGE_SIZE // SEGMENT_SIZE)
            total = registers(1, value=0.0)
            with T.serial(SEGMENT_SIZE) as t:
                offset = T.Bind(segment * SEGMENT_SIZE + t)
                key = pools.key(page, head, i, offset)
                accumulate(total, 0, pools.scaled_by(key, KEYS, page, head, offset))
            mean = total[0] * T.float32(1 / SEGMENT_SIZE)
            T.buffer_store(k_means, mean, [page, head, segment, i])
