"""The ranks of an MPI communicator, and how they send each other messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cbnorm._distributed import Message

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Ranks:
    """How the ranks of a communicator send each other messages: on a copy of it, which no one else receives from."""

    def __init__(self, comm: Intracomm) -> None:
        self._comm = comm.Dup()
        self._rank, self._size = comm.Get_rank(), comm.Get_size()

    def gather(self, message: Message) -> list[Message]:
        """The messages of all ranks, in their order.

        A message is as long as its sender made it. A collective such as Allgather must know that beforehand, and a rank
        whose arguments are wrong does not: it would take a first round for the lengths.
        """
        from mpi4py import MPI

        others = [rank for rank in range(self._size) if rank != self._rank]
        sent = [self._comm.Isend([message, MPI.DOUBLE], rank) for rank in others]
        rows = {self._rank: message}
        status = MPI.Status()
        for rank in others:
            arrived = self._comm.Mprobe(rank, status=status)
            rows[rank] = np.empty(status.Get_count(MPI.DOUBLE))
            arrived.Recv([rows[rank], MPI.DOUBLE])
        MPI.Request.Waitall(sent)
        return [rows[rank] for rank in range(self._size)]

    def free(self) -> None:
        """Give the copy back."""
        self._comm.Free()


_key = None  # under which a communicator keeps its Ranks, until it is freed


def ranks_of(comm: Intracomm | None) -> Ranks:
    """Those of a communicator, or of the world: made at the first call, by all ranks."""
    global _key
    from mpi4py import MPI

    if comm is None:
        comm = MPI.COMM_WORLD
    elif not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, got {type(comm).__name__}")
    elif comm == MPI.COMM_NULL:
        raise ValueError("comm: expected a communicator that this rank is in, got MPI.COMM_NULL")
    if _key is None:
        _key = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, ranks: ranks.free())
    ranks = comm.Get_attr(_key)
    if ranks is None:
        ranks = Ranks(comm)
        comm.Set_attr(_key, ranks)
    return ranks
