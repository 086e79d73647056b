"""The steps of batch normalization one by one, for whoever merges statistics between them.

`batchnorm_forward` is `moments`, then `normalize`; `batchnorm_backward` is `gradient_sums`, then `input_gradient`. A
batch may lie in parts, in several processes or read one after the other: with mean, var and the sums over all M values
that a channel has in all parts, xhat = (x - mean)·inv_std, inv_std = 1 / sqrt(var + eps), y = gamma·xhat + beta and
dx = (gamma·inv_std / M)·(M·dout - xhat·Σ dout·xhat - Σ dout), in each part for itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm import _kernels
from cbnorm._arrays import (
    as_array,
    check_axis,
    check_eps,
    check_merged,
    check_out,
    check_parameter,
    check_shape,
    copy_numbers,
)
from cbnorm._beyond import input_gradient_beyond, mend_channel_sums
from cbnorm._calls import forward, take_statistics
from cbnorm._plan import plan_channels
from cbnorm._record import Record, check_count
from cbnorm._results import as_result, float_dtypes, room_for, stored
from cbnorm._threads import threads_for
from cbnorm._weights import count_by
from cbnorm.moments import Moments, moments_of_channels

__all__ = ["GradientSums", "gradient_sums", "input_gradient", "moments", "normalize"]


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class GradientSums(Record):
    """Σ dout and Σ dout·xhat of a set of values, which are dbeta and dgamma; sets merge with ``+`` and ``sum``.

    Parameters
    ----------
    count : int or float
        Values that each sum was taken over; with weights, their sum.
    dout : array_like
        (channels,), float64: Σ dout, the gradient of beta.
    dout_xhat : array_like
        (channels,), float64: Σ dout·xhat, the gradient of gamma.

    Raises
    ------
    ValueError, TypeError
        If `count` is not an integer from 0 up, or the shapes of `dout` and `dout_xhat` differ.

    Notes
    -----
    The arrays are copies of those given, and read-only.

    Examples
    --------
    >>> import cbnorm
    >>> cbnorm.parts.GradientSums(2, [1.0], [0.5]) + cbnorm.parts.GradientSums(1, [3.0], [0.25])
    GradientSums(count=3, dout=[4.], dout_xhat=[0.75])
    """

    count: int | float
    dout: NDArray[np.float64]
    dout_xhat: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Convert, check and copy what was given."""
        count = check_count(self.count)
        dout = copy_numbers("dout", self.dout)
        dout_xhat = copy_numbers("dout_xhat", self.dout_xhat, dout.shape, "dout")
        self._fill(count=count, dout=dout, dout_xhat=dout_xhat)

    def __add__(self, other: object) -> GradientSums:
        """Return the sums over both sets of values together."""
        if not isinstance(other, GradientSums):
            return NotImplemented
        if other.dout.shape != self.dout.shape:
            raise ValueError(f"other: expected sums of shape {self.dout.shape}, got {other.dout.shape}")
        with np.errstate(all="ignore"):  # infinities stay in their channel, in silence
            dout, dout_xhat = self.dout + other.dout, self.dout_xhat + other.dout_xhat
        return GradientSums._of(count=self.count + other.count, dout=dout, dout_xhat=dout_xhat)


def moments(x: ArrayLike, axis: int = 1, *, weights: ArrayLike | None = None) -> Moments:
    """Count, mean and variance of each channel of a part: the first step of a forward pass.

    Parameters
    ----------
    x : array_like
        This part: at least two axes, of any real dtype. It may be empty.
    axis : int
        The channel axis: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    weights : array_like, optional
        What each place counts: the shape of x without its channel axis, or (N,), as in `batchnorm_forward`.

    Returns
    -------
    Moments
        (channels,), to be added to those of the other parts.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]])
    >>> whole = sum(cbnorm.parts.moments(part) for part in (x[:1], x[1:]))
    >>> whole.count, whole.mean
    (3, array([ 4., 12.]))
    """
    x = as_array(x, 2)
    plan = plan_channels(x.shape, check_axis(axis, x.ndim))
    return moments_of_channels(x, plan, weights)


def normalize(
    x: ArrayLike,
    moments: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Normalize a part with the statistics of the whole, then scale and shift it: the second step of a forward pass.

    Parameters
    ----------
    x : array_like
        This part, in the dtypes of `batchnorm_forward`.
    moments : Moments
        (channels,), of all parts together.
    gamma, beta : array_like, optional
        (channels,), converted to the dtype of the computation. None stands for 1 and 0.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    axis : int
        The channel axis.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous. It may be x, which `gradient_sums` and `input_gradient`
        then miss.

    Returns
    -------
    ndarray
        y, the shape of x; its dtype, or float64 for integers.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Examples
    --------
    Two parts, merged, give what the whole gives:

    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]])
    >>> first, second = x[:1], x[1:]
    >>> whole = cbnorm.parts.moments(first) + cbnorm.parts.moments(second)
    >>> y = np.concatenate([cbnorm.parts.normalize(part, whole) for part in (first, second)])
    >>> np.allclose(y, cbnorm.batchnorm_forward(x)[0], rtol=0, atol=1e-12)
    True
    """
    x, plan = _check_part(x, moments, eps, axis)
    return forward("batchnorm", plan, x, gamma, beta, out, None, _statistics_of(moments, plan))[0]


def gradient_sums(
    dout: ArrayLike,
    x: ArrayLike,
    moments: Moments,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    weights: ArrayLike | None = None,
) -> GradientSums:
    """Σ dout and Σ dout·xhat of each channel of a part: the first step of a backward pass.

    Parameters
    ----------
    dout : array_like
        The shape of x: the gradient of a loss with respect to y; converted to the dtype that x is computed in.
    x : array_like
        This part, as `normalize` took it.
    moments : Moments
        (channels,), of all parts together.
    eps, axis
        As in `normalize`.
    weights : array_like, optional
        As in `moments`. The sums are over all dout; the weights are their count.

    Returns
    -------
    GradientSums
        Over this part, to be added to those of the others. Of all parts together ``sums.dout_xhat`` is dgamma, and
        ``sums.dout`` is dbeta.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]])
    >>> sums = cbnorm.parts.gradient_sums(np.ones((3, 2)), x, cbnorm.parts.moments(x))
    >>> sums.count, sums.dout
    (3, array([3., 3.]))
    """
    x, plan = _check_part(x, moments, eps, axis)
    dout = check_shape("dout", dout, plan.shape)
    counted = plan_channels(plan.shape, plan.axis)
    if weights is not None:
        counted = count_by(counted, weights)
    sums = np.zeros((2, plan.channels))
    if x.size:
        dtype = float_dtypes(x)[0]
        arrays = plan, stored(dout, dtype, plan), stored(x, dtype, plan), sums, _statistics_of(moments, plan)
        overflown = _kernels.active.gradient_sums(*arrays, threads_for(x.size))
        mend_channel_sums(*arrays, overflown)
    return GradientSums._of(count=counted.whole_count(), dout=sums[0], dout_xhat=sums[1])


def input_gradient(
    dout: ArrayLike,
    x: ArrayLike,
    moments: Moments,
    sums: GradientSums,
    gamma: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Gradient with respect to a part: the second step of a backward pass.

    Parameters
    ----------
    dout : array_like
        The shape of x: the gradient of a loss with respect to y.
    x : array_like
        This part, as `normalize` took it.
    moments : Moments
        (channels,), of all parts together.
    sums : GradientSums
        (channels,), of all parts together. Its count is the M of the equation, not the number of this part's values,
        and that of `moments`: else one of the two was not merged.
    gamma, eps, axis
        As in `normalize`.
    weights : array_like, optional
        As in `moments`: of this part.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    ndarray
        dx, the shape and dtype of y.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described, or `sums` and `moments` have different counts; nothing is written then.

    Examples
    --------
    Two parts, merged, give what the whole gives:

    >>> import numpy as np, cbnorm
    >>> x, dout = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]]), np.array([[1.0, 2.0], [0.0, 1.0], [5.0, 0.0]])
    >>> both = [(dout[:1], x[:1]), (dout[1:], x[1:])]
    >>> whole = sum(cbnorm.parts.moments(x) for _, x in both)
    >>> sums = sum(cbnorm.parts.gradient_sums(*part, whole) for part in both)
    >>> dx = np.concatenate([cbnorm.parts.input_gradient(*part, whole, sums) for part in both])
    >>> dgamma, dbeta = sums.dout_xhat, sums.dout
    >>> want = cbnorm.batchnorm_backward(dout, cbnorm.batchnorm_forward(x)[1])
    >>> [np.allclose(*each, rtol=0, atol=1e-12) for each in zip((dx, dgamma, dbeta), want)]
    [True, True, True]
    """
    x, plan = _check_part(x, moments, eps, axis)
    dout = check_shape("dout", dout, plan.shape)
    check_merged("sums", sums, GradientSums, "dout", plan.shape, plan.axis, moments.count)
    dtype, result_dtype = float_dtypes(x)
    kernel_gamma = check_parameter("gamma", gamma, plan, dtype)
    if out is not None:
        check_out(out, plan.shape, result_dtype, "dout", ("dout", "x", "gamma"), (dout, x, gamma))
    counted = plan if weights is None else count_by(plan_channels(plan.shape, plan.axis), weights)
    values = stored(dout, dtype, counted)
    dx = room_for(out, values, dout, dtype, result_dtype, counted)
    if x.size:
        x, statistics = stored(x, dtype, counted), _statistics_of(moments, plan)
        plan = plan_channels(plan.shape, plan.axis, plan.eps, False, sums.count)  # these statistics depend on x
        if weights is not None:
            plan = count_by(plan, weights).of_part(sums.count)
        both = np.stack((sums.dout, sums.dout_xhat))
        arrays = plan, values, x, dx, kernel_gamma, both, statistics
        finish = input_gradient_beyond(*arrays)
        _kernels.active.input_gradient(*arrays, threads_for(x.size))
        finish()
    return as_result(dx, result_dtype, out)


def _check_part(x, moments, eps, axis):
    """What all steps but the first begin with: x as an array, and a plan whose statistics are those of the whole."""
    x = as_array(x, 2)
    axis = check_axis(axis, x.ndim)
    check_merged("moments", moments, Moments, "mean", x.shape, axis)
    return x, plan_channels(x.shape, axis, check_eps(eps), True, moments.count)


def _statistics_of(moments, plan):
    """Moments as the kernels take them."""
    m2 = moments.m2
    if not math.isfinite(m2.max(initial=0)):  # too large for a float: y would be beta, which it is not
        m2 = np.where(np.isinf(m2), np.nan, m2)
    return take_statistics(plan, moments.mean, moments.mean_lo, m2)
