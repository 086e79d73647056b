"""Moments of two sets from the moments of each, as arrays: what `merge` in statistics.pxi is for one number.

Chan's formula: with n = a.count + b.count and delta = b.mean - a.mean, two sets together have
mean = a.mean + delta * b.count / n and m2 = a.m2 + b.m2 + delta² * a.count * b.count / n.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

QUIET = partial(np.errstate, all="ignore")  # NaN, infinities and what vanishes are results, not events


class Part(NamedTuple):
    """Moments of some channels."""

    count: float | np.ndarray
    mean: np.ndarray
    mean_lo: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, moments, where):
        """Those at some places, with a count for each."""
        count = np.broadcast_to(moments.count, moments.mean.shape)
        return cls(*(each[where] for each in (count, moments.mean, moments.mean_lo, moments.m2)))


def merge_each(a, b):
    """Mean, mean_lo and m2 of both sets, whose counts differ from place to place, and may be 0."""
    mean, mean_lo, m2 = (np.array(each) for each in (a.mean, a.mean_lo, a.m2))
    here, there = (np.broadcast_to(each.count, mean.shape) for each in (a, b))
    both = (here > 0) & (there > 0)
    for where, first, second, equal in (
        (both & (here == there), a, b, True),
        (both & (here > there), a, b, False),
        (both & (here < there), b, a, False),
    ):
        if where.any():
            merged = merge(Part.of(first, where), Part.of(second, where), equal)
            mean[where], mean_lo[where], m2[where] = merged
    alone = here == 0
    mean[alone], mean_lo[alone], m2[alone] = b.mean[alone], b.mean_lo[alone], b.m2[alone]
    return mean, mean_lo, m2


def merge(a, b, equal):
    """Mean, mean_lo and m2 of both sets, a of at least as many values as b, step by step as the kernels merge tiles."""
    weight = b.count / (a.count + b.count)
    with QUIET():
        delta = b.mean - a.mean
        delta += b.mean_lo - a.mean_lo
        if equal:  # the same steps whichever comes first, as neither is the larger
            start = a.mean + b.mean
            step = two_sum_error(a.mean, b.mean, start)
            step += a.mean_lo + b.mean_lo
            start *= 0.5
            step *= 0.5
        else:
            start = a.mean
            step = delta * weight
            step += a.mean_lo
        mean = start + step
        mean_lo = two_sum_error(start, step, mean)
        m2 = delta * (a.count * weight)  # first: delta² may be too large where m2 is not
        m2 *= delta
        if equal:
            m2 += a.m2 + b.m2
        else:
            m2 += b.m2
            m2 += a.m2
        if not np.isfinite(mean + m2).all():
            mean, mean_lo, m2 = merge_without_end(a, b, weight, mean, mean_lo, m2)
    return mean, mean_lo, m2


def merge_without_end(a, b, weight, mean, mean_lo, m2):
    """The same where something is infinite, NaN, or too large for a step: what the values themselves would give."""
    endless = ~(np.isfinite(a.mean) & np.isfinite(b.mean))
    direct = a.mean * (1 - weight) + b.mean * weight  # infinities of one sign keep it, those of both give NaN
    mean = np.where(endless | ~np.isfinite(mean), direct, mean)
    mean_lo = np.where(np.isfinite(mean_lo) & ~endless, mean_lo, 0)
    spoilt = endless | np.isnan(a.m2) | np.isnan(b.m2)
    return mean, mean_lo, np.where(spoilt, np.nan, np.where(np.isfinite(m2), m2, np.inf))


def two_sum_error(a, b, total):
    """Knuth (1969): a + b = total + error, exactly."""
    b_seen = total - a
    error = b - b_seen
    a_seen = total - b_seen
    a_seen -= a
    error -= a_seen
    return error
