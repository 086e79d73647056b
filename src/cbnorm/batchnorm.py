"""Batch normalization: statistics over all axes but one, forward and backward.

xhat = (x - mean) * inv_std with inv_std = 1 / sqrt(var + eps), and y = gamma * xhat + beta
(Ioffe and Szegedy, 2015).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm import _kernels
from cbnorm._arrays import (
    any_negative,
    as_array,
    as_numbers,
    as_result,
    check_axis,
    check_choice,
    check_eps,
    check_need,
    check_number,
    check_out,
    check_parameter,
    contiguous,
    copy_moving,
    float_dtypes,
    gradient_for,
    room_for,
    same_memory,
    split_shape,
    statistics_for,
)
from cbnorm._cache import MANY, kept
from cbnorm._plan import plan_channels
from cbnorm._threads import threads_for

FORWARD_INPUTS = ("x", "gamma", "beta", "moving_mean", "moving_var")


class BatchNormCache:
    """What `batchnorm_backward` needs of a forward call: references and per-channel numbers, no large copy.

    Where these numbers would take more memory than x, they are computed again from x each time they are wanted.

    Attributes
    ----------
    x : ndarray or None
        The input itself, not to be changed before backward: the gradients, `mean` and `inv_std` would be those of
        neither input. None where ``out=x`` overwrote it.
    gamma : ndarray or None
        (channels,), the parameter itself.
    axis : int
        The channel axis, counted from 0.
    mode : str
        "train" or "test".
    """

    __slots__ = ("_dtypes", "_eps", "_shape", "_statistics", "axis", "gamma", "mode", "x")

    def __init__(self, x, gamma, eps, statistics, axis, mode, shape, dtypes):
        self.x = x
        self.gamma = gamma
        self.axis = axis
        self.mode = mode
        self._eps = eps
        self._statistics = statistics  # what `kept` left of them
        self._shape = shape
        self._dtypes = dtypes  # computed in, returned in

    @property
    def mean(self) -> NDArray[np.float64]:
        """(channels,): the mean that was subtracted."""
        return self._full()[0]

    @property
    def inv_std(self) -> NDArray[np.float64]:
        """(channels,): 1 / sqrt(var + eps), and 0 where var + eps is 0."""
        return self._full()[3]

    @property
    def xhat(self) -> NDArray:
        """The normalized input, computed anew, in the shape and dtype of y."""
        x, xhat = self._input(), np.empty(self._shape, self._dtypes[0])
        if xhat.size:
            _kernels.active.forward(
                self._plan(given=True), x, xhat, None, None, self._full(x).copy(), None, threads_for(xhat.size)
            )
        return xhat.astype(self._dtypes[1], copy=False)

    def _plan(self, given):
        count = 1 if self.mode == "test" else None
        return plan_channels(self._shape, self.axis, self._eps, given, count)

    def _input(self):
        """X as the kernels take it."""
        if self.x is None:
            raise ValueError("cache: expected one that has its x, got one whose x was overwritten by out=x")
        return contiguous(self.x, self._dtypes[0])

    def _full(self, x=None):
        """The statistics, (4, channels): mean, mean_lo, m2, inv_std. X as the kernels take it, where that is there."""
        own = self._statistics
        if own is not None and len(own) == 4:
            return own
        statistics = statistics_for(self._shape[self.axis])
        if own is None and math.prod(self._shape):
            x = self._input() if x is None else x
            _kernels.active.forward(self._plan(given=False), x, None, None, None, statistics, None, threads_for(x.size))
        else:
            statistics[:] = 0
            if own is not None:
                statistics[0], statistics[2] = own
                _kernels.active.forward(self._plan(given=True), None, None, None, None, statistics, None, 1)
        return statistics


def batchnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    momentum: float = 0.9,
    moving_mean: ArrayLike | None = None,
    moving_var: ArrayLike | None = None,
    mode: str = "train",
    *,
    axis: int = 1,
    ddof: int = 0,
    out: NDArray | None = None,
) -> tuple[NDArray, BatchNormCache, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Normalize each channel over all other axes, then scale and shift it.

    Parameters
    ----------
    x : array_like
        At least two axes, such as (N, D), (N, C, H, W) or (N, H, W, C). float32 and float64 are
        computed as they are, float16 in float32, integers and bools in float64.
    gamma, beta : array_like, optional
        (channels,), converted to the dtype of the computation. None stands for 1 and 0.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    momentum : float
        0 to 1, the weight of the old moving average:
        ``new = momentum * old + (1 - momentum) * batch``.
    moving_mean, moving_var : array_like, optional
        (channels,), never changed. None is not tracked; test mode needs both.
    mode : {"train", "test"}
        "train" normalizes with the statistics of x, "test" with `moving_mean` and `moving_var`.
    axis : int
        The channel axis: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    ddof : {0, 1}
        Whether `moving_var` takes in the biased (0) or the unbiased (1, PyTorch's rule) variance of x.
        The normalization itself always uses the biased one.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous. It may be x in test mode.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : BatchNormCache
        For `batchnorm_backward`. It refers to x and gamma.
    moving_mean, moving_var : ndarray or None
        (channels,), float64, new arrays: the updated averages, or the given ones in test mode.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    A channel whose values are all equal gives exactly beta. An empty batch gives an empty y and leaves
    the moving averages as they were. NaN and infinities stay in their channel.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015, https://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0]])
    >>> y, cache, moving_mean, moving_var = cbnorm.batchnorm_forward(
    ...     x, moving_mean=np.zeros(2), moving_var=np.ones(2))
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> moving_mean, moving_var
    (array([0.2, 1.2]), array([1. , 1.3]))
    """
    x = as_array(x, 2)
    shape = x.shape
    axis = check_axis(axis, x.ndim)
    outer, channels, inner = split_shape(shape, axis)
    dtypes = compute_dtype, result_dtype = float_dtypes(x)
    kernel_gamma = check_parameter("gamma", gamma, (channels,), compute_dtype)
    kernel_beta = check_parameter("beta", beta, (channels,), compute_dtype)
    eps = check_eps(eps)
    momentum = check_number("momentum", momentum, 0.0, 1.0)
    given = check_choice("mode", mode, ("train", "test")) == "test"
    new_mean = copy_moving("moving_mean", moving_mean, channels, given)
    new_var = copy_moving("moving_var", moving_var, channels, given)
    if new_var is not None and any_negative(new_var):
        raise ValueError(f"moving_var: expected no negative number, got {np.nanmin(new_var)}")
    ddof = check_choice("ddof", ddof, (0, 1))
    if ddof == 1 and not given and outer * inner == 1:
        raise ValueError(f"ddof: expected 0 for one value a channel, got 1 with x of shape {shape}")
    if out is not None:
        inputs = (x, gamma, beta, moving_mean, moving_var)
        check_out(out, shape, result_dtype, "x" if given else None, FORWARD_INPUTS, inputs)

    values = contiguous(x, compute_dtype)
    y = room_for(out, values, x, result_dtype)
    statistics = statistics_for(channels)
    if x.size:
        plan = plan_channels(shape, axis, eps, given, 1 if given else None)
        moving = new_mean, new_var, momentum, ddof
        _kernels.active.forward(plan, values, y, kernel_gamma, kernel_beta, statistics, moving, threads_for(x.size))
    else:
        statistics[:] = 0
    overwritten = given and out is not None and same_memory(out, x)
    if channels > MANY:
        statistics = kept(statistics, x, given)
    cache = BatchNormCache(None if overwritten else x, gamma, eps, statistics, axis, mode, shape, dtypes)
    return as_result(y, result_dtype, out), cache, new_mean, new_var


def batchnorm_backward(
    dout: ArrayLike,
    cache: BatchNormCache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray | None = None,
) -> tuple[NDArray | None, NDArray | None, NDArray | None]:
    """Gradients of a loss with respect to x, gamma and beta, from its gradient with respect to y.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : BatchNormCache
        From `batchnorm_forward`. In test mode the moving statistics count as constants, so that
        ``dx = dout * gamma * inv_std``.
    need : tuple of three bools
        Which of dx, dgamma and dbeta are wanted. The others are None and are not computed.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma, dbeta : ndarray or None
        (channels,), float32 or float64 as the forward call computed; also where gamma or beta was None.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    The compact form: with M values a channel, ``dbeta = sum(dout)``, ``dgamma = sum(dout * xhat)``,
    ``dx = (gamma * inv_std / M) * (M * dout - xhat * dgamma - dbeta)``.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]])
    >>> y, cache, _, _ = cbnorm.batchnorm_forward(x)
    >>> dx, dgamma, dbeta = cbnorm.batchnorm_backward(np.ones_like(y), cache)
    >>> dbeta
    array([3., 3.])
    >>> bool(abs(dx).max() < 1e-12)  # a shift of all outputs comes from beta alone
    True
    """
    if not isinstance(cache, BatchNormCache):
        raise TypeError(f"cache: expected that of batchnorm_forward, got {type(cache).__name__}")
    shape, (compute_dtype, result_dtype) = cache._shape, cache._dtypes
    dout = as_numbers("dout", dout)
    if dout.shape != shape:
        raise ValueError(f"dout: expected shape {shape}, got {dout.shape}")
    want_dx, want_dgamma, want_dbeta = check_need(need, ("dx", "dgamma", "dbeta"))
    channels = shape[cache.axis]
    given = cache.mode == "test"
    gamma = check_parameter("cache.gamma", cache.gamma, (channels,), compute_dtype)
    if out is not None:
        if not want_dx:
            raise ValueError("out: expected None where need says that dx is not wanted, got an array")
        check_out(out, shape, result_dtype, "dout", ("dout", "x", "gamma"), (dout, cache.x, cache.gamma))
    x = cache._input() if want_dgamma or (want_dx and not given) else None

    values = contiguous(dout, compute_dtype)
    dx = room_for(out, values, dout, result_dtype) if want_dx else None
    dgamma = gradient_for((channels,), compute_dtype) if want_dgamma else None
    dbeta = gradient_for((channels,), compute_dtype) if want_dbeta else None
    if dout.size:
        statistics = np.zeros((4, channels)) if x is None and not want_dx else cache._full(x)  # dbeta alone needs none
        _kernels.active.backward(
            plan_channels(shape, cache.axis, cache._eps, given), values, x, dx, gamma, (dgamma, dbeta), statistics,
            threads_for(dout.size),
        )  # fmt: skip
    else:
        for sums in (dgamma, dbeta):
            if sums is not None:
                sums[:] = 0
    return as_result(dx, result_dtype, out) if want_dx else None, dgamma, dbeta
