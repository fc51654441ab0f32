"""From one level of a draft tree to the next."""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.choose_nodes import ChooseNodes
from minicpm_mlc.ops.cpu import vector
from minicpm_mlc.ops.cpu.traits import CpuTraits
from minicpm_mlc.ops.formats.draft_tree import Level, ordered
from minicpm_mlc.ops.tir import Buffer, Expr, T


def choose_nodes(
    operator: ChooseNodes, _: CpuTraits, dims: Dims, ids: Buffer, values: Buffer, *buffers: Buffer
) -> None:
    """One task: there are few guesses, and the best left is taken n times."""
    hidden, *level, tokens, next_hidden, positions, slots, ancestors = buffers
    outputs = tokens, positions, slots, ancestors
    here = Level(dims, operator.vocab, [ids, values, *level], outputs)
    vectors = vector.vectors_in(operator.hidden, "hidden_size")
    left = T.alloc_buffer((operator.guesses**2,), "int32")
    taken = T.alloc_buffer((operator.guesses**2,), "int32")
    with T.serial(here.count) as guess:
        reach = here.reach(guess)
        here.note(guess, reach)
        T.buffer_store(left, ordered(reach), [guess])
        T.buffer_store(taken, 0, [guess])
    with T.serial(here.n) as place:
        best = best_of(left, taken, here.count)
        T.buffer_store(taken, 1, [best])
        here.choose(place, best)
        source = T.Bind(best // here.n)
        with T.serial(vectors) as j:
            vector.store(next_hidden, vector.load(hidden, source, j * 16), place, j * 16)


def best_of(left: Buffer, taken: Buffer, count: Expr) -> Expr:
    """The place of the largest number that is not taken, of equal ones the first."""
    best = T.alloc_buffer((1,), "int32")
    T.buffer_store(best, -1, [0])
    with T.serial(count) as i:
        better = T.Or(best[0] < 0, left[i] > left[T.max(best[0], 0)])
        with T.If(T.And(taken[i].equal(0), better)), T.Then():
            T.buffer_store(best, i, [0])
    return T.Bind(best[0])
