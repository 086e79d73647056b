"""cbnorm itself in `cbnorm bench`, through its public functions."""

from functools import partial

import cbnorm
from cbnorm.cli.bench.cases import EPS, MOMENTUM
from cbnorm.cli.bench.peers.peer import Calls, Peer, first


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
