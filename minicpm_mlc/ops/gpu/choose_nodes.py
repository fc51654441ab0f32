"""From one level of a draft tree to the next.

A workgroup for each node to choose: all find the places of all guesses, of which there are few,
and each takes the guess of its own.
"""

from __future__ import annotations

from minicpm_mlc.ops.build import Dims
from minicpm_mlc.ops.choose_nodes import ChooseNodes
from minicpm_mlc.ops.formats.draft_tree import Level, ordered
from minicpm_mlc.ops.gpu.kernel import (
    accumulate,
    barrier,
    registers,
    shared,
    strided,
    workgroups,
)
from minicpm_mlc.ops.gpu.traits import GpuTraits
from minicpm_mlc.ops.tir import Buffer, T


def choose_nodes(
    operator: ChooseNodes, _: GpuTraits, dims: Dims, ids: Buffer, values: Buffer, *buffers: Buffer
) -> None:
    """The first workgroup writes the guesses into the tree, where none reads at this level."""
    hidden, *level, tokens, next_hidden, positions, slots, ancestors = buffers
    outputs = tokens, positions, slots, ancestors
    with workgroups(dims.n) as (place, thread):
        here = Level(dims, operator.vocab, [ids, values, *level], outputs)
        reaches = shared((operator.guesses**2,), "int32")
        chosen, rank = shared((1,), "int32"), registers(1, "int32")
        with strided(here.count, thread) as guess:
            reach = here.reach(guess)
            T.buffer_store(reaches, ordered(reach), [guess])
            with T.If(place.equal(0)), T.Then():
                here.note(guess, reach)
        barrier()
        with strided(here.count, thread) as guess:
            T.buffer_store(rank, 0, [0])
            own = T.Bind(reaches[guess])
            with T.serial(here.count) as other:
                equal = T.And(reaches[other].equal(own), other < guess)
                accumulate(rank, 0, T.Select(T.Or(reaches[other] > own, equal), 1, 0))
            with T.If(rank[0].equal(place)), T.Then():
                T.buffer_store(chosen, guess, [0])
        barrier()
        best = T.Bind(chosen[0])
        with T.If(thread.equal(0)), T.Then():
            here.choose(place, best)
        source = T.Bind(best // here.n)
        with strided(operator.hidden, thread) as i:
            T.buffer_store(next_hidden, hidden[source, i], [place, i])
