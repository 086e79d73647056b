"""What a peer of `cbnorm bench` is.

A peer is a class with the `name` under which it is imported, made with the number of threads it may use, and
with a method for each of `cases.OPERATIONS` that it can do, by its name: of a Case it gives Calls, or None
where it cannot do that case. To add one, write its file and name it in `peers.PEERS`; whatever it needs is
imported in its constructor.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import numpy as np


class Calls(NamedTuple):
    """The calls to time, without arguments, for one Case."""

    fresh: Callable
    out: Callable | None = None  # the same into the Case's `out`
    arrays: Callable = lambda result: result  # what a call gave -> y, or dx, dgamma, dbeta, as NumPy arrays


def factors(case):
    """The batch and weights from channels to as many channels, in the order in which they are multiplied."""
    size = case.x.shape[case.axis]
    weights = np.full((size, size), 1 / size, case.x.dtype)
    if case.axis == case.x.ndim - 1:
        return case.x.reshape(-1, size), weights
    return weights, case.x.reshape(-1, size, math.prod(case.x.shape[case.axis + 1 :]))


class Peer:
    """What peers have in common."""

    name = ""
    needs = ()  # packages to import, where that is more than `name`
    pool = "openmp"  # whose threads it runs on; also for those that have none
    note = ""  # what a reader of its numbers must know

    def __init__(self, num_threads):
        pass

    def calls(self, case):
        """Calls for a case, or None where this peer cannot do it."""
        operation = getattr(self, case.operation.method, None)
        return operation and operation(case)

    def matmul(self, case):
        """The call that multiplies x by weights, as a network does between two normalizations."""
        return partial(np.matmul, *factors(case))

    def close(self):
        """Undo what the constructor set for the whole process."""

    def version(self):
        """As the package's metadata has it."""
        return version(self.name)
