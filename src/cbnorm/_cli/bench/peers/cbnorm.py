"""cbnorm itself in `cbnorm bench`, through its public functions."""

from functools import partial

import cbnorm
from cbnorm._cli.bench.cases import EPS, MOMENTUM
from cbnorm._cli.bench.peers.peer import Calls, Peer


class Cbnorm(Peer):
    """The library."""

    name = "cbnorm"

    def __init__(self, num_threads):
        self._before = cbnorm.get_num_threads()
        cbnorm.set_num_threads(num_threads)

    def close(self):
        """Give back the number of threads."""
        cbnorm.set_num_threads(self._before)

    def train(self, case):
        mode = "test" if case.operation.name == "test" else "train"
        arguments = (case.gamma, case.beta, EPS, MOMENTUM, case.moving_mean, case.moving_var, mode)
        return _forward(case, cbnorm.batchnorm_forward, *arguments, axis=case.axis)

    test = train

    def backward(self, case):
        return _backward(case, cbnorm.batchnorm_backward, self.train(case))

    def layernorm(self, case):
        return _forward(case, cbnorm.layernorm_forward, case.gamma, case.beta, EPS, axis=case.axis)

    def layernorm_backward(self, case):
        return _backward(case, cbnorm.layernorm_backward, self.layernorm(case))

    def groupnorm(self, case):
        return _forward(case, cbnorm.groupnorm_forward, case.gamma, case.beta, case.num_groups, EPS)

    def groupnorm_backward(self, case):
        return _backward(case, cbnorm.groupnorm_backward, self.groupnorm(case))

    def instancenorm(self, case):
        return _forward(case, cbnorm.instancenorm_forward, case.gamma, case.beta, EPS)

    def instancenorm_backward(self, case):
        return _backward(case, cbnorm.instancenorm_backward, self.instancenorm(case))

    def rmsnorm(self, case):
        return _forward(case, cbnorm.rmsnorm_forward, case.gamma, EPS, axis=case.axis)

    def rmsnorm_backward(self, case):
        return _backward(case, cbnorm.rmsnorm_backward, self.rmsnorm(case))


def _forward(case, function, *arguments, **options):
    call = partial(function, case.x, *arguments, **options)
    return Calls(call, partial(call, out=case.out), lambda result: result[:1])


def _backward(case, function, forward):
    cache = forward.fresh()[1]
    call = partial(function, case.dout, cache)
    return Calls(call, partial(call, out=case.out))
