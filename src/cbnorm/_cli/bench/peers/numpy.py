"""The peer `numpy` of `cbnorm bench`: the reference formulas, which are also the truth where run in float64."""

from functools import partial

import numpy as np

from cbnorm._cli import formulas
from cbnorm._cli.bench.cases import EPS, MOMENTUM
from cbnorm._cli.bench.peers.peer import Calls, Peer


class NumPy(Peer):
    """The formulas, in the dtype of the arrays."""

    name = "numpy"
    note = "one thread"

    def _bind(self, formula, *arrays, **settings):
        """Calls of a formula: what a peer that compiles them replaces."""
        return Calls(partial(formula, *arrays, **settings))

    def _forward(self, formula, *arrays, **settings):
        """Calls of a formula without its cache, so that a compiler leaves out what only the cache needs."""
        return self._bind(partial(_without_cache, formula), *arrays, **settings)

    def train(self, case):
        axes, gamma, beta = _broadcast(case, case.gamma, case.beta)
        moving = (case.moving_mean, case.moving_var)
        return self._forward(formulas.train, case.x, gamma, beta, *moving, axes=axes, eps=EPS, momentum=MOMENTUM)

    def test(self, case):
        moving = (each.astype(case.x.dtype) for each in (case.moving_mean, case.moving_var))
        _, *parameters = _broadcast(case, *moving, case.gamma, case.beta)
        return self._forward(formulas.normalize, case.x, *parameters, eps=EPS)

    def backward(self, case):
        axes, gamma, beta = _broadcast(case, case.gamma, case.beta)
        cache = formulas.forward(case.x, gamma, beta, axes=axes, eps=EPS)[1]
        return self._bind(formulas.batch_backward, case.dout, cache, gamma, axes=axes)

    def layernorm(self, case):
        return self._forward(formulas.forward, case.x, case.gamma, case.beta, axes=_trailing(case), eps=EPS)

    def layernorm_backward(self, case):
        axes, leading = _trailing(case), tuple(range(case.axis))
        cache = formulas.forward(case.x, case.gamma, case.beta, axes=axes, eps=EPS)[1]
        return self._bind(formulas.rows_backward, case.dout, cache, case.gamma, axes=axes, parameter_axes=leading)

    def groupnorm(self, case):
        x, _, gamma, beta, axes = _grouped(case)
        return self._forward(formulas.forward, x, gamma, beta, axes=axes, eps=EPS)

    def groupnorm_backward(self, case):
        x, dout, gamma, beta, axes = _grouped(case)
        cache = formulas.forward(x, gamma, beta, axes=axes, eps=EPS)[1]
        apart = (0, *range(3, x.ndim))  # samples and positions
        return self._bind(formulas.rows_backward, dout, cache, gamma, axes=axes, parameter_axes=apart)

    instancenorm, instancenorm_backward = groupnorm, groupnorm_backward

    def rmsnorm(self, case):
        return self._forward(formulas.rms_forward, case.x, case.gamma, axes=_trailing(case), eps=EPS)

    def rmsnorm_backward(self, case):
        axes, leading = _trailing(case), tuple(range(case.axis))
        cache = formulas.rms_forward(case.x, case.gamma, axes=axes, eps=EPS)[1]
        return self._bind(formulas.rms_backward, case.dout, cache, case.gamma, axes=axes, parameter_axes=leading)


class NumPyCopy:
    """NumPy's copy of one array into another: the limit where PyTorch is not installed."""

    words = "NumPy's copyto, 1 thread"

    def __init__(self, num_threads):
        pass

    def call(self, source, target):
        """The call to time."""
        return partial(np.copyto, target, source)

    def close(self):
        """Nothing to undo."""


def _without_cache(formula, *arrays, **settings):
    y, _, *moving = formula(*arrays, **settings)
    return y, *moving


def _broadcast(case, *parameters):
    """All axes but that of the channels, and the parameters shaped to broadcast along it."""
    axes = tuple(i for i in range(case.x.ndim) if i != case.axis)
    return axes, *(np.expand_dims(each, axes) for each in parameters)


def _trailing(case):
    return tuple(range(case.axis, case.x.ndim))


def _grouped(case):
    """x, dout, gamma and beta as (N, groups, channels of a group, *), and the axes of one group."""
    samples, channels, *positions = case.x.shape
    grouped = (case.groups, channels // case.groups)
    x, dout = (each.reshape(samples, *grouped, *positions) for each in (case.x, case.dout))
    gamma, beta = (each.reshape(grouped + (1,) * len(positions)) for each in (case.gamma, case.beta))
    return x, dout, gamma, beta, tuple(range(2, x.ndim))
