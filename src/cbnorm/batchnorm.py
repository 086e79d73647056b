"""Batch normalization: statistics over all axes but one, forward and backward.

xhat = (x - mean) * inv_std with inv_std = 1 / sqrt(var + eps), and y = gamma * xhat + beta
(Ioffe and Szegedy, 2015).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_array, check_axis, check_choice, check_eps
from cbnorm._calls import Cache, backward, forward
from cbnorm._plan import plan_channels
from cbnorm._weights import count_by

BatchNormCache = Cache  # the name that the first version gave it


@overload
def batchnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    momentum: float = 0.9,
    *,
    moving_mean: ArrayLike,
    moving_var: ArrayLike,
    mode: Literal["train", "test"] = "train",
    axis: int = 1,
    ddof: int = 0,
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache, NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def batchnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    momentum: float,
    moving_mean: ArrayLike,
    moving_var: ArrayLike,
    mode: Literal["train", "test"] = "train",
    *,
    axis: int = 1,
    ddof: int = 0,
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache, NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def batchnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    momentum: float = 0.9,
    moving_mean: ArrayLike | None = None,
    moving_var: ArrayLike | None = None,
    mode: Literal["train", "test"] = "train",
    *,
    axis: int = 1,
    ddof: int = 0,
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache, NDArray[np.float64] | None, NDArray[np.float64] | None]: ...
def batchnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    momentum: float = 0.9,
    moving_mean: ArrayLike | None = None,
    moving_var: ArrayLike | None = None,
    mode: Literal["train", "test"] = "train",
    *,
    axis: int = 1,
    ddof: int = 0,
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache, NDArray[np.float64] | None, NDArray[np.float64] | None]:
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
        (channels,), never changed. None is not tracked; test mode needs both. A moving variance that is infinite gives
        beta, as a larger and larger one would; a mean or variance that is NaN, or an infinite mean, gives NaN.
    mode : {"train", "test"}
        "train" normalizes with the statistics of x, "test" with `moving_mean` and `moving_var`.
    axis : int
        The channel axis: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    ddof : {0, 1}
        Whether `moving_var` takes in the biased (0) or the unbiased (1, PyTorch's rule) variance of x.
        The normalization itself always uses the biased one.
    weights : array_like, optional
        What each place counts in the statistics of x: the shape of x without its channel axis, or (N,); a mask of
        bools, or numbers from 0 up of any dtype. Test mode has no use for them.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous. It may be x in test mode.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : Cache
        For `batchnorm_backward`. It refers to x.
    moving_mean, moving_var : ndarray or None
        (channels,), float64, new arrays: the updated averages, or the given ones in test mode.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    A channel whose values are all equal gives exactly beta, and so does a single value a channel, with a dx and dgamma
    of 0; PyTorch refuses the latter. An empty batch gives an empty y and leaves the moving averages as they were. NaN
    and infinities stay in their channel.

    With weights w and W = Σ w, mean = Σ w·x / W and var = Σ w·(x - mean)² / W; ``ddof=1`` makes that W - 1, as if each
    weight were a number of equal samples. y is computed everywhere, and what counts 0 is not read for the statistics.
    Where all weights are 0, the batch counts as an empty one: y is beta, the moving averages stay, gradients are 0.

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

    Padded sequences, (N, L, C), whose mask tells which positions are there:

    >>> x = np.array([[[1.0], [3.0]], [[8.0], [np.nan]]])
    >>> y, cache, _, _ = cbnorm.batchnorm_forward(x, axis=-1, weights=[[True, True], [True, False]])
    >>> cache.mean
    array([4.])
    """
    x = as_array(x, 2)
    axis = check_axis(axis, x.ndim)
    given = check_choice("mode", mode, ("train", "test")) == "test"
    plan = plan_channels(x.shape, axis, check_eps(eps), given, 1 if given else None)
    if weights is not None:
        counted = count_by(plan_channels(x.shape, axis, plan.eps), weights)  # checked in test mode too
        plan = plan if given else counted
    return forward("batchnorm", plan, x, gamma, beta, out, (moving_mean, moving_var, momentum, ddof))


@overload
def batchnorm_backward(
    dout: ArrayLike, cache: Cache, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def batchnorm_backward(
    dout: ArrayLike, cache: Cache, *, need: tuple[bool, bool, bool], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]: ...
def batchnorm_backward(
    dout: ArrayLike,
    cache: Cache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients of a loss with respect to x, gamma and beta, from its gradient with respect to y.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : Cache
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
    ``dx = (gamma * inv_std / M) * (M * dout - xhat * dgamma - dbeta)``. With weights w,
    ``dx = gamma * inv_std * (dout - (w / sum(w)) * (xhat * dgamma + dbeta))``: dgamma and dbeta are sums over all dout.

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
    return backward("batchnorm", dout, cache, need, out)
