"""What layer, group, instance and RMS normalization share: each row of the array has its own statistics.

The array is seen as (rows, runs, inner). Run r of a row has the parameters number (row % groups) * runs + r;
layer normalization has inner = 1, instance normalization one run a row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm import _kernels
from cbnorm._arrays import (
    as_numbers,
    as_result,
    check_eps,
    check_need,
    check_out,
    check_parameter,
    contiguous,
    float_dtypes,
    gradient_for,
    room_for,
    statistics_for,
)
from cbnorm._cache import MANY, kept
from cbnorm._plan import plan_groups, plan_rows
from cbnorm._threads import threads_for


class Rows(NamedTuple):
    """How an array falls into rows, and what its parameters look like."""

    row_shape: tuple  # of the statistics
    rows: int
    groups: int
    runs: int
    inner: int
    parameter_shape: tuple
    centred: bool = True  # False: the mean is held at 0


def plan_of(shape, layout, eps):
    """What the kernels take."""
    if layout.groups == 1 and layout.inner == 1:
        return plan_rows(shape, len(layout.row_shape), eps, layout.centred)
    return plan_groups(shape, layout.groups, eps)


class RowsCache:
    """What the backward function needs of a forward call: references and per-row numbers, no large copy.

    Where these numbers would take more memory than x, they are computed again from x each time they are wanted.

    Attributes
    ----------
    kind : str
        The function that made it: "layernorm", "groupnorm", "instancenorm" or "rmsnorm".
    x : ndarray
        The input itself, not to be changed before backward: the gradients, `mean` and `inv_std` would be those of
        neither input.
    gamma : ndarray or None
        The parameter itself.
    """

    __slots__ = ("_dtypes", "_eps", "_layout", "_statistics", "gamma", "kind", "x")

    def __init__(self, kind, x, gamma, eps, layout, statistics, dtypes):
        self.kind = kind
        self.x = x
        self.gamma = gamma
        self._eps = eps
        self._layout = layout
        self._statistics = statistics  # what `kept` left of them
        self._dtypes = dtypes  # computed in, returned in

    @property
    def mean(self) -> NDArray[np.float64]:
        """One mean a row; 0 in RMS normalization."""
        return self._full()[0].reshape(self._layout.row_shape)

    @property
    def inv_std(self) -> NDArray[np.float64]:
        """One 1 / sqrt(var + eps) a row; 1 / sqrt(mean(x²) + eps) in RMS normalization."""
        return self._full()[3].reshape(self._layout.row_shape)

    @property
    def xhat(self) -> NDArray:
        """The normalized input, computed anew, in the shape and dtype of y."""
        return forward(self.kind, self.x, None, None, self._eps, None, self._layout)[0]

    def _full(self, x=None):
        """The statistics, (4, rows): mean, mean_lo, m2, inv_std. X as the kernels take it, where that is there."""
        if self._statistics is not None:
            return self._statistics
        x = contiguous(self.x, self._dtypes[0]) if x is None else x
        layout, statistics = self._layout, statistics_for(self._layout.rows)
        plan = plan_of(self.x.shape, layout, self._eps)
        _kernels.active.forward(plan, x, None, None, None, statistics, None, threads_for(x.size))
        return statistics


def forward(
    kind: str,
    x: NDArray,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    out: NDArray | None,
    layout: Rows,
) -> tuple[NDArray, RowsCache]:
    """Check the rest of the arguments, allocate and normalize each row."""
    dtypes = compute_dtype, result_dtype = float_dtypes(x)
    kernel_gamma = check_parameter("gamma", gamma, layout.parameter_shape, compute_dtype)
    kernel_beta = check_parameter("beta", beta, layout.parameter_shape, compute_dtype)
    eps = check_eps(eps)
    if out is not None:
        check_out(out, x.shape, result_dtype, None, ("x", "gamma", "beta"), (x, gamma, beta))
    values = contiguous(x, compute_dtype)
    y = room_for(out, values, x, result_dtype)
    statistics = statistics_for(layout.rows)
    if x.size:
        plan = plan_of(x.shape, layout, eps)
        _kernels.active.forward(plan, values, y, kernel_gamma, kernel_beta, statistics, None, threads_for(x.size))
    else:
        statistics[:] = 0
    if layout.rows > MANY and x.size:
        statistics = kept(statistics, x)
    return as_result(y, result_dtype, out), RowsCache(kind, x, gamma, eps, layout, statistics, dtypes)


def backward(
    kind: str,
    dout: ArrayLike,
    cache: RowsCache,
    need: tuple[bool, ...],
    out: NDArray | None,
    names: tuple[str, ...] = ("dx", "dgamma", "dbeta"),
) -> tuple[NDArray | None, ...]:
    """Gradients named in `names`, those wanted; checks all arguments first."""
    if not isinstance(cache, RowsCache) or cache.kind != kind:
        got = cache.kind if isinstance(cache, RowsCache) else type(cache).__name__
        raise TypeError(f"cache: expected that of {kind}_forward, got {got}")
    x, layout, (compute_dtype, result_dtype) = cache.x, cache._layout, cache._dtypes
    dout = as_numbers("dout", dout)
    if dout.shape != x.shape:
        raise ValueError(f"dout: expected shape {x.shape}, got {dout.shape}")
    want_dx, *want_parameters = check_need(need, names)
    gamma = check_parameter("cache.gamma", cache.gamma, layout.parameter_shape, compute_dtype)
    if out is not None:
        if not want_dx:
            raise ValueError("out: expected None where need says that dx is not wanted, got an array")
        check_out(out, x.shape, result_dtype, "dout", ("dout", "x", "gamma"), (dout, x, cache.gamma))
    values = contiguous(dout, compute_dtype)
    dx = room_for(out, values, dout, result_dtype) if want_dx else None
    sums = [gradient_for(layout.parameter_shape, compute_dtype) if want else None for want in want_parameters]
    if not x.size:
        for total in sums:
            if total is not None:
                total[...] = 0
    elif any(need):
        x = contiguous(x, compute_dtype)
        plan = plan_of(x.shape, layout, cache._eps)
        gradients = (*sums, None)[:2]
        _kernels.active.backward(plan, values, x, dx, gamma, gradients, cache._full(x), threads_for(x.size))
    return as_result(dx, result_dtype, out) if want_dx else None, *sums
