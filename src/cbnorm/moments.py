"""Mean and variance in one pass over any axes, and what is standardized by them.

Sets merge by Chan's formula, in `_merge.py`. A mean is the unevaluated sum mean + mean_lo: rounded to one float64, each
merge would lose digits of the deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_numbers, check_flag, check_nonnegative, check_number, copy_numbers
from cbnorm._axes import Channels, check_axes
from cbnorm._calls import find_statistics, take_statistics
from cbnorm._merge import QUIET, merge, merge_each, two_sum_error
from cbnorm._plan import Plan
from cbnorm._record import Record, check_counts
from cbnorm._results import float_dtypes, stored
from cbnorm._standardize import standardized, unstandardized
from cbnorm._weights import check_policy, count_by, count_places, refuse_nan


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Moments(Record):
    """Count, mean and sum of squared deviations of a set of values; sets merge with ``+`` and ``sum``.

    Parameters
    ----------
    count : int, float or array_like
        Values that each mean was taken over, or the sum of their weights; an array in the shape of `mean` where it
        differs from mean to mean, as after ``nan_policy="omit"``.
    mean : array_like
        Any shape, float64; NaN where `count` is 0.
    m2 : array_like
        The shape of `mean`, float64: the sum of (x - mean)², so nowhere negative.
    mean_lo : array_like, optional
        The shape of `mean`, float64: what `mean` lacks of the mean, by rounding. None stands for 0.

    Raises
    ------
    ValueError, TypeError
        If `count` is not a number from 0 up, or such numbers, a number of `m2` is negative, or the shapes differ.

    Notes
    -----
    The arrays are copies of those given, and read-only. Merging loses nothing: in float64 the mean and the standard
    deviation stay right to 1e-12 of the latter where it is a millionth of the mean, also over a million
    merges of single rows. `m2` is what float64 holds of it: deviations below 1e-154 vanish in it, and from some 1e154
    on it is infinite. Only functions that see x do better there, such as `batchnorm_forward` and `standardize`.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> a, b = cbnorm.moments(np.array([1.0, 2.0])), cbnorm.moments(np.array([6.0]))
    >>> both = a + b
    >>> both.count, both.mean.item(), both.var().item()
    (3, 3.0, 4.666666666666667)
    >>> sum([a, b, a]).count
    5
    """

    count: Any  # int, float or ndarray: a union would make users ask which
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    mean_lo: NDArray[np.float64] = None  # type: ignore[assignment]  # and never None once made

    def __post_init__(self) -> None:
        """Convert, check and copy what was given."""
        mean = copy_numbers("mean", self.mean)
        count = check_counts(self.count, mean.shape)
        m2 = copy_numbers("m2", self.m2, mean.shape, "mean")
        check_nonnegative("m2", m2)
        mean_lo = np.zeros(mean.shape)
        if self.mean_lo is not None:
            mean_lo = copy_numbers("mean_lo", self.mean_lo, mean.shape, "mean")
        self._fill(count=count, mean=mean, m2=m2, mean_lo=mean_lo)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take a pickle of version 0.1, which holds count, mean and m2."""
        self.__init__(*state)

    def var(self, ddof: float = 0) -> NDArray[np.float64]:
        """Variance, m2 / (count - ddof); NaN where that has no value.

        Parameters
        ----------
        ddof : float
            0 for the biased, 1 for the unbiased estimate.

        Returns
        -------
        ndarray
            The shape of `mean`, float64, in the units of x squared.

        Raises
        ------
        ValueError, TypeError
            If `ddof` is not a number.
        """
        degrees = self._degrees(ddof)
        with QUIET():
            return self.m2 / degrees

    def std(self, ddof: float = 0) -> NDArray[np.float64]:
        """Return the square root of `var`, in the units of x."""
        return np.sqrt(self.var(ddof))

    def standardize(
        self, x: ArrayLike, axis: int | tuple[int, ...] | None = 0, *, ddof: float = 0, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """(x - mean) / std with this mean and std: other data on the scale of those that the moments are of.

        Parameters
        ----------
        x : array_like
            Any dtype that `cbnorm.standardize` takes.
        axis : int, tuple of ints, or None
            The axes that the moments were taken over; the others have their lengths.
        ddof : float
            As in `var`.
        out : ndarray, optional
            Where y goes: the shape and dtype of y, without gaps, in any order of the axes. It may be x.

        Returns
        -------
        ndarray
            y, the shape of x; its dtype, or float64 for integers. 0 where std is 0.

        Raises
        ------
        ValueError, TypeError
            If `x` or `out` do not fit, or there is no value to have a mean; nothing is written then.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> z, m = cbnorm.standardize(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> m.standardize([[5.0, 10.0]])
        array([[ 3., -1.]])
        """
        x, view = self._view("x", x, axis)
        degrees = self._degrees(ddof)
        m2 = self.m2
        if isinstance(degrees, np.ndarray):
            with QUIET():
                m2 = m2 * (1 / degrees)
            degrees = 1
        mean, mean_lo, m2 = (view.of_channels(each) for each in (self.mean, self.mean_lo, m2))
        m2 = np.where(np.isinf(m2), np.nan, m2)  # too large for a float

        def find_plan(seen):
            return seen.plan(statistics_given=True, count=degrees)

        statistics = take_statistics(find_plan(view), mean, mean_lo, m2)
        return standardized(x, view, out, find_plan, statistics)[0]

    def unstandardize(
        self, y: ArrayLike, axis: int | tuple[int, ...] | None = 0, *, ddof: float = 0, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return y·std + mean: what `standardize` took away, also from a y of other data.

        Parameters
        ----------
        y : array_like
            Real numbers.
        axis, ddof, out
            As in `standardize`; `out` may be y.

        Returns
        -------
        ndarray
            The shape of y; its dtype, or float64 for integers. Computed in float64 and rounded once.

        Raises
        ------
        ValueError, TypeError
            If `y` or `out` do not fit, or there is no value to have a mean; nothing is written then.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> z, m = cbnorm.standardize(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> m.unstandardize(z)
        array([[ 1., 10.],
               [ 3., 30.]])
        """
        y, view = self._view("y", y, axis)
        self._degrees(ddof)
        along = [1 if number in view.reduced else length for number, length in enumerate(y.shape)]
        mean, mean_lo, std = (each.reshape(along) for each in (self.mean, self.mean_lo, self.std(ddof)))
        return unstandardized(y, mean, mean_lo, std, out)

    def _view(self, name: str, array: ArrayLike, axis: int | tuple[int, ...] | None) -> tuple[NDArray[Any], Channels]:
        array = as_numbers(name, array)
        view = Channels(array, check_axes(axis, array.ndim))
        kept_as_1 = tuple(1 if number in view.reduced else n for number, n in enumerate(array.shape))
        if self.mean.shape not in (view.shape, kept_as_1):
            raise ValueError(
                f"{name}: expected shape {self.mean.shape} without axis {axis}, the shape of mean, got {array.shape}"
            )
        if np.ndim(self.count) == 0 and self.count == 0 and array.size:
            raise ValueError("Moments: expected a count of at least 1 to standardize with, got 0")
        return array, view

    def _degrees(self, ddof: float) -> float | NDArray[np.float64]:
        """What m2 is divided by; NaN where that gives no variance."""
        degrees = self.count - check_number("ddof", ddof, -math.inf, math.inf)
        if isinstance(self.count, np.ndarray):
            return np.where(degrees > 0, degrees, math.nan)
        return degrees if degrees > 0 else math.nan

    def __add__(self, other: object) -> Moments:
        """Return the moments of both sets of values together."""
        if not isinstance(other, Moments):
            return NotImplemented
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"other: expected moments of shape {self.mean.shape}, got {other.mean.shape}")
        if isinstance(self.count, np.ndarray) or isinstance(other.count, np.ndarray):
            mean, mean_lo, m2 = merge_each(self, other)
        elif other.count == 0:
            return self
        elif self.count == 0:
            return other
        else:  # from the larger set, so that the step is at most half of delta, whose rounding it takes along
            first, second = (self, other) if self.count >= other.count else (other, self)
            mean, mean_lo, m2 = merge(first, second, first.count == second.count)
        return Moments._of(count=self.count + other.count, mean=mean, m2=m2, mean_lo=mean_lo)


def moments(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = 0,
    *,
    weights: ArrayLike | None = None,
    nan_policy: str = "propagate",
    keepdims: bool = False,
) -> Moments:
    """Count, mean and variance over any axes, in one pass over the data.

    Parameters
    ----------
    x : array_like
        Any shape and real dtype. float32 and float64 without gaps are read where they are, in any order of the axes,
        as long as those that remain lie next to each other in memory; anything else goes through one copy.
    axis : int, tuple of ints, or None
        The axes reduced, as in NumPy; None is all of them.
    weights : array_like, optional
        What each place along the axes reduced counts, in their shape, or in that of axis 0 alone: a mask of bools, or
        numbers from 0 up. What counts 0 is not read.
    nan_policy : {"propagate", "omit", "raise"}
        Whether a NaN makes the moments of its channel NaN, does not count, or is an error. Infinities are values.
    keepdims : bool
        Whether the axes reduced stay, with length 1, so that the arrays broadcast to x.

    Returns
    -------
    Moments
        Its arrays have the remaining axes, float64, and the accuracy of float64 at any offset: the data is
        centred before it is squared. Its count is a number; with weights their sum W; and an array where NaN was
        omitted. A mean of no values is NaN.

    Raises
    ------
    ValueError, TypeError
        If `x` is not numbers, `axis` names an axis twice or one that is not there, a weight is negative, NaN or
        infinite, or there is a NaN to raise for.

    Notes
    -----
    Weights are frequencies: mean = Σ w·x / W, m2 = Σ w·(x - mean)², and ``var(ddof)`` is m2 / (W - ddof), as if each
    value stood there w times.

    References
    ----------
    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.float32([[1e6 - 1, 0], [1e6 + 1, 0]])
    >>> m = cbnorm.moments(x, axis=0)
    >>> m.mean, m.var()
    (array([1000000.,       0.]), array([1., 0.]))
    >>> m = cbnorm.moments([[1.0, 2.0], [3.0, np.nan]], nan_policy="omit")
    >>> m.count, m.mean
    (array([2, 1]), array([2., 2.]))
    """
    x = as_numbers("x", x)
    view = Channels(x, check_axes(axis, x.ndim))
    shape = view.shape
    if check_flag("keepdims", keepdims):
        shape = tuple(1 if number in view.reduced else length for number, length in enumerate(x.shape))
    plan = _counted(view, x, weights, nan_policy)
    x, pivot = _centred(view.arranged(x), plan)
    statistics = find_statistics(plan, stored(x, float_dtypes(x)[0], plan))
    return _moments_from(statistics, plan, pivot, lambda values: view.by_channel(values).reshape(shape))


def moments_of_channels(
    x: NDArray[Any], plan: Plan, weights: ArrayLike | None = None, nan_policy: str = "propagate"
) -> Moments:
    """(channels,), those of each channel of an array that is seen by a plan."""
    if check_policy(nan_policy) == "raise":
        refuse_nan(x)
    if weights is not None or nan_policy == "omit":
        plan = count_by(plan, weights, nan_policy == "omit")
    x, pivot = _centred(x, plan)
    return _moments_from(find_statistics(plan, stored(x, float_dtypes(x)[0], plan)), plan, pivot)


def standardize(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = 0,
    *,
    weights: ArrayLike | None = None,
    nan_policy: str = "propagate",
    ddof: float = 0,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Moments]:
    """(x - mean) / std over any axes: data of mean 0 and variance 1, whatever their offset.

    Parameters
    ----------
    x : array_like
        Any shape and real dtype; float16 is computed in float32. Read where it is, as by `moments`.
    axis : int, tuple of ints, or None
        The axes that share a mean and a std, as in NumPy: 0 standardizes each column of a table, None the whole array.
    weights : array_like, optional
        What each place counts in mean and std, as in `moments`; all places are standardized.
    nan_policy : {"propagate", "omit", "raise"}
        Whether a NaN makes all of its channel NaN, does not count and stays where it is, or is an error.
    ddof : float
        0 for the biased variance, 1 for the unbiased one.
    out : ndarray, optional
        Where y goes: the shape and dtype of y, without gaps, in any order of the axes. It may be x: in place.

    Returns
    -------
    y : ndarray
        The shape of x, and its order in memory unless axes reduced lie between others; its dtype, or float64 for
        integers. Equal values give 0, as does a single one; NaN stays in its own channel.
    moments : Moments
        Of x, in the shape of the axes that remain: ``moments.standardize`` does the same to other data,
        ``moments.unstandardize`` leads back.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described; nothing is written then.

    See Also
    --------
    batchnorm_forward : with eps, gamma and beta, and what a gradient needs.

    Notes
    -----
    Takes no memory but that of y, a few numbers a channel, and a copy of what the kernels cannot read.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> x = np.float32([[1e6 - 1, 5], [1e6 + 1, 5]])
    >>> y, m = cbnorm.standardize(x)
    >>> y
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    >>> m.mean, m.std()
    (array([1.e+06, 5.e+00]), array([1., 0.]))
    >>> images = np.ones((8, 32, 32, 3), np.float32)
    >>> y, m = cbnorm.standardize(images, axis=(0, 1, 2), out=images)  # in place, with a mean of each colour
    """
    x = as_numbers("x", x)
    axes = check_axes(axis, x.ndim)
    ddof = check_number("ddof", ddof, -math.inf, math.inf)
    view = Channels(x, axes)
    plan = _counted(view, x, weights, nan_policy, ddof)
    centred_x, pivot = _centred(view.arranged(x), plan)
    if pivot is not None:
        x = view.restored(centred_x.reshape(view.arranged(x).shape))
        view = Channels(x, axes)
    degrees = view.count - ddof

    def find_plan(seen):
        if plan.kinds == 5:  # the weights lie in the order of the view
            return plan if seen is view else _counted(seen, x, weights, nan_policy, ddof)
        return seen.plan(count=degrees if degrees > 0 else math.nan)

    y, statistics, view = standardized(x, view, out, find_plan)
    return y, _moments_from(statistics, plan, pivot, view.by_channel)


def _counted(view, x, weights, nan_policy, ddof=0):
    """A plan for what a view sees of x, in which numbers count by their weights, and NaN as the policy says."""
    if check_policy(nan_policy) == "raise":
        refuse_nan(x)
    omit = nan_policy == "omit"
    if weights is None and not omit:
        return view.plan()
    return count_places(view.plan(), weights, x.shape, view.reduced, view.order_reduced, omit, ddof)


def _centred(x, plan):
    """Integers that float64 rounds, less the first of their channel; else x itself, and None."""
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size:
        return _centred_integers(x, plan)
    return x, None


def _moments_from(statistics, plan, pivot=None, shaped=lambda values: values):
    """Those that the kernels found, with the pivot back; `shaped` brings (channels,) to their shape."""
    mean, mean_lo, m2 = statistics[:3]
    if plan.omit:
        count = statistics[4]
        mean[count == 0] = np.nan
        count = np.asarray(shaped(count.astype(np.int64) if plan.weights is None else count))
    else:
        count = plan.whole_count()
        if count == 0:
            mean[:] = np.nan
    if pivot is not None:
        low = pivot % 2048
        high = (pivot - low).astype(np.float64)  # of 53 bits, so exactly
        step = low + mean + mean_lo
        mean = high + step
        mean_lo = two_sum_error(high, step, mean)
    return Moments._of(count=count, mean=shaped(mean), m2=shaped(m2), mean_lo=shaped(mean_lo))


def _centred_integers(x, plan):
    """64-bit integers less the first of their channel, before float64 rounds them: nanoseconds lose 100 ns each.

    The second result is what was subtracted, (channels,), or None where float64 holds all of x.
    """
    if x.min() >= -(2**53) and x.max() <= 2**53:
        return x, None
    x = x.astype(x.dtype.newbyteorder("="), copy=False).reshape(plan.outer, plan.channels, plan.inner)
    first = x[:1, :, :1]
    deviations = (x.astype(np.uint64) - first.astype(np.uint64)).view(np.int64)  # modulo 2^64
    fits = ((deviations >= 0) == (x >= first)).all(axis=(0, 2), keepdims=True)  # else 2^63 apart: the variance is too
    return np.where(fits, deviations, x.astype(np.float64)), np.where(fits, first, 0).ravel()


def __getattr__(name: str) -> Any:
    """Pickles of version 0.1 look for it here."""
    if name == "PopulationStats":
        from cbnorm.population import PopulationStats

        return PopulationStats
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
