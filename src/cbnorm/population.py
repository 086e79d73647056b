"""Population statistics, gathered batch by batch, for test time."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_array, check_axis, check_integer
from cbnorm._merge import QUIET
from cbnorm._plan import plan_channels
from cbnorm._record import is_start_of_sum
from cbnorm._weights import check_nonfinite, not_finite
from cbnorm.moments import Moments, moments_of_channels

_gathering = threading.Lock()  # held for the microseconds in which population statistics take a batch in: one for all
if hasattr(os, "register_at_fork"):  # a child finds the lock free, and no batch half taken in
    os.register_at_fork(
        before=_gathering.acquire, after_in_parent=_gathering.release, after_in_child=_gathering.release
    )


class PopulationStats:
    """Mean and variance of a whole data set, gathered batch by batch, for test time.

    Batches may have different sizes, and be empty. Each value counts once, and the spread between the batch
    means is part of the variance. Gathered parts merge with ``+`` and ``sum``. Several threads may update one: none of
    their batches is lost.

    Parameters
    ----------
    axis : int
        The channel axis of the batches: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    nonfinite : {"propagate", "skip", "raise"}
        What becomes of a batch whose mean or variance is not finite in some channel: it makes that channel's statistics
        so too, for good; that channel leaves it out; or it is an error, and nothing has changed.

    Attributes
    ----------
    count : int, float or ndarray
        Values a channel so far, or the sum of their weights; an array where that differs from channel to channel.
    batches : int
        Batches so far, without those of no value.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> p = cbnorm.PopulationStats()
    >>> p.update(np.array([[1.0], [2.0]]))
    >>> p.update(np.array([[6.0]]))
    >>> p.mean, p.var()
    (array([3.]), array([4.66666667]))
    """

    axis: int
    nonfinite: str
    batches: int

    def __init__(self, axis: int = 1, *, nonfinite: str = "propagate") -> None:
        self.axis = check_integer("axis", axis)
        self.nonfinite = check_nonfinite(nonfinite)
        self.batches = 0
        self._pooled: Moments | None = None  # of all values
        self._sum_mean = self._sum_var = 0.0
        self._summed: Any = 0  # batches that these are of, a number or one for each channel

    def update(self, x: ArrayLike, *, weights: ArrayLike | None = None, nan_policy: str = "propagate") -> None:
        """Take in a batch.

        Parameters
        ----------
        x : array_like
            At least two axes; the channel axis has the same length in every batch.
        weights : array_like, optional
            What each place counts: the shape of x without its channel axis, or (N,); see `cbnorm.moments`.
        nan_policy : {"propagate", "omit", "raise"}
            Whether NaN is a value, does not count, or is an error.

        Raises
        ------
        ValueError, TypeError
            If `x` is not such an array; nothing has changed then.
        """
        x = as_array(x, 2)
        axis = check_axis(self.axis, x.ndim)
        self._check_channels(x, axis)
        batch = moments_of_channels(x, plan_channels(x.shape, axis), weights, nan_policy)
        if self.nonfinite != "propagate":
            batch = self._finite(batch)
        with _gathering, QUIET():
            self._check_channels(x, axis)  # another thread may have been first
            self._pooled = batch if self._pooled is None else self._pooled + batch
            if np.any(batch.count):
                self.batches += 1
                there = batch.count > 0
                self._summed = self._summed + there
                self._sum_mean = self._sum_mean + np.where(there, batch.mean, 0)
                self._sum_var = self._sum_var + np.where(there, batch.var(), 0)

    def _finite(self, batch: Moments) -> Moments:
        """A batch without the channels that are not finite, or an error that names the first."""
        spoilt = ~np.isfinite(batch.mean + batch.m2) & (batch.count > 0)
        if not spoilt.any():
            return batch
        if self.nonfinite == "raise":
            raise not_finite(int(spoilt.argmax()))
        count, mean = np.where(spoilt, 0, batch.count), np.where(spoilt, np.nan, batch.mean)
        lost = (np.where(spoilt, 0, each) for each in (batch.m2, batch.mean_lo))
        return Moments(count, mean, *lost)

    def _check_channels(self, x: NDArray[Any], axis: int) -> None:
        if self._pooled is not None and x.shape[axis] != self._pooled.mean.size:
            raise ValueError(f"x: expected {self._pooled.mean.size} channels on axis {axis}, got shape {x.shape}")

    def __repr__(self) -> str:
        """How much it holds."""
        channels = "" if self._pooled is None else f", {self._pooled.mean.size} channels"
        return f"PopulationStats(axis={self.axis}, batches={self.batches}, count={self.count}{channels})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickle of version 0.1 too."""
        self.__dict__.update({"nonfinite": "propagate", "_summed": state["batches"]} | state)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled and copied, not between two steps of an `update`."""
        with _gathering:
            return vars(self).copy()

    @property
    def count(self) -> Any:
        """Values a channel so far, or their weights."""
        return self._pooled.count if self._pooled is not None else 0

    @property
    def mean(self) -> NDArray[np.float64]:
        """(channels,), read-only: the mean of all values."""
        return self._gathered().mean

    def var(self, ddof: float = 0) -> NDArray[np.float64]:
        """Variance of all values, (channels,); `ddof` as in `Moments.var`."""
        return self._gathered().var(ddof)

    def std(self, ddof: float = 0) -> NDArray[np.float64]:
        """Return the square root of `var`, (channels,), in the units of x."""
        return self._gathered().std(ddof)

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
            batches, sum_mean, sum_var = self._summed, self._sum_mean, self._sum_var
        if np.min(batches, initial=self.batches) < 2:
            raise ValueError(f"batch_average: expected at least 2 batches, got {np.min(batches, initial=self.batches)}")
        with QUIET():
            return sum_mean / batches, sum_var / (batches - 1)

    def _gathered(self) -> Moments:
        if not np.any(self.count):
            raise ValueError("PopulationStats: expected at least one value a channel before it is read, got none")
        return self._pooled

    def __add__(self, other: object) -> PopulationStats:
        """Return the statistics of both data sets together."""
        if not isinstance(other, PopulationStats):
            return NotImplemented
        both = PopulationStats(self.axis, nonfinite=self.nonfinite)
        with _gathering, QUIET():
            for part in (self, other):
                if part._pooled is not None:
                    both._pooled = part._pooled if both._pooled is None else both._pooled + part._pooled
                    both.batches += part.batches
                    both._summed = both._summed + part._summed
                    both._sum_mean = both._sum_mean + part._sum_mean
                    both._sum_var = both._sum_var + part._sum_var
        return both

    def __radd__(self, other: object) -> PopulationStats:
        """Return a copy of these statistics: `sum` begins with 0."""
        return PopulationStats(self.axis, nonfinite=self.nonfinite) + self if is_start_of_sum(other) else NotImplemented
