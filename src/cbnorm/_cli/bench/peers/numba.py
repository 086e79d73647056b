"""The peer `numba` of `cbnorm bench`: the loops of `numba_loops`, compiled."""

import math
from functools import partial

import numpy as np

from cbnorm._cli.bench.cases import EPS
from cbnorm._cli.bench.peers.numba_loops import compile_loops
from cbnorm._cli.bench.peers.peer import Calls, Peer

PARALLEL_FROM = 2**15  # numbers; below it the loops are compiled without threads, as these cost more


class Numba(Peer):
    """Numba on the CPU."""

    name = pool = "numba"
    note = "loops under njit(parallel=True, fastmath=True), without moving averages"

    def __init__(self, num_threads):
        import numba

        self.numba = numba
        self._before = numba.get_num_threads()
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))
        self.loops = {
            parallel: compile_loops(numba, parallel, EPS, num_threads if parallel else 1) for parallel in (False, True)
        }

    def close(self):
        """Give back the number of threads."""
        self.numba.set_num_threads(self._before)

    def _calls(self, case, name, shape, *arguments):
        """Calls of a loop that writes an array of some shape last, and may return the gradients."""
        loop = partial(self.loops[case.x.size >= PARALLEL_FROM][name], *arguments)
        out = case.out.reshape(shape)
        dtype = case.x.dtype

        def fresh():
            result = np.empty(shape, dtype)
            return loop(result) or (result,)

        return Calls(fresh, lambda: loop(out) or (out,))

    def train(self, case):
        kind, shape = _layout(case)
        return self._calls(case, f"{kind}_train", shape, case.x.reshape(shape), case.gamma, case.beta)

    def test(self, case):
        kind, shape = _layout(case)
        inv_std = 1 / np.sqrt(case.moving_var + EPS)
        arguments = (case.x.reshape(shape), case.moving_mean, inv_std, case.gamma, case.beta)
        return self._calls(case, f"{kind}_normalize", shape, *arguments)

    def backward(self, case):
        kind, shape = _layout(case)
        axes = tuple(i for i in range(case.x.ndim) if i != case.axis)
        return self._gradients(case, f"{kind}_backward", shape, case.x, axes, case.gamma)

    def layernorm(self, case):
        shape = _rows(case)
        parameters = (case.gamma.reshape(-1), case.beta.reshape(-1))
        return self._calls(case, "layer_forward", shape, case.x.reshape(shape), *parameters)

    def layernorm_backward(self, case):
        shape = _rows(case)
        return self._gradients(case, "layer_backward", shape, case.x.reshape(shape), 1, case.gamma.reshape(-1))

    def groupnorm(self, case):
        shape, parameters_shape = _groups(case)
        parameters = (each.reshape(parameters_shape) for each in (case.gamma, case.beta))
        return self._calls(case, "group_forward", shape, case.x.reshape(shape), *parameters)

    def groupnorm_backward(self, case):
        shape, parameters_shape = _groups(case)
        gamma = case.gamma.reshape(parameters_shape)
        return self._gradients(case, "group_backward", shape, case.x.reshape(shape), (1, 2), gamma)

    instancenorm, instancenorm_backward = groupnorm, groupnorm_backward

    def rmsnorm(self, case):
        shape = _rows(case)
        return self._calls(case, "rms_forward", shape, case.x.reshape(shape), case.gamma.reshape(-1))

    def _gradients(self, case, name, shape, x, axes, gamma):
        """Calls of a loop for gradients, with the mean and inv_std over some axes of x."""
        mean, var = x.mean(axis=axes, dtype=np.float64), x.var(axis=axes, dtype=np.float64)
        arguments = (x.reshape(shape), mean, 1 / np.sqrt(var + EPS), gamma)
        return self._calls(case, name, shape, case.dout.reshape(shape), *arguments)


def _layout(case):
    """Which loops see x in which shape: (rows, channels), or (outer, channels, inner)."""
    outer, inner = math.prod(case.x.shape[: case.axis]), math.prod(case.x.shape[case.axis + 1 :])
    if inner == 1:
        return "columns", (outer, case.num_channels)
    return "planes", (outer, case.num_channels, inner)


def _rows(case):
    width = math.prod(case.x.shape[case.axis :])
    return case.x.size // width, width


def _groups(case):
    """The shape of x, (rows, channels of a group, inner), and of gamma, (groups, channels of a group)."""
    channels = case.num_channels // case.groups
    return (len(case.x) * case.groups, channels, math.prod(case.x.shape[2:])), (case.groups, channels)
