"""Mean and variance in one pass, and population statistics gathered batch by batch.

Both rest on Chan's formula: with n = a.count + b.count and delta = b.mean - a.mean, two sets together have
mean = a.mean + delta * b.count / n and m2 = a.m2 + b.m2 + delta² * a.count * b.count / n.
"""

import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm import _kernels
from cbnorm._arrays import as_array, as_numbers, check_axis, contiguous, float_dtypes, statistics_for
from cbnorm._plan import plan_channels
from cbnorm._threads import threads_for


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a set of values; two sets merge with ``+``.

    Parameters
    ----------
    count : int
        Values that each mean was taken over.
    mean : array_like
        Any shape, float64; NaN where `count` is 0.
    m2 : array_like
        The shape of `mean`, float64: the sum of (x - mean)².

    Raises
    ------
    ValueError, TypeError
        If `count` is not an integer from 0 up, or the shapes of `mean` and `m2` differ.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> a, b = cbnorm.moments(np.array([1.0, 2.0])), cbnorm.moments(np.array([6.0]))
    >>> both = a + b
    >>> both.count, both.mean.item(), both.var().item()
    (3, 3.0, 4.666666666666667)
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    def __post_init__(self):
        """Convert and check what was given."""
        try:
            count = operator.index(self.count)
        except TypeError:
            raise TypeError(f"count: expected an integer, got {self.count!r}") from None
        if count < 0:
            raise ValueError(f"count: expected at least 0, got {count}")
        mean = np.asarray(as_numbers("mean", self.mean), dtype=np.float64)
        m2 = np.asarray(as_numbers("m2", self.m2), dtype=np.float64)
        if m2.shape != mean.shape:
            raise ValueError(f"m2: expected the shape of mean, {mean.shape}, got {m2.shape}")
        for name, value in (("count", count), ("mean", mean), ("m2", m2)):
            object.__setattr__(self, name, value)

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
        """
        degrees = self.count - ddof
        return self.m2 / degrees if degrees > 0 else np.full_like(self.mean, np.nan)

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
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + delta * delta * (self.count * (other.count / count)))


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
        Its `mean` and `m2` have the remaining axes, float64, and the accuracy of float64 at any offset:
        the data is centred before it is squared.

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
    outer, channels, inner = (int(np.prod(part)) for part in (x.shape[:first], shape, x.shape[last:]))
    count = outer * inner
    statistics = statistics_for(channels)
    if x.size:
        plan = plan_channels((outer, channels, inner), 1)
        x = contiguous(x, float_dtypes(x)[0])
        _kernels.active.forward(plan, x, None, None, None, statistics, None, threads_for(x.size))
    else:
        statistics[0] = np.nan
        statistics[2] = 0
    return Moments(count, statistics[0].reshape(shape), statistics[2].reshape(shape))


class PopulationStats:
    """Mean and variance of a whole data set, gathered batch by batch, for test time.

    Batches may have different sizes, and be empty. Each value counts once, and the spread between the batch
    means is part of the variance. Two gathered parts merge with ``+``.

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
        try:
            self.axis = operator.index(axis)
        except TypeError:
            raise TypeError(f"axis: expected an integer, got {axis!r}") from None
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
        if self._pooled is not None and x.shape[axis] != self._pooled.mean.size:
            raise ValueError(f"x: expected {self._pooled.mean.size} channels on axis {axis}, got shape {x.shape}")
        batch = moments(x, tuple(number for number in range(x.ndim) if number != axis))
        self._pooled = batch if self._pooled is None else self._pooled + batch
        if batch.count:
            self.batches += 1
            self._sum_mean = self._sum_mean + batch.mean
            self._sum_var = self._sum_var + batch.var()

    @property
    def count(self) -> int:
        """Values a channel so far."""
        return self._pooled.count if self._pooled is not None else 0

    @property
    def mean(self) -> NDArray[np.float64]:
        """(channels,): the mean of all values."""
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
        if self.batches < 2:
            raise ValueError(f"batch_average: expected at least 2 batches, got {self.batches}")
        return self._sum_mean / self.batches, self._sum_var / (self.batches - 1)

    def _gathered(self):
        if not self.count:
            raise ValueError("PopulationStats: expected at least one value a channel before it is read, got none")
        return self._pooled

    def __add__(self, other):
        """Return the statistics of both data sets together."""
        if not isinstance(other, PopulationStats):
            return NotImplemented
        both = PopulationStats(self.axis)
        parts = [part for part in (self, other) if part._pooled is not None]
        for part in parts:
            both._pooled = part._pooled if both._pooled is None else both._pooled + part._pooled
            both.batches += part.batches
            both._sum_mean = both._sum_mean + part._sum_mean
            both._sum_var = both._sum_var + part._sum_var
        return both
