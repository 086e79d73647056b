"""What ranks cost, measured: the tables of docs/scaling.md.

    for n in 1 2 4; do mpiexec -n $n python -m mpi4py examples/mpi_scaling.py; done

A step is a forward and a backward pass in training mode, float32, one thread a rank, and takes as long as its slowest
rank; the fastest of many counts. "alone" is a step without the others, "messages" one of parts that have no rows, less
the same alone: sending, waiting and merging. The model says that a step is the sum of both. One rank alone prints what
it takes to merge the messages of 2, 4 and 64, too.
"""

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

import cbnorm
import cbnorm.mpi
from cbnorm._distributed import merge_ranks, message_of  # as cbnorm.mpi has them: there are not 64 ranks to ask here

CASES = ((2048, 64), (256, 512), (64, 2048))  # rows of each rank, channels
REPEATS = 200
CHUNKS = 4
comm, alone = MPI.COMM_WORLD, MPI.COMM_SELF


def fastest(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Microseconds, of the slowest rank."""
    times = np.empty(repeats)
    for number in range(repeats):
        comm.Barrier()
        start = time.perf_counter()
        call()
        times[number] = time.perf_counter() - start
    slowest = np.empty(repeats)
    comm.Allreduce(times, slowest, MPI.MAX)
    return 1e6 * float(slowest.min())


def make_step(x: NDArray[np.float32], over: MPI.Intracomm) -> Callable[[], None]:
    """A forward and a backward pass, without the time that room for the results takes."""
    y = np.empty_like(x)

    def step() -> None:
        cache = cbnorm.mpi.batchnorm_forward(x, out=y, comm=over)[1]
        cbnorm.mpi.batchnorm_backward(x, cache, out=y, comm=over)

    return step


def merging(ranks: int, channels: int, equal: bool) -> float:
    """Microseconds that a rank takes to merge the messages of a forward pass, of equal counts or not."""
    rng = np.random.default_rng(0)
    found = [cbnorm.parts.moments(rng.standard_normal((8 if equal else 8 + rank, channels))) for rank in range(ranks)]
    rows = [message_of(part, "") for part in found]
    return fastest(lambda: merge_ranks(lambda message: rows, lambda: (found[0], "")), 50)


def main() -> None:
    """Print the tables of this number of ranks; rank 0 does."""
    rng = np.random.default_rng(comm.rank)
    lines = []
    for rows, channels in CASES:
        x = rng.standard_normal((rows, channels), np.float32)
        by_itself, nothing, nothing_alone, together = (
            fastest(make_step(part, over)) for part, over in ((x, alone), (x[:0], comm), (x[:0], alone), (x, comm))
        )
        messages = nothing - nothing_alone
        sent = (comm.size - 1) * 8 * (5 * channels + 4)
        model = by_itself + messages
        lines.append(
            f"| {comm.size} | {rows}×{channels} | {sent:,} | {by_itself:.0f} | {messages:.0f} | {model:.0f} "
            f"| {together:.0f} | {together / model:.2f} |"
        )

    chunk = rng.standard_normal((4096, 64), np.float32)
    read = fastest(lambda: cbnorm.moments(chunk))
    part = cbnorm.moments(chunk)
    merge = fastest(lambda: part + part)

    def pass_over_chunks() -> None:
        total = part
        for _ in range(CHUNKS):
            total = total + cbnorm.moments(chunk)
        cbnorm.mpi.moments(total.mean[None], comm=comm)  # stands for the one message of the whole pass

    streamed = fastest(pass_over_chunks, 50)
    model = CHUNKS * (read + merge)
    if comm.rank == 0:
        print("\n".join(lines))
        if comm.size == 1:
            for channels in (64, 512, 2048):
                times = [merging(ranks, channels, equal) for equal in (True, False) for ranks in (2, 4, 64)]
                print(f"| {channels} |", " | ".join(f"{each:.0f}" for each in times), "|")
        print(
            f"chunks of 1 MiB on {comm.size} ranks, each: read {read:.0f} µs ({chunk.nbytes / read / 1e3:.1f} GB/s), "
            f"merged {merge:.0f} µs; {CHUNKS} of them: model {model / 1e3:.1f} ms, measured {streamed / 1e3:.1f} ms"
        )


if __name__ == "__main__":
    with cbnorm.threads(1):
        main()
