"""Mean and variance in one pass, and population statistics gathered batch by batch.

Sets merge by Chan's formula, in `_merge.py`. A mean is the unevaluated sum mean + mean_lo: rounded to one float64, each
merge would lose digits of the deviations.
"""

import math
import os
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import (
    as_array,
    as_numbers,
    check_axis,
    check_integer,
    check_nonnegative,
    check_number,
    copy_numbers,
)
from cbnorm._calls import find_statistics
from cbnorm._merge import QUIET, merge, two_sum_error
from cbnorm._plan import plan_channels
from cbnorm._record import MOST_VALUES, Record, is_start_of_sum
from cbnorm._results import contiguous, float_dtypes

_gathering = threading.Lock()  # held for the microseconds in which population statistics take a batch in: one for all
if hasattr(os, "register_at_fork"):  # a child finds the lock free, and no batch half taken in
    os.register_at_fork(
        before=_gathering.acquire, after_in_parent=_gathering.release, after_in_child=_gathering.release
    )


@dataclass(frozen=True, eq=False, slots=True)
class Moments(Record):
    """Count, mean and sum of squared deviations of a set of values; sets merge with ``+`` and ``sum``.

    Parameters
    ----------
    count : int
        Values that each mean was taken over.
    mean : array_like
        Any shape, float64; NaN where `count` is 0.
    m2 : array_like
        The shape of `mean`, float64: the sum of (x - mean)², so nowhere negative.
    mean_lo : array_like, optional
        The shape of `mean`, float64: what `mean` lacks of the mean, by rounding. None stands for 0.

    Raises
    ------
    ValueError, TypeError
        If `count` is not an integer from 0 up, a number of `m2` is negative, or the shapes differ.

    Notes
    -----
    The arrays are copies of those given, and read-only. Merging loses nothing: in float64 the mean and the standard
    deviation stay right to 1e-12 of the latter where it is a millionth of the mean, also over a million
    merges of single rows.

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

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    mean_lo: NDArray[np.float64] | None = None

    def __post_init__(self):
        """Convert, check and copy what was given."""
        count = check_integer("count", self.count, 0, MOST_VALUES)
        mean = copy_numbers("mean", self.mean)
        m2 = copy_numbers("m2", self.m2, mean.shape, "mean")
        check_nonnegative("m2", m2)
        mean_lo = np.zeros(mean.shape)
        if self.mean_lo is not None:
            mean_lo = copy_numbers("mean_lo", self.mean_lo, mean.shape, "mean")
        self._fill(count=count, mean=mean, m2=m2, mean_lo=mean_lo)

    def __setstate__(self, state):
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
        degrees = self.count - check_number("ddof", ddof, -math.inf, math.inf)
        if degrees <= 0:
            return np.full_like(self.mean, np.nan)
        with QUIET():
            return self.m2 / degrees

    def std(self, ddof: float = 0) -> NDArray[np.float64]:
        """Return the square root of `var`, in the units of x."""
        return np.sqrt(self.var(ddof))

    def __add__(self, other):
        """Return the moments of both sets of values together."""
        if not isinstance(other, Moments):
            return NotImplemented
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"other: expected moments of shape {self.mean.shape}, got {other.mean.shape}")
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        # From the larger set, so that the step is at most half of delta, whose rounding it takes along.
        mean, mean_lo, m2 = merge(self, other) if self.count >= other.count else merge(other, self)
        return Moments._of(count=self.count + other.count, mean=mean, m2=m2, mean_lo=mean_lo)


def moments(x: ArrayLike, axis: int | tuple[int, ...] | None = 0) -> Moments:
    """Count, mean and variance over any axes, in one pass over the data.

    Parameters
    ----------
    x : array_like
        Any shape and real dtype. C-contiguous float32 and float64 are read where they are, as long as
        the axes that remain lie next to each other; anything else goes through one copy.
    axis : int, tuple of ints, or None
        The axes reduced, as in NumPy; None is all of them.

    Returns
    -------
    Moments
        Its arrays have the remaining axes, float64, and the accuracy of float64 at any offset: the data is
        centred before it is squared.

    Raises
    ------
    ValueError, TypeError
        If `x` is not numbers, or `axis` names an axis twice or one that is not there.

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
    """
    x = as_numbers("x", x)
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = [check_axis(number, x.ndim) for number in axes]
    if len(set(reduced)) != len(reduced):
        raise ValueError(f"axis: expected each axis once, got {axis!r}")
    kept = [number for number in range(x.ndim) if number not in reduced]
    shape = tuple(x.shape[number] for number in kept)
    if kept and kept[-1] - kept[0] >= len(kept):  # reduced axes between them: bring these to the front
        x = x.transpose(sorted(reduced) + kept)
        kept = list(range(len(reduced), x.ndim))
    first, last = (kept[0], kept[-1] + 1) if kept else (0, 0)
    outer, channels, inner = (math.prod(part) for part in (x.shape[:first], shape, x.shape[last:]))
    return moments_of_channels(x, plan_channels((outer, channels, inner), 1), shape)


def moments_of_channels(x, plan, shape):
    """Those of each channel of an array, seen by plan, in a shape of their own."""
    pivot = None
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size:
        x, pivot = centred_integers(x, plan)
    statistics = find_statistics(plan, contiguous(x, float_dtypes(x)[0]))
    count = plan.outer * plan.inner
    if count == 0:
        statistics[0] = np.nan
    mean, mean_lo, m2, _ = (row.reshape(shape) for row in statistics)
    if pivot is not None:
        low = pivot % 2048
        high = (pivot - low).astype(np.float64).reshape(shape)  # of 53 bits, so exactly
        step = low.reshape(shape) + mean + mean_lo
        mean = high + step
        mean_lo = two_sum_error(high, step, mean)
    return Moments._of(count=count, mean=mean, m2=m2, mean_lo=mean_lo)


def centred_integers(x, plan):
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


class PopulationStats:
    """Mean and variance of a whole data set, gathered batch by batch, for test time.

    Batches may have different sizes, and be empty. Each value counts once, and the spread between the batch
    means is part of the variance. Gathered parts merge with ``+`` and ``sum``. Several threads may update one: none of
    their batches is lost.

    Parameters
    ----------
    axis : int
        The channel axis of the batches: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).

    Attributes
    ----------
    count : int
        Values a channel so far.
    batches : int
        Batches so far, without the empty ones.

    Raises
    ------
    TypeError
        If `axis` is not an integer.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> p = cbnorm.PopulationStats()
    >>> p.update(np.array([[1.0], [2.0]]))
    >>> p.update(np.array([[6.0]]))
    >>> p.mean, p.var()
    (array([3.]), array([4.66666667]))
    """

    def __init__(self, axis: int = 1):
        self.axis = check_integer("axis", axis)
        self.batches = 0
        self._pooled = None  # Moments of all values
        self._sum_mean = self._sum_var = 0.0

    def update(self, x: ArrayLike) -> None:
        """Take in a batch.

        Parameters
        ----------
        x : array_like
            At least two axes; the channel axis has the same length in every batch.

        Raises
        ------
        ValueError, TypeError
            If `x` is not such an array; nothing has changed then.
        """
        x = as_array(x, 2)
        axis = check_axis(self.axis, x.ndim)
        self._check_channels(x, axis)
        batch = moments_of_channels(x, plan_channels(x.shape, axis), (x.shape[axis],))
        with _gathering, QUIET():
            self._check_channels(x, axis)  # another thread may have been first
            self._pooled = batch if self._pooled is None else self._pooled + batch
            if batch.count:
                self.batches += 1
                self._sum_mean = self._sum_mean + batch.mean
                self._sum_var = self._sum_var + batch.var()

    def _check_channels(self, x, axis):
        if self._pooled is not None and x.shape[axis] != self._pooled.mean.size:
            raise ValueError(f"x: expected {self._pooled.mean.size} channels on axis {axis}, got shape {x.shape}")

    def __getstate__(self):
        """Return what is pickled and copied, not between two steps of an `update`."""
        with _gathering:
            return vars(self).copy()

    @property
    def count(self) -> int:
        """Values a channel so far."""
        return self._pooled.count if self._pooled is not None else 0

    @property
    def mean(self) -> NDArray[np.float64]:
        """(channels,), read-only: the mean of all values."""
        return self._gathered().mean

    def var(self, ddof: float = 0) -> NDArray[np.float64]:
        """Variance of all values, (channels,); `ddof` as in `Moments.var`."""
        return self._gathered().var(ddof)

    def batch_average(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the textbook form: averages over batches, whatever their sizes.

        Returns
        -------
        mean : ndarray
            (channels,): (1/B) Σ mean_i over the B batches.
        var : ndarray
            (channels,): (1/(B-1)) Σ var_i, with the biased var_i of each batch.

        Raises
        ------
        ValueError
            If there are fewer than two batches.
        """
        with _gathering:
            batches, sum_mean, sum_var = self.batches, self._sum_mean, self._sum_var
        if batches < 2:
            raise ValueError(f"batch_average: expected at least 2 batches, got {batches}")
        with QUIET():
            return sum_mean / batches, sum_var / (batches - 1)

    def _gathered(self):
        if not self.count:
            raise ValueError("PopulationStats: expected at least one value a channel before it is read, got none")
        return self._pooled

    def __add__(self, other):
        """Return the statistics of both data sets together."""
        if not isinstance(other, PopulationStats):
            return NotImplemented
        both = PopulationStats(self.axis)
        with _gathering, QUIET():
            for part in (self, other):
                if part._pooled is not None:
                    both._pooled = part._pooled if both._pooled is None else both._pooled + part._pooled
                    both.batches += part.batches
                    both._sum_mean = both._sum_mean + part._sum_mean
                    both._sum_var = both._sum_var + part._sum_var
        return both

    def __radd__(self, other):
        """Return a copy of these statistics: `sum` begins with 0."""
        return PopulationStats(self.axis) + self if is_start_of_sum(other) else NotImplemented
