"""Layer normalization: each row has its own statistics, each of its numbers a gamma and a beta.

xhat = (x - mean) * inv_std over the trailing axes, y = gamma * xhat + beta (Ba, Kiros and Hinton, 2016).
"""

from __future__ import annotations

from typing import Any, overload

from numpy.typing import ArrayLike, NDArray

from cbnorm._calls import Cache, backward, forward_rows


def layernorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | tuple[int, ...] = -1,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache]:
    """Normalize over the trailing axes, then scale and shift each number of a row.

    Parameters
    ----------
    x : array_like
        At least one axis. Dtypes as in `batchnorm_forward`.
    gamma, beta : array_like, optional
        ``x.shape[axis:]``, or the shape of a tuple's axes, in the order of x. None stands for 1 and 0.
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    axis : int or tuple of ints
        Where the normalized axes begin, which go on to the last; or these axes themselves. Where they are not the last
        ones, x goes through one copy.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, C-contiguous, apart from all inputs.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : Cache
        For `layernorm_backward`. It refers to x.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Notes
    -----
    A row whose numbers are all equal gives exactly beta, and so does a row of a single number, with a dx and dgamma
    of 0.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016, https://arxiv.org/abs/1607.06450.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.layernorm_forward(np.array([[1.0, 3.0], [10.0, 14.0]]))
    >>> y.round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> cache.mean
    array([ 2., 12.])

    Over the channels of images, at each place:

    >>> images = np.array([[[[1.0, 2.0]], [[3.0, 6.0]]]])  # one image of two channels, (N, C, H, W)
    >>> cbnorm.layernorm_forward(images, gamma=[1.0, 2.0], axis=(1,), eps=0.0)[0]
    array([[[[-1., -1.]],
    <BLANKLINE>
            [[ 2.,  2.]]]])
    """
    return forward_rows("layernorm", x, gamma, beta, eps, axis, out)


@overload
def layernorm_backward(
    dout: ArrayLike, cache: Cache, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def layernorm_backward(
    dout: ArrayLike, cache: Cache, *, need: tuple[bool, bool, bool], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]: ...
def layernorm_backward(
    dout: ArrayLike,
    cache: Cache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients with respect to x, gamma and beta.

    With D numbers a row and ``dxhat = dout * gamma``,
    ``dx = (inv_std / D) * (D * dxhat - xhat * sum(dxhat * xhat) - sum(dxhat))``.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : Cache
        From `layernorm_forward`.
    need : tuple of three bools
        Which of dx, dgamma and dbeta are wanted. The others are None and are not computed.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma, dbeta : ndarray or None
        The shape of the normalized axes, summed over rows, float32 or float64 as the forward call
        computed; also where gamma or beta was None.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.layernorm_forward(np.array([[1.0, 3.0], [10.0, 14.0]]))
    >>> dx, dgamma, dbeta = cbnorm.layernorm_backward(np.ones_like(y), cache)
    >>> dbeta
    array([2., 2.])
    """
    return backward("layernorm", dout, cache, need, out)
