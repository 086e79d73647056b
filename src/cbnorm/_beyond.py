"""Sets of numbers whose y and dx their dtype holds, but not 1 / std, x - mean, or the sums of the gradient.

In float32 they are computed in float64; in float64 from x times a power of two. Only theirs: the bits of the others do
not depend on what stands beside them.
"""

from typing import NamedTuple

import numpy as np

from cbnorm import _kernels
from cbnorm._results import FLOAT32, FLOAT64
from cbnorm._threads import threads_for

SMALLER, LARGER = 2.0**-60, 2.0**500  # than an x whose x - mean, or 1 / std, float64 does not hold, or not surely


class Room(NamedTuple):
    """Where there is room for what some sets need."""

    beyond: np.ndarray  # which sets they are, in a shape that broadcasts to what `by_sets` gives
    plan: object
    x: np.ndarray | None
    statistics: np.ndarray
    scale: float  # what x was multiplied by


def computed_in(array):
    """The dtype of a computation whose gradients or results these are."""
    return FLOAT64 if array.dtype.kind in "biu" or array.dtype.itemsize == 8 else FLOAT32


def rooms(plan, dtype, x, statistics):
    """All that are needed; `dtype` is that of the computation."""
    mean, _, m2, inv_std = statistics[:4]
    most_mean, most_inv_std, most_m2, least_inv_std = _kernels.active.limits(plan, dtype.itemsize)
    large, small = abs(mean) > most_mean, inv_std > most_inv_std
    large &= np.isfinite(mean) & plan.statistics_given  # else the mean is among the numbers
    large |= (m2 >= most_m2) & np.isfinite(m2) & (not plan.statistics_given)
    if dtype is FLOAT32:
        beyond = large | small
        return [Room(along_sets(plan, beyond), plan, widened(x), statistics, 1.0)] if beyond.any() else []
    large |= (inv_std > 0) & (inv_std < least_inv_std)
    scales = (large, SMALLER), (small, LARGER)
    return [scaled(plan, x, statistics, scale, sets) for sets, scale in scales if sets.any()]


def scaled(plan, x, statistics, scale, beyond):
    """Room in float64: std and mean are multiplied as x is, and eps with the variance."""
    if x is None:  # dx = dout·gamma·inv_std takes none
        return Room(along_sets(plan, beyond), plan, None, statistics, 1.0)
    plan = plan.with_eps(plan.eps * scale**2)
    with np.errstate(all="ignore"):  # sets of the other kind
        x = x * scale
        statistics = statistics * np.array([[scale], [scale], [scale**2], [1 / scale], [1]])[: len(statistics)]
    if not plan.statistics_given:
        _kernels.active.forward(plan, x, None, None, None, statistics, None, threads_for(x.size))
    return Room(along_sets(plan, beyond), plan, x, statistics, scale)


def by_sets(plan, array):
    """A view: (sets, numbers), (outer, sets, numbers), or (samples, positions, groups, channels) of a group."""
    if plan.samples:
        return array.reshape(plan.samples, -1, plan.groups, plan.channels // plan.groups)
    return array.reshape((plan.sets, -1) if plan.groups else (plan.outer, plan.channels, plan.inner))


def along_sets(plan, of_sets):
    """One value a set, in a shape that broadcasts to what `by_sets` gives."""
    return of_sets.reshape(plan.samples, 1, plan.groups, 1) if plan.samples else of_sets[:, np.newaxis]


def put(where, wide, narrow, scale=1.0):
    """Values of float64, times a power of two, into an array, in silence."""
    with np.errstate(all="ignore"):
        np.copyto(narrow, wide if scale == 1 else wide * scale, casting="same_kind", where=where)


def put_dx(room, wide, dx):
    """Of the sets of a room, where 1 / std was smaller by its scale."""
    put(room.beyond, by_sets(room.plan, wide), by_sets(room.plan, dx), room.scale)


def widened(array):
    """A copy in float64; None stays None."""
    return None if array is None else array.astype(np.float64)


def forward_beyond(plan, x, y, gamma, beta, statistics):
    """Write y of these sets; `x` may be `y`."""
    for room in rooms(plan, computed_in(y), x, statistics):
        wide = np.empty(x.shape)
        arrays = room.x, wide, widened(gamma), widened(beta), room.statistics.copy()
        _kernels.active.forward(room.plan, *arrays, None, threads_for(x.size))
        put(room.beyond, by_sets(plan, wide), by_sets(plan, y))


def wide_gradients(room, dout, dx, gamma, gradients):
    """All gradients that are wanted, in float64; `dx` and `gradients` tell by None which are not."""
    wide = [None if array is None else np.empty(array.shape) for array in (dx, *gradients)]
    arrays = widened(dout), room.x, wide[0], widened(gamma), wide[1:], room.statistics
    _kernels.active.backward(room.plan, *arrays, threads_for(dout.size))
    return wide


def backward_beyond(plan, dout, x, dx, gamma, gradients, statistics):
    """A function that writes the gradients of these sets, once the others are there; `dx` may be `dout`."""
    found = [
        (room, wide_gradients(room, dout, dx, gamma, gradients))
        for room in rooms(plan, computed_in(dout), x, statistics)
    ]

    def finish():
        for room, (wide, *wide_sums) in found:
            if dx is not None:
                put_dx(room, wide, dx)
            for gradient, wide_gradient in zip(gradients, wide_sums, strict=True):
                if gradient is not None:  # those of rows are sums over all rows
                    put(True if plan.groups else room.beyond[:, 0], wide_gradient, gradient)

    return finish


def smaller_dout(dout):
    """A dout whose sums float64 holds, and what gradients of it are to be multiplied by."""
    if dout.dtype.itemsize <= 4:
        return widened(dout), 1.0
    with np.errstate(all="ignore"):
        return dout * SMALLER, 1 / SMALLER


def mend_sums(plan, dout, x, dx, gamma, gradients, statistics):
    """Write the gradients anew where sums of dout overflowed; `dx` is not `dout`."""
    room = Room(along_sets(plan, np.ones(plan.sets, bool)), plan, widened(x), statistics, 1.0)
    dout, scale = smaller_dout(dout)
    wide, *wide_sums = wide_gradients(room, dout, dx, gamma, gradients)
    if dx is not None:
        narrow = by_sets(plan, dx)
        numbers = (1, 3) if plan.samples else 1 if plan.groups else (0, 2)
        finite = np.isfinite(narrow).all(axis=numbers, keepdims=True)
        put(~finite, by_sets(plan, wide), narrow, scale)
    for gradient, wide_gradient in zip(gradients, wide_sums, strict=True):
        if gradient is not None:
            put(~np.isfinite(gradient), wide_gradient, gradient, scale)


def mend_channel_sums(plan, dout, x, sums, statistics, overflown):
    """Write sums of the gradient, (2, channels), anew where their dtype does not hold what they need."""
    found = rooms(plan, computed_in(x), x, statistics)
    if overflown and not found:
        found = [Room(np.zeros((plan.sets, 1), bool), plan, widened(x), statistics, 1.0)]
    dout, scale = smaller_dout(dout)
    for room in found:
        wide = np.zeros(sums.shape)
        _kernels.active.gradient_sums(room.plan, dout, room.x, wide, room.statistics, threads_for(x.size))
        put(room.beyond.T | ~np.isfinite(sums), wide, sums, scale)


def input_gradient_beyond(plan, dout, x, dx, gamma, sums, statistics):
    """A function that writes dx of these sets, once that of the others is there; `dx` may be `dout`."""
    found = []
    for room in rooms(plan, computed_in(x), x, statistics):
        wide = np.empty(x.shape)
        arrays = widened(dout), room.x, wide, widened(gamma), sums, room.statistics
        _kernels.active.input_gradient(room.plan, *arrays, threads_for(x.size))
        found.append((room, wide))

    def finish():
        for room, wide in found:
            put_dx(room, wide, dx)

    return finish
