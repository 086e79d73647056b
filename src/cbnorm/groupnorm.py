"""Group and instance normalization: statistics of each group of channels of each sample.

xhat = (x - mean) * inv_std over a group's channels and all positions, y = gamma * xhat + beta with a gamma
and beta for each channel (Wu and He, 2018). One channel a group is instance normalization (Ulyanov et al., 2016).
"""

import math

from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_array, check_integer
from cbnorm._rows import Rows, RowsCache, backward, forward


def groupnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    num_groups: int,
    eps: float = 1e-5,
    *,
    out: NDArray | None = None,
) -> tuple[NDArray, RowsCache]:
    """Normalize each group of neighbouring channels of each sample, then scale and shift each channel.

    Parameters
    ----------
    x : array_like
        (N, C, *). Dtypes as in `batchnorm_forward`.
    gamma, beta : array_like or None
        (C,). None stands for 1 and 0.
    num_groups : int
        Divides C; C / num_groups neighbouring channels make a group.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous, apart from all inputs.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : RowsCache
        For `groupnorm_backward`. It refers to x and gamma; its `mean` and `inv_std` are (N, num_groups).

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

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
    """
    x = as_array(x, 2)
    return forward("groupnorm", x, gamma, beta, eps, out, _group_rows(x, num_groups))


def _group_rows(x, num_groups):
    samples, channels, *positions = x.shape
    groups = check_integer("num_groups", num_groups)
    if groups < 1 or channels % groups:
        raise ValueError(f"num_groups: expected a divisor of {channels} channels, got {groups}")
    return _rows_of(samples, channels, groups, positions)


def _rows_of(samples, channels, groups, positions):
    runs = channels // groups if groups else 0
    return Rows((samples, groups), samples * groups, groups, runs, math.prod(positions), (channels,))


def groupnorm_backward(
    dout: ArrayLike,
    cache: RowsCache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray | None = None,
) -> tuple[NDArray | None, NDArray | None, NDArray | None]:
    """Gradients with respect to x, gamma and beta.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : RowsCache
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
    out: NDArray | None = None,
) -> tuple[NDArray, RowsCache]:
    """Normalize each channel of each sample over its positions: group normalization with C groups.

    Parameters
    ----------
    x : array_like
        (N, C, *). Dtypes as in `batchnorm_forward`.
    gamma, beta : array_like, optional
        (C,). None stands for 1 and 0.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous, apart from all inputs.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : RowsCache
        For `instancenorm_backward`. It refers to x and gamma; its `mean` and `inv_std` are (N, C).

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

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
    layout = _rows_of(x.shape[0], x.shape[1], x.shape[1], x.shape[2:])
    return forward("instancenorm", x, gamma, beta, eps, out, layout)


def instancenorm_backward(
    dout: ArrayLike,
    cache: RowsCache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray | None = None,
) -> tuple[NDArray | None, NDArray | None, NDArray | None]:
    """Gradients with respect to x, gamma and beta.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : RowsCache
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
