"""Segment means of a token tree's paths."""

from __future__ import annotations

from minicpm_mlc.bundle.manifest import PAGE_SIZE, SEGMENT_SIZE, SEGMENTS
from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.cpu.segment_means import write_mean
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.tree import TAIL_PAGES, TreePath, gather_keys
from minicpm_mlc.ops.path_means import PathMeans
from minicpm_mlc.ops.tir import Buffer, Expr, T


def path_means(
    operator: PathMeans,
    _: CpuTraits,
    dims: Dims,
    k_pages: Buffer,
    k_means: Buffer,
    page_table: Buffer,
    base: Buffer,
    ancestors: Buffer,
    out: Buffer,
) -> None:
    """A row and key/value head a task."""
    kv, head_dim, num_kv_heads = operator.kv, operator.head_dim, operator.num_kv_heads

    def copy(number: Expr, kv_head: Expr, segment: Expr, to: list[Expr]) -> None:
        """The mean of a committed segment."""
        page = T.Bind(T.Cast("int64", page_table[0, number]))
        with T.serial(head_dim) as i:
            T.buffer_store(out, k_means[page, kv_head, segment, i], [*to, segment, i])

    def write(row: Expr, kv_head: Expr) -> None:
        path = TreePath.of(page_table, base, ancestors, row)
        keys = T.alloc_buffer((1, *kv.key_shape(1, head_dim)), kv.storage)
        with T.serial(TAIL_PAGES) as tail:
            number = T.Bind(path.tail + tail)
            finished = T.Bind(
                T.max(T.min((path.slot + 1 - number * PAGE_SIZE) // SEGMENT_SIZE, SEGMENTS), 0)
            )
            with T.If(finished > 0), T.Then():
                gather_keys(kv, keys, head_dim, path, number, kv_head, k_pages)
            with T.serial(SEGMENTS) as segment, T.If(segment < finished):
                with T.Then(), T.If(number * PAGE_SIZE + (segment + 1) * SEGMENT_SIZE <= path.base):
                    with T.Then():
                        copy(number, kv_head, segment, [row, tail, kv_head])
                    with T.Else():
                        write_mean(kv, out, keys, head_dim, segment, (row, tail, kv_head), (0, 0))
                with T.Else(), T.serial(head_dim) as i:
                    T.buffer_store(out, T.float32(0), [row, tail, kv_head, segment, i])

    with T.parallel(dims.n * num_kv_heads) as task:
        write(T.Bind(task // num_kv_heads), T.Bind(task % num_kv_heads))
