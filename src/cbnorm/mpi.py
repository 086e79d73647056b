"""Batch normalization and statistics over the ranks of an MPI communicator (mpi4py), as of one array.

    mpiexec -n 4 python -m mpi4py train.py

Each rank calls with its own part of a batch and gets its own part of the results, equal to those of one process that
has the whole, whatever the split: parts may be uneven and empty. A forward pass sends one message from each rank to
each other, of 3C + 2 float64 for C channels, a backward pass one of 2C + 2; they are merged in rank order, so that all
ranks hold the same bits. Calls that send are made by all ranks of `comm` in the same order, by one thread of each; a
rank whose arguments are wrong makes all of them raise. Without a `comm` they are those of ``MPI.COMM_WORLD``.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

import cbnorm
from cbnorm._arrays import as_input, as_numbers, check_number, check_out
from cbnorm._axes import check_axes
from cbnorm._distributed import SyncCache, backward, forward, forward_given, merge_ranks
from cbnorm._ranks import ranks_of
from cbnorm._results import float_dtypes
from cbnorm.moments import Moments

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

__all__ = ["BatchNorm", "SyncCache", "batchnorm_backward", "batchnorm_forward", "moments", "standardize"]


def moments(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = 0,
    *,
    weights: ArrayLike | None = None,
    keepdims: bool = False,
    comm: Intracomm | None = None,
) -> Moments:
    """Count, mean and variance over any axes of an array whose parts lie on several ranks.

    Parameters
    ----------
    x : array_like
        This rank's part, as `cbnorm.moments` takes it; the axes that are not reduced have the same lengths everywhere.
    axis, weights, keepdims
        As in `cbnorm.moments`.
    comm : mpi4py.MPI.Intracomm, optional
        Whose ranks have the parts; ``MPI.COMM_WORLD`` by default.

    Returns
    -------
    Moments
        Of all parts, the same bits on every rank.

    Raises
    ------
    ValueError, TypeError
        On every rank, if an argument is not as described on one, or the calls differ.

    Examples
    --------
    >>> import numpy as np, cbnorm.mpi
    >>> from mpi4py import MPI
    >>> m = cbnorm.mpi.moments(np.array([[1.0, 10.0], [3.0, 30.0]]), comm=MPI.COMM_SELF)
    >>> m.count, m.mean
    (2, array([ 2., 20.]))
    """

    def find():
        part = cbnorm.moments(x, axis, weights=weights, keepdims=keepdims)
        axes = check_axes(axis, np.ndim(x))
        return part, f"moments of shape {part.mean.shape} over axis {axes}"

    return merge_ranks(ranks_of(comm).gather, find)


def standardize(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = 0,
    *,
    weights: ArrayLike | None = None,
    ddof: float = 0,
    out: NDArray[Any] | None = None,
    comm: Intracomm | None = None,
) -> tuple[NDArray[Any], Moments]:
    """(x - mean) / std with the mean and std of all parts of an array.

    Parameters
    ----------
    x : array_like
        This rank's part, as `cbnorm.standardize` takes it; the axes that are not reduced have the same lengths
        everywhere.
    axis, weights, ddof, out
        As in `cbnorm.standardize`.
    comm : mpi4py.MPI.Intracomm, optional
        Whose ranks have the parts; ``MPI.COMM_WORLD`` by default.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    moments : Moments
        Of all parts, the same bits on every rank.

    Raises
    ------
    ValueError, TypeError
        On every rank, if an argument is not as described on one, or the calls differ; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm.mpi
    >>> from mpi4py import MPI
    >>> y, m = cbnorm.mpi.standardize(np.array([[1.0, 10.0], [3.0, 30.0]]), comm=MPI.COMM_SELF)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    """

    def find():
        array = as_numbers("x", x)
        axes = check_axes(axis, array.ndim)
        degrees = check_number("ddof", ddof, -math.inf, math.inf)
        if out is not None:
            check_out(out, array.shape, float_dtypes(array)[1], "x", ("x",), (array,), True)
        part = cbnorm.moments(array, axis, weights=weights)
        return part, f"standardize by shape {part.mean.shape} over axis {axes}, ddof={degrees}"

    whole = merge_ranks(ranks_of(comm).gather, find)
    return whole.standardize(x, axis, ddof=ddof, out=out), whole


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
    weights: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    comm: Intracomm | None = None,
) -> tuple[NDArray[Any], SyncCache, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Normalize each channel of a batch whose samples lie on several ranks, then scale and shift it.

    Parameters
    ----------
    x : array_like
        This rank's part, as `cbnorm.batchnorm_forward` takes it; the same number of channels everywhere.
    gamma, beta, moving_mean, moving_var : array_like, optional
        (channels,), the same on every rank: they are not sent, and not compared.
    eps, momentum, mode, axis, ddof, weights, out
        As in `cbnorm.batchnorm_forward`. Test mode sends nothing: ranks need not all call.
    comm : mpi4py.MPI.Intracomm, optional
        Whose ranks have the parts; ``MPI.COMM_WORLD`` by default.

    Returns
    -------
    y : ndarray
        The shape of x; its dtype, or float64 for integers.
    cache : SyncCache
        For `batchnorm_backward`. It refers to x.
    moving_mean, moving_var : ndarray or None
        (channels,), float64, new arrays, the same bits on every rank.

    Raises
    ------
    ValueError, TypeError
        On every rank, if an argument is not as described on one, or the calls differ; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm.mpi
    >>> from mpi4py import MPI
    >>> y, cache, _, _ = cbnorm.mpi.batchnorm_forward(np.array([[1.0, 10.0], [3.0, 14.0]]), comm=MPI.COMM_SELF)
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    ranks = ranks_of(comm)

    def arguments():
        return x, gamma, beta, eps, momentum, moving_mean, moving_var, mode, axis, ddof, out, weights

    if isinstance(mode, str) and mode == "test":
        return forward_given(arguments)
    return forward(ranks.gather, arguments)


@overload
def batchnorm_backward(
    dout: ArrayLike, cache: SyncCache, *, out: NDArray[Any] | None = None, comm: Intracomm | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
@overload
def batchnorm_backward(
    dout: ArrayLike,
    cache: SyncCache,
    *,
    need: tuple[bool, bool, bool],
    out: NDArray[Any] | None = None,
    comm: Intracomm | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]: ...
def batchnorm_backward(
    dout: ArrayLike,
    cache: SyncCache,
    *,
    need: tuple[bool, bool, bool] = (True, True, True),
    out: NDArray[Any] | None = None,
    comm: Intracomm | None = None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """Gradients of a loss with respect to this rank's x, and to the gamma and beta of all.

    A message is sent in either mode, so all ranks call.

    Parameters
    ----------
    dout : array_like
        The shape of y: the gradient of the loss of the whole batch.
    cache : SyncCache
        From `batchnorm_forward`.
    need, out
        As in `cbnorm.batchnorm_backward`; `need` is the same on every rank.
    comm : mpi4py.MPI.Intracomm, optional
        That of the forward call.

    Returns
    -------
    dx : ndarray or None
        The shape and dtype of y.
    dgamma, dbeta : ndarray or None
        (channels,), float32 or float64: summed over all ranks already, the same bits on each.

    Raises
    ------
    ValueError, TypeError
        On every rank, if an argument is not as described on one, or the calls differ; nothing is written then.

    Examples
    --------
    >>> import numpy as np, cbnorm.mpi
    >>> from mpi4py import MPI
    >>> x = np.array([[1.0, 10.0], [3.0, 14.0], [8.0, 12.0]])
    >>> y, cache, _, _ = cbnorm.mpi.batchnorm_forward(x, comm=MPI.COMM_SELF)
    >>> dx, dgamma, dbeta = cbnorm.mpi.batchnorm_backward(np.ones_like(y), cache, comm=MPI.COMM_SELF)
    >>> dbeta
    array([3., 3.])
    """
    return tuple(backward(ranks_of(comm).gather, lambda: (dout, cache, need, out)))


class BatchNorm(cbnorm.BatchNorm):
    """`cbnorm.BatchNorm` whose batches lie on several ranks: statistics and gradients are those of the whole batch.

    In training mode `forward` and `backward` send a message each and are called by all ranks; in test mode, and where
    `frozen`, `backward` alone. The parameters' gradients in `grads` are summed over the ranks already: ranks that begin
    with the same parameters and take the same steps keep the same bits.

    Parameters
    ----------
    num_channels, **options
        As in `cbnorm.BatchNorm`.
    comm : mpi4py.MPI.Intracomm, optional
        Whose ranks have the parts; None stands for ``MPI.COMM_WORLD``. The attribute may be changed at any time. Copies
        share it; a pickle holds it where mpi4py pickles it, as it does the world.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm.mpi
    >>> from mpi4py import MPI
    >>> layer = cbnorm.mpi.BatchNorm(2, comm=MPI.COMM_SELF)
    >>> layer(np.array([[1.0, 10.0], [3.0, 14.0]])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    """

    comm: Intracomm | None

    def __init__(self, num_channels: int, *, comm: Intracomm | None = None, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.comm = comm

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything but the communicator."""
        memo[id(self.comm)] = self.comm
        layer = memo[id(self)] = object.__new__(type(self))
        layer.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return layer

    def forward(self, x: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[Any]:
        """Normalize this rank's part of a batch and, in training, take the whole batch into the moving statistics.

        Parameters
        ----------
        x : array_like
            At least two axes, `num_channels` long on the channel axis; it may be empty. `backward` reads it again.
        weights : array_like, optional
            As in `cbnorm.BatchNorm`, of this part.

        Returns
        -------
        ndarray
            y, the shape of x; its dtype, or float64 for integers.

        Raises
        ------
        ValueError, TypeError
            In training on every rank, if `x` does not fit on one, or the layers differ; nothing has changed then.
        """

        def arguments(mode="test", momentum=0.9):
            array = as_input(x, 2, self.axis, (self.num_channels,))
            averages = momentum, self.moving_mean, self.moving_var, mode
            inputs = (array, self.gamma, self.beta, self.eps, *averages, self.axis, self.ddof)
            return *inputs, self._room_for_y(array), weights

        ranks = ranks_of(self.comm)
        if self._frozen or not self._training:
            y, cache, *_ = forward_given(arguments)
            return self._remember(y, cache)
        with self._lock:  # from reading the old moving statistics to writing the new
            seen = self.num_batches
            momentum = seen / (seen + 1) if self.momentum is None else self.momentum
            y, cache, mean, var = forward(ranks.gather, lambda: arguments("train", momentum))
            counts = cache.counts
            if counts and self.nonfinite != "propagate":
                counts = self._leave_out(mean, var, cache.moments.mean + cache.moments.m2)
            self._replace(mean, var, seen + counts)
        return self._remember(y, cache)

    def backward(self, dout: ArrayLike, cache: SyncCache | None = None) -> NDArray[Any]:
        """Gradient of a loss with respect to this rank's x of a call; those of the parameters go to `grads`.

        Parameters
        ----------
        dout : array_like
            The shape of y: the gradient of the loss of the whole batch.
        cache : SyncCache, optional
            The record of the call: what the attribute `cache` was after it. By default that of this thread's last call.

        Returns
        -------
        ndarray
            dx, the shape and dtype of y.

        Raises
        ------
        ValueError, TypeError
            On every rank, if an argument does not fit on one; `grads` stay as they were then.
        """

        def arguments():
            record = self._record_meant(cache)
            values = as_numbers("dout", dout)
            out = self._room_for_dx(record.x.shape, float_dtypes(record.x)[1], values, record.x)
            return values, record, self._need(), out

        dx, *gradients = backward(ranks_of(self.comm).gather, arguments)
        self._keep(gradients)
        return dx

    def _check_record(self, cache):
        if not isinstance(cache, SyncCache):
            raise TypeError(f"cache: expected the record of a call of this layer, got {type(cache).__name__}")
        if cache.channels != self.num_channels:
            raise ValueError(
                f"cache: expected the record of a call of this layer, of {self.num_channels} channels, "
                f"got {cache.channels}"
            )
        if cache._owner not in (None, self._owner):
            raise ValueError("cache: expected the record of a call of this layer, got that of another one of its kind")
