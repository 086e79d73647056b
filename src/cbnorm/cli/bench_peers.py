"""What a peer of `cbnorm bench` is, and cbnorm itself as one.

A peer is a class with the `name` under which it is imported, made with the number of threads it may use.
Its `operations` map names of `bench_cases.OPERATIONS` to a function of a Case that gives Calls, or None
where the peer cannot do that case. To add one, write its file and name it in `bench.PEERS`; whatever it
needs is imported in its constructor.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

import cbnorm
from cbnorm.cli.bench_cases import EPS, MOMENTUM


class Calls(NamedTuple):
    """The calls to time, without arguments, for one Case."""

    fresh: Callable
    out: Callable | None = None  # the same into the Case's `out`
    arrays: Callable = lambda result: result  # what a call gave -> y, or dx, dgamma, dbeta, as NumPy arrays


def first(result):
    """Y alone, of what a forward call gave."""
    return result[:1]


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
        self.operations = {}

    def calls(self, case):
        """Calls for a case, or None where this peer cannot do it."""
        operation = self.operations.get(case.operation)
        return operation and operation(case)

    def matmul(self, case):
        """The call that multiplies x by weights, as a network does between two normalizations."""
        return partial(np.matmul, *factors(case))

    def close(self):
        """Undo what the constructor set for the whole process."""

    def version(self):
        """As the package's metadata has it."""
        return version(self.name)


class Cbnorm(Peer):
    """The library itself, through its public functions."""

    name = "cbnorm"

    def __init__(self, num_threads):
        self._before = cbnorm.get_num_threads()
        cbnorm.set_num_threads(num_threads)
        self.operations = {
            "train": self._batchnorm,
            "test": self._batchnorm,
            "backward": self._batchnorm_backward,
            "layernorm": self._layernorm,
            "layernorm-backward": self._layernorm_backward,
            "groupnorm": self._groupnorm,
            "groupnorm-backward": self._groupnorm_backward,
            "instancenorm": self._instancenorm,
            "instancenorm-backward": self._instancenorm_backward,
            "rmsnorm": self._rmsnorm,
            "rmsnorm-backward": self._rmsnorm_backward,
        }

    def close(self):
        """Give back the number of threads."""
        cbnorm.set_num_threads(self._before)

    def _forward(self, case, function, *arguments, **options):
        call = partial(function, case.x, *arguments, **options)
        return Calls(call, partial(call, out=case.out), first)

    def _backward(self, case, function, cache):
        call = partial(function, case.dout, cache)
        return Calls(call, partial(call, out=case.out))

    def _batchnorm(self, case):
        moving = (case.moving_mean, case.moving_var, case.operation)
        arguments = (case.gamma, case.beta, EPS, MOMENTUM, *moving)
        return self._forward(case, cbnorm.batchnorm_forward, *arguments, axis=case.axis)

    def _batchnorm_backward(self, case):
        cache = cbnorm.batchnorm_forward(case.x, case.gamma, case.beta, EPS, axis=case.axis)[1]
        return self._backward(case, cbnorm.batchnorm_backward, cache)

    def _layernorm(self, case):
        return self._forward(case, cbnorm.layernorm_forward, case.gamma, case.beta, EPS, axis=case.axis)

    def _layernorm_backward(self, case):
        cache = self._layernorm(case).fresh()[1]
        return self._backward(case, cbnorm.layernorm_backward, cache)

    def _groupnorm(self, case):
        return self._forward(case, cbnorm.groupnorm_forward, case.gamma, case.beta, case.num_groups, EPS)

    def _groupnorm_backward(self, case):
        return self._backward(case, cbnorm.groupnorm_backward, self._groupnorm(case).fresh()[1])

    def _instancenorm(self, case):
        return self._forward(case, cbnorm.instancenorm_forward, case.gamma, case.beta, EPS)

    def _instancenorm_backward(self, case):
        return self._backward(case, cbnorm.instancenorm_backward, self._instancenorm(case).fresh()[1])

    def _rmsnorm(self, case):
        return self._forward(case, cbnorm.rmsnorm_forward, case.gamma, EPS, axis=case.axis)

    def _rmsnorm_backward(self, case):
        return self._backward(case, cbnorm.rmsnorm_backward, self._rmsnorm(case).fresh()[1])
