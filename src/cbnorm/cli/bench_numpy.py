"""The peer `numpy` of `cbnorm bench`: the reference formulas, which are also the truth where run in float64."""

from functools import partial

import numpy as np

from cbnorm.cli import bench_formulas as formulas
from cbnorm.cli.bench_cases import EPS, MOMENTUM
from cbnorm.cli.bench_peers import Calls, Peer, first


class NumPy(Peer):
    """The formulas, in the dtype of the arrays; they run on one thread."""

    name = "numpy"
    note = "one thread"

    def __init__(self, num_threads):
        self.operations = {
            "train": self._train,
            "test": self._test,
            "backward": self._backward,
            "layernorm": self._layernorm,
            "layernorm-backward": self._layernorm_backward,
            "groupnorm": self._groupnorm,
            "groupnorm-backward": self._groupnorm_backward,
            "instancenorm": self._groupnorm,
            "rmsnorm": self._rmsnorm,
        }

    def _train(self, case):
        x, axis = case.x, case.axis
        axes, parameters = _channel_axes(case, case.gamma, case.beta)
        old_mean, old_var = case.moving_mean, case.moving_var

        def train():
            y, _, mean, var = formulas.forward(x, *parameters, EPS, axes)
            return (
                y,
                MOMENTUM * old_mean + (1 - MOMENTUM) * mean.reshape(-1),
                MOMENTUM * old_var + (1 - MOMENTUM) * var.reshape(-1),
            )

        return Calls(train, None, first)

    def _test(self, case):
        moving = (each.astype(case.x.dtype) for each in (case.moving_mean, case.moving_var))
        axes, parameters = _channel_axes(case, case.gamma, case.beta, *moving)
        gamma, beta, *moving = parameters
        return Calls(partial(formulas.forward, case.x, gamma, beta, EPS, axes, *moving), None, first)

    def _backward(self, case):
        axes, (gamma, beta) = _channel_axes(case, case.gamma, case.beta)
        cache = formulas.forward(case.x, gamma, beta, EPS, axes)[1]
        return Calls(partial(formulas.batch_backward, case.dout, cache, gamma, axes))

    def _layernorm(self, case):
        return Calls(partial(formulas.forward, case.x, case.gamma, case.beta, EPS, _trailing(case)), None, first)

    def _layernorm_backward(self, case):
        cache = self._layernorm(case).fresh()[1]
        leading = tuple(range(case.axis))
        return Calls(
            partial(formulas.rows_backward, case.dout, cache, case.gamma, _trailing(case), leading)
        )

    def _groupnorm(self, case):
        x, _, gamma, beta, axes = _grouped(case)
        return Calls(partial(formulas.forward, x, gamma, beta, EPS, axes), None, first)

    def _groupnorm_backward(self, case):
        x, dout, gamma, beta, axes = _grouped(case)
        cache = formulas.forward(x, gamma, beta, EPS, axes)[1]
        samples_and_positions = (0, *range(3, x.ndim))
        return Calls(partial(formulas.rows_backward, dout, cache, gamma, axes, samples_and_positions))

    def _rmsnorm(self, case):
        call = partial(formulas.rms_forward, case.x, case.gamma, EPS, _trailing(case))
        return Calls(call, None, lambda y: (y,))


def _channel_axes(case, *parameters):
    """All axes but that of the channels, and the parameters shaped to broadcast along it."""
    axes = tuple(i for i in range(case.x.ndim) if i != case.axis)
    return axes, [np.expand_dims(each, axes) for each in parameters]


def _trailing(case):
    return tuple(range(case.axis, case.x.ndim))


def _grouped(case):
    """x, dout, gamma and beta as (N, groups, channels of a group, *), and the axes of one group."""
    num_groups = case.num_channels if case.operation == "instancenorm" else case.num_groups
    samples, channels, *positions = case.x.shape
    grouped = (num_groups, channels // num_groups)
    x, dout = (each.reshape(samples, *grouped, *positions) for each in (case.x, case.dout))
    gamma, beta = (each.reshape(grouped + (1,) * len(positions)) for each in (case.gamma, case.beta))
    return x, dout, gamma, beta, tuple(range(2, x.ndim))
