"""Moments that are not computed yet: Dask arrays in the place of NumPy's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import DaskMethodsMixin, tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.lib.array_utils import normalize_axis_tuple

import cbnorm

FIELDS = ("count", "mean", "m2", "mean_lo")


class LazyMoments(DaskMethodsMixin):
    """`cbnorm.Moments` whose arrays are Dask's; they merge with ``+`` and ``sum``.

    ``compute()``, or ``dask.compute`` together with whatever else is lazy, gives `cbnorm.Moments`; ``persist()`` and
    ``visualize()`` are Dask's too.

    Parameters
    ----------
    count, mean, m2, mean_lo
        As in `cbnorm.Moments`, Dask's arrays or any others: so ``LazyMoments(m.count, m.mean, m.m2, m.mean_lo)`` brings
        moments that are known, from a file perhaps, to arrays that are not.

    Attributes
    ----------
    count : dask.array.Array
        Without axes: values that each mean is taken over.
    mean, m2, mean_lo : dask.array.Array
        float64.

    Raises
    ------
    ValueError
        If the numbers of axes differ.

    Examples
    --------
    >>> import dask.array as da, cbnorm.dask
    >>> x = da.arange(12, chunks=5).reshape(6, 2)
    >>> m = cbnorm.dask.moments(x) + cbnorm.dask.moments(x + 1)
    >>> m.mean.compute(), m.count.compute().item()
    (array([5.5, 6.5]), 12)
    >>> m.compute().var()
    array([11.91666667, 11.91666667])
    """

    __slots__ = FIELDS
    __array_ufunc__ = None

    count: da.Array
    mean: da.Array
    m2: da.Array
    mean_lo: da.Array

    def __init__(self, count: Any, mean: Any, m2: Any, mean_lo: Any = None) -> None:
        self.count, self.mean, self.m2 = (da.asarray(each) for each in (count, mean, m2))
        self.mean_lo = da.zeros_like(self.mean) if mean_lo is None else da.asarray(mean_lo)
        for name in ("m2", "mean_lo"):
            if getattr(self, name).ndim != self.mean.ndim:
                raise ValueError(f"{name}: expected {self.mean.ndim} axes, as mean has, got {getattr(self, name).ndim}")

    def var(self, ddof: float = 0) -> da.Array:
        """Variance, lazily; see `cbnorm.Moments.var`."""
        return self._apply(partial(cbnorm.Moments.var, ddof=ddof), np.float64)

    def std(self, ddof: float = 0) -> da.Array:
        """Return the square root of `var`, lazily, in the units of x."""
        return self._apply(partial(cbnorm.Moments.std, ddof=ddof), np.float64)

    def standardize(self, x: da.Array, axis: int | tuple[int, ...] | None = 0, *, ddof: float = 0) -> da.Array:
        """(x - mean) / std with this mean and std, lazily, chunk by chunk.

        Parameters
        ----------
        x : dask.array.Array
            Any dtype that `cbnorm.standardize` takes, in any chunks.
        axis : int, tuple of ints, or None
            The axes that the moments were taken over.
        ddof : float
            As in `var`.

        Returns
        -------
        dask.array.Array
            y, in the chunks of x; the dtype of x, or float64 for integers.

        Raises
        ------
        ValueError, TypeError
            If `x` or `axis` do not fit; what only the numbers tell, when they are computed.
        """
        return self._along(cbnorm.Moments.standardize, "x", x, axis, ddof)

    def unstandardize(self, y: da.Array, axis: int | tuple[int, ...] | None = 0, *, ddof: float = 0) -> da.Array:
        """Return y·std + mean, lazily: what `standardize` took away; arguments and errors are the same."""
        return self._along(cbnorm.Moments.unstandardize, "y", y, axis, ddof)

    def __add__(self, other: object) -> LazyMoments:
        """Return the moments of both sets of values together, lazily."""
        if not isinstance(other, LazyMoments):
            return NotImplemented
        if other.mean.ndim != self.mean.ndim:
            raise ValueError(f"other: expected moments of {self.mean.ndim} axes, got {other.mean.ndim}")
        axes = tuple(range(self.mean.ndim))
        both = da.blockwise(_merge, axes, *self._blocks(axes), *other._blocks(axes), dtype=np.float64, meta=_meta(axes))
        return fields_of(both)

    def __radd__(self, other: object) -> LazyMoments:
        """Return these moments: `sum` begins with 0."""
        return self if type(other) is int and other == 0 else NotImplemented

    def __repr__(self) -> str:
        """The shape, as the numbers are not known."""
        return f"LazyMoments(shape={self.mean.shape}, chunks={self.mean.chunks})"

    def _apply(self, function: Callable[..., Any], dtype: Any) -> da.Array:
        """An array in the shape of mean, made of the moments of each block."""
        axes = tuple(range(self.mean.ndim))
        return da.blockwise(_call, axes, *self._blocks(axes), function=function, dtype=dtype, meta=_meta(axes, dtype))

    def _along(self, method: Callable[..., Any], name: str, x: Any, axis: Any, ddof: float) -> da.Array:
        """An array in the shape of x, made by a method of `cbnorm.Moments` from each chunk and the moments for it."""
        reduced = check_array(name, x, axis)
        axes = tuple(range(x.ndim))
        kept = tuple(number for number in axes if number not in reduced)
        if self.mean.ndim == x.ndim:  # axes reduced stayed with length 1
            kept = axes
        if self.mean.ndim != len(kept):
            raise ValueError(
                f"{name}: expected {self.mean.ndim} axes besides axis {axis}, as mean has, got shape {x.shape}"
            )
        dtype = cbnorm.standardize(np.empty((0,) * x.ndim, x.dtype), reduced, ddof=ddof)[0].dtype
        function = partial(_call, function=partial(method, axis=reduced, ddof=ddof))
        return da.blockwise(
            function, axes, *self._blocks(kept), x, axes, dtype=dtype, meta=_meta(axes, dtype), token=method.__name__
        )

    def _blocks(self, axes: tuple[int, ...]) -> list[Any]:
        """Arguments of `dask.array.blockwise`: count, mean, m2, mean_lo, each with the axes that it has."""
        arguments: list[Any] = []
        for field in self._arrays():
            arguments += [field, axes if field.ndim else ()]
        return arguments

    def _arrays(self) -> tuple[da.Array, ...]:
        return tuple(getattr(self, name) for name in FIELDS)

    # What makes this one of Dask's collections: four arrays that are computed together.

    __dask_scheduler__: Any = staticmethod(da.Array.__dask_scheduler__)
    __dask_optimize__: Any = staticmethod(da.Array.__dask_optimize__)

    def __dask_graph__(self) -> HighLevelGraph:
        return HighLevelGraph.merge(*(array.dask for array in self._arrays()))

    def __dask_keys__(self) -> list[Any]:
        return [array.__dask_keys__() for array in self._arrays()]

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(array.name for array in self._arrays())

    def __dask_tokenize__(self) -> Hashable:
        return tokenize(*self._arrays())

    def __dask_postcompute__(self) -> tuple[Callable[..., cbnorm.Moments], tuple[Any, ...]]:
        return _finish, tuple(array.__dask_postcompute__() for array in self._arrays())

    def __dask_postpersist__(self) -> tuple[Callable[..., LazyMoments], tuple[Any, ...]]:
        return _rebuild, tuple(array.__dask_postpersist__() for array in self._arrays())


def check_array(name: str, x: Any, axis: Any) -> tuple[int, ...]:
    """The axes reduced, counted from 0, of what must be a Dask array of numbers."""
    if not isinstance(x, da.Array):
        raise TypeError(f"{name}: expected a dask.array.Array, got {type(x).__name__}")
    cbnorm.moments(x._meta, axis)  # an empty array of this dtype and ndim: its checks are ours
    return tuple(sorted(normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)))


def fields_of(parts: da.Array, squeezed: tuple[int, ...] = ()) -> LazyMoments:
    """The fields of an array whose blocks are no arrays but `cbnorm.Moments`; without axes of length 1."""
    axes = tuple(range(parts.ndim))
    one = parts.blocks[tuple(slice(1) for _ in axes)] if axes else parts  # every block has the same count
    count = da.map_blocks(_count, one, chunks=((1,),) * parts.ndim, dtype=np.int64, meta=_meta(axes, np.int64))
    arrays = [
        da.map_blocks(getattr, parts, name, dtype=np.float64, meta=_meta(axes), token=name).squeeze(squeezed)
        for name in FIELDS[1:]
    ]
    return LazyMoments(count[(0,) * parts.ndim], *arrays)


def _meta(axes: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    return np.empty((0,) * len(axes), dtype)


def _count(part: cbnorm.Moments) -> np.ndarray[Any, Any]:
    return np.full((1,) * part.mean.ndim, part.count)


def _moments(count: Any, mean: Any, m2: Any, mean_lo: Any) -> cbnorm.Moments:
    return cbnorm.Moments(int(count), mean, m2, mean_lo)


def _call(*blocks: Any, function: Callable[..., Any]) -> Any:
    """A method of the moments in the first four, called with the others on one thread: Dask has its own."""
    with cbnorm.threads(1):
        return function(_moments(*blocks[:4]), *blocks[4:])


def _merge(*blocks: Any) -> cbnorm.Moments:
    return _moments(*blocks[:4]) + _moments(*blocks[4:])


def _finish(results: Iterable[Any], *finishers: Any) -> cbnorm.Moments:
    pairs = zip(results, finishers, strict=True)
    return _moments(*(finish(result, *arguments) for result, (finish, arguments) in pairs))


def _rebuild(graph: Any, *builders: Any, rename: Mapping[str, str] | None = None) -> LazyMoments:
    return LazyMoments(*(build(graph, *arguments, rename=rename) for build, arguments in builders))
