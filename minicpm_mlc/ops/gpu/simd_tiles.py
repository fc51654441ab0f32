"""64 rows of x by 64 of W on matrices of 8 x 8 float32 that the 32 threads of an Apple GPU's
simdgroup hold together (`GpuTraits.simd_tiles`).

Four simdgroups take a quarter each, 4 x 4 matrices; x and W come from shared memory.
"""

from __future__ import annotations

from tvm.script import tirx as T

from minicpm_mlc.ops.formats.weights import GROUP
from minicpm_mlc.ops.gpu.kernel import barrier
from minicpm_mlc.ops.tir import Buffer, Expr

SIDE = 8  # of a matrix
TILE = 64  # rows of x, and of W, of a workgroup
QUARTER = TILE // 2
ACROSS = QUARTER // SIDE  # matrices of a simdgroup's sums, along each side


class SimdTiles:
    """A simdgroup's sums so far. `place`: shared float32 [64 * 64], whose first half has 64 rows of
    x [64, 32] while groups of columns are added, the other one 64 of W by column [32, 64].
    """

    def __init__(self, place: Buffer, thread: Expr) -> None:
        group = T.Bind(thread // 32)
        self.place, self.down = place, T.Bind(group // 2 * QUARTER)
        self.right = T.Bind(group % 2 * QUARTER)
        self.x, self.w = _matrices(ACROSS), _matrices(ACROSS)
        self.sums = _matrices(ACROSS * ACROSS)
        for i in range(ACROSS * ACROSS):
            _emit(T.metal.make_filled_simdgroup_matrix(self.sums.data, i, T.float32(0), SIDE, SIDE))

    def add(self) -> None:
        """The group of columns that lies in shared memory."""
        for k in range(0, GROUP, SIDE):
            for i in range(ACROSS):
                x_at = (self.down + i * SIDE) * GROUP + k
                w_at = TILE * GROUP + k * TILE + self.right + i * SIDE
                for to, at, stride in ((self.x, x_at, GROUP), (self.w, w_at, TILE)):
                    source = T.address_of(self.place[T.Bind(at)])
                    _emit(T.metal.simdgroup_load(to.data, i, source, stride, SIDE, SIDE, False))
            for i in range(ACROSS):
                for j in range(ACROSS):
                    own = self.sums.data, i * ACROSS + j
                    factors = self.x.data, i, self.w.data, j
                    _emit(T.metal.simdgroup_multiply_accumulate(*own, *factors, *own))

    def store(self) -> None:
        """All sums [64, 64] to shared memory, whose readers are through, behind a barrier."""
        for i in range(ACROSS):
            for j in range(ACROSS):
                at = T.Bind((self.down + i * SIDE) * TILE + self.right + j * SIDE)
                to = T.address_of(self.place[at])
                own = self.sums.data, i * ACROSS + j
                _emit(T.metal.simdgroup_store(*own, to, TILE, SIDE, SIDE, False))
        barrier()


def _matrices(count: int) -> Buffer:
    return T.alloc_buffer((count * SIDE * SIDE,), "float32", scope="metal.simdgroup")


def _emit(call: Expr) -> None:
    T.evaluate(call)
