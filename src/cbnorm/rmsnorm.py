"""RMS normalization: y = x / sqrt(mean(x²) + eps) * gamma over the trailing axes (Zhang and Sennrich, 2019)."""

from __future__ import annotations

from typing import Any, overload

from numpy.typing import ArrayLike, NDArray

from cbnorm._calls import Cache, backward, forward_rows


def rmsnorm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | tuple[int, ...] = -1,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Cache]:
    """Divide each row by its root mean square, then scale each of its numbers.

    Parameters
    ----------
    x : array_like
        At least one axis. Dtypes as in `batchnorm_forward`.
    gamma : array_like, optional
        ``x.shape[axis:]``, or the shape of a tuple's axes, in the order of x. None stands for 1.
    eps : float
        Added to the mean square, in the units of x squared; at least 0.
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
        For `rmsnorm_backward`. It refers to x.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, https://arxiv.org/abs/1910.07467.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.rmsnorm_forward(np.array([[1.0, 7.0]]), eps=0.0)
    >>> y
    array([[0.2, 1.4]])
    """
    return forward_rows("rmsnorm", x, gamma, None, eps, axis, out, False)


@overload
def rmsnorm_backward(
    dout: ArrayLike, cache: Cache, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def rmsnorm_backward(
    dout: ArrayLike, cache: Cache, *, need: tuple[bool, bool], out: NDArray[Any] | None = None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]: ...
def rmsnorm_backward(
    dout: ArrayLike,
    cache: Cache,
    *,
    need: tuple[bool, bool] = (True, True),
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients with respect to x and gamma.

    With D numbers a row and ``dxhat = dout * gamma``,
    ``dx = (inv_rms / D) * (D * dxhat - xhat * sum(dxhat * xhat))``.

    Parameters
    ----------
    dout : array_like
        The shape of y; converted to the dtype that the forward call computed in.
    cache : Cache
        From `rmsnorm_forward`.
    need : tuple of two bools
        Which of dx and dgamma are wanted. The others are None and are not computed.
    out : ndarray, optional
        Where dx goes: the shape and dtype of dx, C-contiguous. It may be dout.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma : ndarray or None
        The shape of the normalized axes, summed over rows, float32 or float64 as the forward call computed.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> y, cache = cbnorm.rmsnorm_forward(np.array([[1.0, 7.0]]), eps=0.0)
    >>> dx, dgamma = cbnorm.rmsnorm_backward(np.array([[1.0, 1.0]]), cache)
    >>> dgamma
    array([0.2, 1.4])
    """
    return backward("rmsnorm", dout, cache, need, out, ("dx", "dgamma"))[:2]
