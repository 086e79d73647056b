"""Batch normalization of a batch whose samples lie in several processes: each sends counts, means and sums, not images.

Run as `python examples/ranks.py`. The pipes stand for whatever carries objects between processes, such as MPI: moments
and sums are pickled, and `sum` merges them. Prints the largest difference from the whole batch in one process.
"""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cbnorm
from cbnorm import parts

SAMPLES = (5, 1, 0, 10)  # of each rank


def merge(mine: Any, pipe: Connection) -> Any:
    """The sum over all ranks, in the same order everywhere, so that each has the same bits."""
    pipe.send(mine)
    return sum(pipe.recv())


def rank(x: NDArray[np.float64], dout: NDArray[np.float64], pipe: Connection) -> None:
    """A forward and a backward pass of this rank's part; x is (samples, channels, height, width)."""
    whole = merge(parts.moments(x), pipe)
    y = parts.normalize(x, whole)
    sums = merge(parts.gradient_sums(dout, x, whole), pipe)
    pipe.send((y, parts.input_gradient(dout, x, whole, sums)))


def run(x: NDArray[np.float64], dout: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Normalize a batch that is dealt out to the ranks; return y and dx of all samples."""
    context, cuts = multiprocessing.get_context("spawn"), np.cumsum(SAMPLES)[:-1]
    pipes, ranks = [], []
    for part in zip(np.split(x, cuts), np.split(dout, cuts), strict=True):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        ranks.append(context.Process(target=rank, args=(*part, theirs)))
        ranks[-1].start()
        theirs.close()
    for _ in ("moments", "sums"):
        everyone = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(everyone)
    results = [pipe.recv() for pipe in pipes]
    for process in ranks:
        process.join()
    return [np.concatenate(each) for each in zip(*results, strict=True)]


if __name__ == "__main__":
    x, dout = np.random.default_rng(0).standard_normal((2, sum(SAMPLES), 8, 7, 7))
    y, dx = run(x, dout)
    want, cache, *_ = cbnorm.batchnorm_forward(x)
    want_dx, *_ = cbnorm.batchnorm_backward(dout, cache)
    print(f"{max(np.abs(y - want).max(), np.abs(dx - want_dx).max()):.0e}")
