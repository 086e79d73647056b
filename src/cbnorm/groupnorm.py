"""Group and instance normalization: statistics of each group of channels of each sample.

xhat = (x - mean) * inv_std over a group's channels and all positions, y = gamma * xhat + beta with a gamma
and beta for each channel (Wu and He, 2018). One channel a group is instance normalization (Ulyanov et al., 2016).
"""

from __future__ import annotations

from typing import Any, overload

from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_array, check_channels_axis, check_divisor, check_eps
from cbnorm._calls import Cache, backward, forward
from cbnorm._plan import plan_groups


def groupnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    num_groups: int | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache]:
    """Normalize each group of neighbouring channels of each sample, then scale and shift each channel.

    Parameters
    ----------
    x : array_like
        (N, C, *), or (N, *, C) with ``axis=-1``. Dtypes as in `batchnorm_forward`.
    gamma, beta : array_like or None
        (C,). None stands for 1 and 0.
    num_groups : int
        Divides C; C / num_groups neighbouring channels make a group.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    axis : int
        The channel axis: 1, or the last.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous, apart from all inputs.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : Cache
        For `groupnorm_backward`. It refers to x; its `mean` and `inv_std` are (N, num_groups).

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    A group whose values are all equal gives exactly beta, and so does a group of a single value (one channel, one
    position), with a dx and dgamma of 0: nothing is left of x then, and no error says so. PyTorch's
    refuses it for a batch of one alone.

    References
    ----------
    Wu and He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[1.0, 3.0, 10.0, 14.0]])  # one sample of four channels
    >>> y, cache = cbnorm.groupnorm_forward(x, None, None, num_groups=2)
    >>> y.round(3)
    array([[-1.,  1., -1.,  1.]])
    >>> cache.mean
    array([[ 2., 12.]])

    Channels last, as in Keras, Flax and diffusion models, read where they are:

    >>> x = np.random.default_rng(0).standard_normal((2, 16, 16, 64)).astype(np.float32)
    >>> y, cache = cbnorm.groupnorm_forward(x, None, None, num_groups=32, axis=-1)
    >>> bool(np.abs(y.reshape(2, 256, 32, 2).mean(axis=(1, 3))).max() < 1e-6)
    True
    """
    x = as_array(x, 2)
    axis = check_channels_axis(axis, x.ndim)
    plan = plan_groups(x.shape, check_divisor("num_groups", num_groups, x.shape[axis]), check_eps(eps), axis)
    return forward("groupnorm", plan, x, gamma, beta, out)


@overload
def groupnorm_backward(
    dout: ArrayLike, cache: Cache, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def groupnorm_backward(
    dout: ArrayLike, cache: Cache, *, need: tuple[bool, bool, bool], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]: ...
def groupnorm_backward(
    dout: ArrayLike,
    cache: Cache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients with respect to x, gamma and beta.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : Cache
        From `groupnorm_forward`.
    need : tuple of three bools
        Which of dx, dgamma and dbeta are wanted. The others are None and are not computed.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma, dbeta : ndarray or None
        (C,), float32 or float64 as the forward call computed; also where gamma or beta was None.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.groupnorm_forward(np.array([[1.0, 3.0, 10.0, 14.0]]), None, None, 2)
    >>> dx, dgamma, dbeta = cbnorm.groupnorm_backward(np.ones_like(y), cache)
    >>> dbeta
    array([1., 1., 1., 1.])
    """
    return backward("groupnorm", dout, cache, need, out)


def instancenorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache]:
    """Normalize each channel of each sample over its positions: group normalization with C groups.

    Parameters
    ----------
    x : array_like
        (N, C, *), or (N, *, C) with ``axis=-1``. Dtypes as in `batchnorm_forward`.
    gamma, beta : array_like, optional
        (C,). None stands for 1 and 0.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    axis : int
        The channel axis: 1, or the last.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous, apart from all inputs.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : Cache
        For `instancenorm_backward`. It refers to x; its `mean` and `inv_std` are (N, C).

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    A channel whose values are all equal gives exactly beta, and so does a channel of one position, as in (N, C), with a
    dx and dgamma of 0: nothing is left of x then, and no error says so. PyTorch's refuses the latter.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016, https://arxiv.org/abs/1607.08022.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.array([[[1.0, 3.0], [10.0, 14.0]]])  # one sample, two channels, two positions
    >>> cbnorm.instancenorm_forward(x)[0].round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    x = as_array(x, 2)
    axis = check_channels_axis(axis, x.ndim)
    plan = plan_groups(x.shape, x.shape[axis], check_eps(eps), axis)
    return forward("instancenorm", plan, x, gamma, beta, out)


@overload
def instancenorm_backward(
    dout: ArrayLike, cache: Cache, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def instancenorm_backward(
    dout: ArrayLike, cache: Cache, *, need: tuple[bool, bool, bool], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]: ...
def instancenorm_backward(
    dout: ArrayLike,
    cache: Cache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients with respect to x, gamma and beta.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : Cache
        From `instancenorm_forward`.
    need : tuple of three bools
        Which of dx, dgamma and dbeta are wanted. The others are None and are not computed.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma, dbeta : ndarray or None
        (C,), float32 or float64 as the forward call computed; also where gamma or beta was None.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.instancenorm_forward(np.array([[[1.0, 3.0], [10.0, 14.0]]]))
    >>> dx, dgamma, dbeta = cbnorm.instancenorm_backward(np.ones_like(y), cache)
    >>> dbeta
    array([2., 2.])
    """
    return backward("instancenorm", dout, cache, need, out)
