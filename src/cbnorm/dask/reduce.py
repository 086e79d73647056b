"""What is one tree of merges over the chunks of a Dask array, and what is standardized by it."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.graph_manipulation import bind

import cbnorm
from cbnorm.dask.lazy import LazyMoments, check_array, fields_of

SPLIT_EVERY = 4  # a number of ours: the bits of a result do not depend on Dask's settings


def moments(
    x: da.Array, axis: int | tuple[int, ...] | None = 0, *, keepdims: bool = False, split_every: int = SPLIT_EVERY
) -> LazyMoments:
    """Count, mean and variance over any axes, lazily, in one pass over the chunks.

    Parameters
    ----------
    x : dask.array.Array
        Of any real dtype, in any chunks along every axis: of unknown sizes too, and empty ones.
    axis : int, tuple of ints, or None
        The axes reduced, as in NumPy; None is all of them.
    keepdims : bool
        Whether the axes reduced stay, with length 1.
    split_every : int
        Results that are merged at a time, in the order of the chunks; at least 2.

    Returns
    -------
    LazyMoments
        ``compute()`` gives `cbnorm.Moments`, right at any offset, as `cbnorm.moments` is.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Notes
    -----
    A task reads one chunk and leaves three float64 for each of its channels.

    Examples
    --------
    >>> import dask.array as da, numpy as np, cbnorm.dask
    >>> x = da.from_array(np.float32([[1e6 - 1, 5], [1e6 + 1, 5]]), chunks=1)
    >>> m = cbnorm.dask.moments(x)
    >>> m
    LazyMoments(shape=(2,), chunks=((1, 1),))
    >>> m.compute()
    Moments(count=2, mean=[1.e+06, 5.e+00], m2=[2., 0.], mean_lo=[0., 0.])
    """
    reduced = check_array("x", x, axis)
    keepdims = cbnorm.moments(np.empty(1), keepdims=keepdims).mean.ndim == 1  # whatever it takes for a bool
    merged = _tree(x, partial(_moments_of, axis=reduced), reduced, split_every)
    return fields_of(merged, () if keepdims else reduced)


def standardize(
    x: da.Array, axis: int | tuple[int, ...] | None = 0, *, ddof: float = 0, split_every: int = SPLIT_EVERY
) -> tuple[da.Array, LazyMoments]:
    """(x - mean) / std over any axes, lazily.

    Parameters
    ----------
    x, axis, split_every
        As in `moments`.
    ddof : float
        0 for the biased variance, 1 for the unbiased one.

    Returns
    -------
    y : dask.array.Array
        In the chunks of x; its dtype, or float64 for integers. Equal values give 0.
    moments : LazyMoments
        Of x; ``moments.standardize`` does the same to other data, ``moments.unstandardize`` leads back.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Notes
    -----
    What x is made of is read, or computed, twice: once for the moments and, when these are there, once more for y, so
    that no chunk waits in memory for the others. Where computing x takes long and the cluster has room for it, hand
    over ``x.persist()``.

    Examples
    --------
    >>> import dask.array as da, numpy as np, cbnorm.dask
    >>> x = da.from_array(np.float32([[1e6 - 1, 5], [1e6 + 1, 5]]), chunks=1)
    >>> y, m = cbnorm.dask.standardize(x)
    >>> y.compute()
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    >>> m.std().compute()
    array([1., 0.])
    """
    m = moments(x, axis, split_every=split_every)
    return m.standardize(bind(x, m), axis, ddof=ddof), m


def population_stats(x: da.Array, axis: int = 1, *, split_every: int = SPLIT_EVERY) -> Delayed:
    """`cbnorm.PopulationStats` that took in each chunk as a batch, lazily.

    Parameters
    ----------
    x : dask.array.Array
        At least two axes. Chunks that part the channels are put together.
    axis : int
        The channel axis: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    split_every : int
        As in `moments`.

    Returns
    -------
    dask.delayed.Delayed
        ``compute()`` gives `cbnorm.PopulationStats`, to which further batches or statistics may be added.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import dask.array as da, cbnorm.dask
    >>> images = da.ones((10, 3, 8, 8), chunks=(4, 2, 8, 8))
    >>> cbnorm.dask.population_stats(images).compute()
    PopulationStats(axis=1, batches=3, count=640, 3 channels)
    """
    check_array("x", x, axis if isinstance(axis, int) else 0)
    cbnorm.PopulationStats(axis).update(np.empty((0,) * x.ndim))
    together = x.rechunk({axis: -1})
    return _tree(together, partial(_population_of, axis=axis), tuple(range(x.ndim)), split_every).to_delayed().item()


def _tree(x: da.Array, function: Any, reduced: tuple[int, ...], split_every: int) -> da.Array:
    """What the function makes of each chunk, added up along the axes reduced; the blocks are no arrays."""
    if type(split_every) is not int or split_every < 2:
        raise ValueError(f"split_every: expected an integer of at least 2, got {split_every!r}")
    axes, meta = tuple(range(x.ndim)), np.empty((0,) * x.ndim)
    ones = dict.fromkeys(reduced, 1)
    parts = da.blockwise(function, axes, x, axes, adjust_chunks=ones, dtype=meta.dtype, meta=meta)
    if not reduced:
        return parts
    return da.reduction(
        parts,
        chunk=_itself,
        combine=_add_up,
        aggregate=_add_up,
        axis=reduced,
        keepdims=True,
        concatenate=False,
        split_every=split_every,
        dtype=meta.dtype,
        meta=meta,
    )


def _moments_of(chunk: Any, axis: tuple[int, ...]) -> cbnorm.Moments:
    with cbnorm.threads(1):  # Dask has its own
        return cbnorm.moments(chunk, axis, keepdims=True)


def _population_of(chunk: Any, axis: int) -> cbnorm.PopulationStats:
    gathered = cbnorm.PopulationStats(axis)
    with cbnorm.threads(1):
        gathered.update(chunk)
    return gathered


def _itself(part: Any, axis: Any, keepdims: Any) -> Any:
    return part


def _add_up(parts: Any, axis: Any, keepdims: Any) -> Any:
    """The sum of lists of lists of parts, in the order in which they stand there."""
    return sum(_add_up(part, axis, keepdims) for part in parts) if isinstance(parts, list) else parts
