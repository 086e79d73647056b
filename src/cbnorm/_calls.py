"""What all normalizations do in a call: check, allocate, call the kernels; and what stays between forward and backward.

Which numbers share their statistics is written in a `Plan`; nothing here asks for the normalization's name, except to
tell one cache from another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm import _kernels
from cbnorm._arrays import (
    as_array,
    as_seen,
    check_eps,
    check_moving,
    check_need,
    check_out,
    check_parameter,
    check_shape,
    same_memory,
)
from cbnorm._axes import rows_last
from cbnorm._beyond import backward_beyond, forward_beyond, mend_sums
from cbnorm._plan import Plan, plan_rows
from cbnorm._results import (
    as_result,
    copy_into,
    copy_of,
    float_dtypes,
    frozen,
    gradients_for,
    room_for,
    statistics_for,
    stored,
)
from cbnorm._threads import threads_for

MANY = 2048  # channels or rows; for fewer, 64 KiB are kept rather than computed again
INPUTS = ("x", "gamma", "beta", "moving_mean", "moving_var")
GRADIENTS = ("dx", "dgamma", "dbeta")


class Cache:
    """What a backward function needs of a forward call: references and statistics, no large copy.

    Nothing of it can be set; `gamma`, `mean`, `inv_std` and `xhat` are read-only arrays. Where the statistics would
    take more memory than x, they are computed again from x each time they are wanted.

    Attributes
    ----------
    kind : str
        The function that made it: "batchnorm", "layernorm", "groupnorm", "instancenorm" or "rmsnorm".
    x : ndarray or None
        The input itself, not to be changed before backward: the gradients, `mean` and `inv_std` would be those of
        neither input. Only another shape or dtype, or memory given back, is noticed, by a ValueError where x is read
        again. None where ``out=x`` overwrote it, in batch normalization's test mode.
    gamma : ndarray or None
        A copy of the parameter, in the dtype of the computation: an optimizer may change its own before backward.
    """

    _owner: object

    __slots__ = ("_beyond", "_dtypes", "_gamma", "_kind", "_order", "_owner", "_plan", "_seen", "_statistics", "_x")

    def __init__(
        self,
        kind: str,
        plan: Plan,
        x: NDArray[Any] | None,
        gamma: NDArray[Any] | None,
        statistics: NDArray[np.float64] | None,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        seen: np.dtype[Any],
        beyond: bool,
        order: tuple[int, ...] | None = None,
    ) -> None:
        self._kind = kind
        self._order = order  # of the axes, where rows are over others than the last
        self._x = x
        frozen(gamma, statistics)  # nobody else's
        self._gamma = gamma
        self._plan = plan
        # None: those of x; (2, sets): mean and variance, given; (kinds, sets): as found.
        self._statistics = statistics
        self._dtypes = dtypes  # computed in, returned in
        self._seen = seen  # the dtype that x had
        self._owner = None  # what only the layer has that made it
        self._beyond = beyond  # whether the dtype does not hold what some set needs

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made by the constructor: their arrays are read-only too."""
        values = self._kind, self._plan, self._x, self._gamma, self._statistics, self._dtypes, self._seen, self._beyond
        return Cache, (*values, self._order)

    @property
    def kind(self) -> str:
        """The function that made it, without "_forward"."""
        return self._kind

    @property
    def x(self) -> NDArray[Any] | None:
        """The input itself."""
        return self._x if self._order is None or self._x is None else self._x.transpose(self._inverse())

    @property
    def gamma(self) -> NDArray[Any] | None:
        """A copy of gamma."""
        return None if self._gamma is None else self._gamma.view()

    @property
    def axis(self) -> int | tuple[int, ...]:
        """The channel axis, or the first of the axes that make a row, or these; counted from 0."""
        return self._plan.axis if self._order is None else self._order[self._plan.axis :]

    @property
    def mode(self) -> str:
        """Whether the statistics are those of x, "train", or were given, "test"."""
        return "test" if self._plan.statistics_given else "train"

    @property
    def mean(self) -> NDArray[np.float64]:
        """The means that were subtracted, one a channel, or one a row; 0 in RMS normalization."""
        return frozen(self._full()[0].reshape(self._plan.statistics_shape))

    @property
    def inv_std(self) -> NDArray[np.float64]:
        """1 / sqrt(var + eps), and 0 where var + eps is 0; in RMS normalization var is mean(x²)."""
        return frozen(self._full()[3].reshape(self._plan.statistics_shape))

    @property
    def xhat(self) -> NDArray[Any]:
        """The normalized input, computed anew, in the shape and dtype of y."""
        x, given = self._input(), self._plan.statistics_given
        xhat = forward(self._kind, self._plan, x, None, None, None, None, self._full().copy() if given else None)[0]
        xhat = as_result(xhat, self._dtypes[1], None)
        return frozen(xhat if self._order is None else self._restored(xhat, None))

    def __repr__(self) -> str:
        """What it is of, and how large."""
        kept = "x overwritten" if self._x is None else f"{self._seen} x of shape {self.x.shape}"
        return f"<cbnorm.Cache of {self._kind}_forward: {kept}, mode {self.mode!r}>"

    def _inverse(self):
        """The order of axes that leads back."""
        return sorted(range(len(self._order)), key=self._order.__getitem__)

    def _restored(self, values, out):
        """Values in the order of x: in `out`, or C-contiguous."""
        values = values.transpose(self._inverse())
        if out is None:
            return values.copy()
        copy_into(out, values)
        return out

    def _input(self):
        """X as the kernels take it."""
        if self._x is None:
            raise ValueError("cache: expected one that has its x, got one whose x was overwritten by out=x")
        return as_seen(self._x, self._plan, self._seen, self._dtypes[0])

    def _full(self, x=None):
        """The statistics, (kinds, sets). X as the kernels take it, where that is there."""
        kept = self._statistics
        if not self._plan.size:  # any number of empty rows: no memory is taken before someone asks
            return np.zeros((self._plan.kinds, self._plan.sets))
        if kept is None:
            return find_statistics(self._plan, self._input() if x is None else x)
        return kept if len(kept) > 2 else take_statistics(self._plan, kept[0], 0, kept[1])


def find_statistics(plan: Plan, x: NDArray[Any]) -> NDArray[np.float64]:
    """The statistics of x, (kinds, sets): mean, mean_lo, m2, inv_std, counts."""
    statistics = statistics_for(plan)
    if x.size:
        _kernels.active.forward(plan, x, None, None, None, statistics, None, threads_for(x.size))
    else:
        statistics[:] = 0
    return statistics


def take_statistics(plan: Plan, mean: ArrayLike, mean_lo: ArrayLike, m2: ArrayLike) -> NDArray[np.float64]:
    """The same, of moments that are there, for a plan with given statistics: m2 is that of `plan.count` numbers."""
    statistics = statistics_for(plan)
    statistics[0], statistics[1], statistics[2] = mean, mean_lo, m2
    if 0 in plan.shape:
        statistics[3] = 0
    else:
        _kernels.active.forward(plan, None, None, None, None, statistics, None, 1)
    return statistics


def normalize(plan, x, values, y, gamma, beta, statistics, moving) -> bool:
    """Run the kernels on `values`, the x that they can read; whether the dtype does not hold what some set needs."""
    beyond = _kernels.active.forward(plan, values, y, gamma, beta, statistics, moving, threads_for(values.size))
    if beyond:
        if same_memory(values, y):  # channels beyond kept their x, rows did not
            values = np.ascontiguousarray(x) if plan.groups else y
        forward_beyond(plan, values, y, gamma, beta, statistics)
    return beyond


def forward(
    kind: str,
    plan: Plan,
    x: NDArray[Any],
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    out: NDArray[Any] | None,
    averages: tuple | None = None,
    statistics: NDArray[np.float64] | None = None,
) -> tuple:
    """Normalize x: return y, the cache, and the new moving mean and variance if there are `averages`.

    These are moving_mean, moving_var, momentum and ddof as the user gave them. Where the plan has its statistics given,
    they are the moving averages or `statistics`, as `take_statistics` makes them.
    """
    dtypes = compute_dtype, result_dtype = float_dtypes(x, out)
    kernel_gamma = check_parameter("gamma", gamma, plan, compute_dtype)
    kernel_beta = check_parameter("beta", beta, plan, compute_dtype)
    moving = None if averages is None else check_moving(plan, averages)
    given = plan.statistics_given
    if out is not None:
        inputs = (x, gamma, beta) if averages is None else (x, gamma, beta, averages[0], averages[1])
        check_out(out, plan.shape, result_dtype, "x" if given else None, INPUTS, inputs)

    values = stored(x, compute_dtype, plan)
    y = room_for(out, values, x, compute_dtype, result_dtype, plan)
    beyond = False
    if not x.size:
        statistics = None
    else:
        if statistics is None:
            statistics = statistics_for(plan)
        beyond = normalize(plan, x, values, y, kernel_gamma, kernel_beta, statistics, moving)
        if plan.sets > MANY and statistics.nbytes > x.nbytes:
            statistics = statistics[[0, 2]] if given else None
    overwritten = given and out is not None and same_memory(out, x)
    y = as_result(y, result_dtype, out)
    gamma = None if gamma is None else copy_of(kernel_gamma, compute_dtype)
    cache = Cache(kind, plan, None if overwritten else x, gamma, statistics, dtypes, x.dtype, beyond)
    return (y, cache) if moving is None else (y, cache, moving[0], moving[1])


def forward_rows(
    kind: str,
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    axis: int | tuple[int, ...],
    out: NDArray[Any] | None,
    centred: bool = True,
) -> tuple:
    """Normalize rows over trailing axes, or over any, which are brought to the end."""
    x = as_array(x, 1)
    begin, order = rows_last(axis, x.ndim)
    if order is None:
        return forward(kind, plan_rows(x.shape, begin, check_eps(eps), centred), x, gamma, beta, out)
    if out is not None:
        check_out(out, x.shape, float_dtypes(x, out)[1], None, INPUTS, (x, gamma, beta))
    moved = x.transpose(order)
    y, cache = forward(kind, plan_rows(moved.shape, begin, check_eps(eps), centred), moved, gamma, beta, None)
    cache._order = order
    return cache._restored(y, out), cache


def backward(
    kind: str,
    dout: ArrayLike,
    cache: Cache,
    need: tuple[bool, ...],
    out: NDArray[Any] | None,
    names: tuple[str, ...] = GRADIENTS,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """dx, dgamma and dbeta; None for those that are not wanted, or not in `names`."""
    if not isinstance(cache, Cache) or cache._kind != kind:
        got = cache._kind if isinstance(cache, Cache) else type(cache).__name__
        raise TypeError(f"cache: expected that of {kind}_forward, got {got}")
    plan, (compute_dtype, result_dtype) = cache._plan, cache._dtypes
    if cache._order is not None:
        return backward_in_order(kind, dout, cache, need, out, names)
    dout = check_shape("dout", dout, plan.shape)
    want_dx, want_dgamma, want_dbeta = check_need(need, names)
    check_room_for_dx(out, want_dx, plan.shape, dout, cache)
    x = cache._input() if plan.groups or want_dgamma or (want_dx and not plan.statistics_given) else None

    values = stored(dout, compute_dtype, plan)
    dx = room_for(out, values, dout, compute_dtype, result_dtype, plan) if want_dx else None
    sums = dgamma, dbeta = gradients_for(plan, want_dgamma, want_dbeta, compute_dtype)
    if not dout.size or (plan.weights is not None and plan.count == 0):
        for gradient in (dx, *sums):
            if gradient is not None:
                gradient[...] = 0
    elif want_dx or want_dgamma or want_dbeta:
        # The sum of dout takes no statistics.
        statistics = np.zeros((plan.kinds, plan.sets)) if x is None and dx is None else cache._full(x)
        gamma = cache._gamma
        finish = backward_beyond(plan, values, x, dx, gamma, sums, statistics) if cache._beyond else None
        threads = threads_for(dout.size)
        overflown = _kernels.active.backward(plan, values, x, dx, gamma, sums, statistics, threads)
        if finish is not None:
            finish()
        elif overflown and not (dx is not None and same_memory(dx, values)):
            mend_sums(plan, values, x, dx, gamma, sums, statistics)
    return as_result(dx, result_dtype, out) if want_dx else None, dgamma, dbeta


def check_room_for_dx(out, want_dx, shape, dout, cache):
    """Where a gradient may be written: over dout, and nothing that it is computed from."""
    if out is None:
        return
    if not want_dx:
        raise ValueError("out: expected None where need says that dx is not wanted, got an array")
    inputs = (dout, cache._x, cache._gamma, cache._statistics)
    check_out(out, shape, cache._dtypes[1], "dout", ("dout", "x", "cache", "cache"), inputs)


def backward_in_order(kind, dout, cache, need, out, names):
    """The same of rows over other axes than the last."""
    shape = tuple(cache._plan.shape[place] for place in cache._inverse())
    dout = check_shape("dout", dout, shape)
    want_dx = check_need(need, names)[0]
    check_room_for_dx(out, want_dx, shape, dout, cache)
    inner = Cache(*cache.__reduce__()[1][:-1])
    dx, *gradients = backward(kind, dout.transpose(cache._order), inner, need, None, names)
    return cache._restored(dx, out) if want_dx else None, *gradients
