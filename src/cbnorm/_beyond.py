"""Sets of numbers whose y and dx float32 holds, but not 1 / std, or x - mean: they are computed in float64.

Only theirs: the bits of the others do not depend on what stands beside them.
"""

import numpy as np

from cbnorm import _kernels
from cbnorm._threads import threads_for

MOST = float(np.finfo(np.float32).max)


def sets_beyond(plan, statistics):
    """Which they are, in a shape that broadcasts to what `by_sets` gives."""
    mean, _, m2, inv_std = statistics
    beyond = inv_std > _kernels.active.most_inv_std
    if plan.statistics_given:
        beyond |= (abs(mean) > _kernels.active.most_mean) & np.isfinite(mean)
    else:
        beyond |= (m2 >= MOST * MOST) & np.isfinite(m2)
    return beyond[:, np.newaxis]


def by_sets(plan, array):
    """A view of a contiguous array: (sets, numbers), or (outer, sets, numbers)."""
    return array.reshape((plan.sets, -1) if plan.groups else (plan.outer, plan.channels, plan.inner))


def put(where, wide, narrow):
    """Values of float64 into an array, in silence."""
    with np.errstate(all="ignore"):
        np.copyto(narrow, wide, casting="same_kind", where=where)


def widened(array):
    """A copy in float64; None stays None."""
    return None if array is None else array.astype(np.float64)


def forward_beyond(plan, x, y, gamma, beta, statistics):
    """Write y of these sets; `x` may be `y`."""
    wide = np.empty(x.shape)
    arrays = widened(x), wide, widened(gamma), widened(beta)
    _kernels.active.forward(plan, *arrays, statistics, None, threads_for(x.size))
    put(sets_beyond(plan, statistics), by_sets(plan, wide), by_sets(plan, y))


def backward_beyond(plan, dout, x, dx, gamma, gradients, statistics):
    """A function that writes the gradients of these sets, once the others are there; `dx` may be `dout`."""
    beyond = sets_beyond(plan, statistics)
    wide = [None if array is None else np.empty(array.shape) for array in (dx, *gradients)]
    arrays = widened(dout), widened(x), wide[0], widened(gamma), wide[1:]
    _kernels.active.backward(plan, *arrays, statistics, threads_for(dout.size))

    def finish():
        if dx is not None:
            put(beyond, by_sets(plan, wide[0]), by_sets(plan, dx))
        for gradient, wide_gradient in zip(gradients, wide[1:], strict=True):
            if gradient is not None:  # those of rows are sums over all rows
                put(True if plan.groups else beyond[:, 0], wide_gradient, gradient)

    return finish
