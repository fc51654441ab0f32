"""Segment means of a token tree's paths."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.formats.kv import KEYS
from minicpm_mlc.ops.formats.tree import TAIL_PAGES
from minicpm_mlc.ops.gpu.kernel import accumulate, registers, strided, workgroups
from minicpm_mlc.ops.gpu.pools import Pools
from minicpm_mlc.ops.gpu.sequence import PathSequence, Place
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.gpu.windows import THREADS
from minicpm_mlc.ops.path_means import PathMeans
from minicpm_mlc.ops.tir import Buffer, Expr, T


def path_means(
    operator: PathMeans,
    _: GpuTraits,
    dims: Dims,
    k_pages: Buffer,
    k_means: Buffer,
    page_table: Buffer,
    base: Buffer,
    ancestors: Buffer,
    out: Buffer,
) -> None:
    """A row and key/value head a workgroup; a thread sums components."""
    head_dim, heads = operator.head_dim, operator.num_kv_heads
    pools = Pools(operator.kv, head_dim, k_pages)

    def add_keys(mean: Buffer, place: Place, s: Expr, head: Expr, i: Expr) -> None:
        with T.serial(SEGMENT_SIZE) as t:
            page, offset = place(T.Bind(s % SEGMENTS * SEGMENT_SIZE + t))
            key = pools.key(page, head, i, offset)
            accumulate(mean, 0, pools.scaled_by(key, KEYS, page, head, offset))
        T.buffer_store(mean, mean[0] * T.float32(1 / SEGMENT_SIZE), [0])

    with workgroups(dims.n * heads, THREADS) as (task, thread):
        row, head = T.Bind(task // heads), T.Bind(task % heads)
        path = PathSequence(page_table, base, ancestors, row, thread)
        first = T.Bind(path.base // PAGE_SIZE * SEGMENTS)
        with T.serial(TAIL_PAGES * SEGMENTS) as s, strided(head_dim, thread, THREADS) as i:
            segment = T.Bind(first + s)
            mean = registers(1, value=0.0)
            with T.If((segment + 1) * SEGMENT_SIZE <= path.base):
                with T.Then():
                    page = page_table[0, segment // SEGMENTS]
                    T.buffer_store(mean, k_means[page, head, s % SEGMENTS, i], [0])
                with T.Else(), T.If((segment + 1) * SEGMENT_SIZE <= path.slot + 1), T.Then():
                    add_keys(mean, path.page(segment // SEGMENTS), s, head, i)
            T.buffer_store(out, mean[0], [row, s // SEGMENTS, head, s % SEGMENTS, i])
