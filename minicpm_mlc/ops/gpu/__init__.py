"""The operators for GPUs: portable TIR with explicit workgroups, each computing what the definition
of its CPU twin says.

Nothing here assumes that threads run in lockstep: what one thread writes for another is read behind
a barrier.
"""
