"""What the numbers of an array count in its statistics: weights, masks, and whether NaN counts."""

import math

import numpy as np

from cbnorm._arrays import as_numbers, check_choice, check_nonnegative
from cbnorm._results import FLOAT64, copy_of

POLICIES = ("propagate", "omit", "raise")


def count_by(plan, weights, omit=False):
    """Let the places of an array with channels count by their weights; the plan itself."""
    reduced = [axis for axis in range(len(plan.shape)) if axis != plan.axis]
    return count_places(plan, weights, plan.shape, reduced, None, omit)


def count_places(plan, weights, shape, reduced, order=None, omit=False, ddof=0):
    """The same for any axes reduced of an array of this shape; the kernels take them in `order`."""
    if weights is None:
        return plan.count_by(None, plan.count, 1.0, omit, ddof)
    lengths = tuple(shape[axis] for axis in reduced)
    array = as_numbers("weights", weights)
    if reduced[:1] == [0] and array.shape == lengths[:1] != lengths:
        array = np.broadcast_to(array.reshape(-1, *[1] * (len(lengths) - 1)), lengths)
    elif array.shape != lengths:
        of_samples = f", or ({lengths[0]},)" if reduced[:1] == [0] and len(lengths) > 1 else ""
        raise ValueError(f"weights: expected shape {lengths}{of_samples}, one for each place, got {array.shape}")
    check_nonnegative("weights", array)
    if order is not None:
        array = array.transpose([reduced.index(axis) for axis in order])
    weights = copy_of(array, FLOAT64).reshape(-1)  # nobody else's: the gradient takes them again
    total = float(weights.sum())
    if not math.isfinite(total):
        raise ValueError(f"weights: expected finite numbers, got a sum of {total}")
    return plan.count_by(weights, total, weights.max(initial=0.0), omit, ddof)


def check_policy(policy):
    """What becomes of NaN."""
    return check_choice("nan_policy", policy, POLICIES)


def refuse_nan(x, name="x"):
    """An error that names the first place of a NaN; infinities are values."""
    if x.dtype.kind in "biu" or not x.size:
        return
    with np.errstate(all="ignore"):
        if not np.isnan(np.min(x)):  # takes no memory, and NaN goes through
            return
    found = np.unravel_index(np.isnan(x).argmax(), x.shape)
    place = ", ".join(map(str, found))
    raise ValueError(f"{name}: expected no NaN, got one at [{place}]")


def check_nonfinite(policy):
    """What becomes of a batch whose statistics are not finite."""
    return check_choice("nonfinite", policy, ("propagate", "skip", "raise"))


def not_finite(channel):
    """The error of "raise"."""
    return ValueError(f"x: expected finite statistics of each channel, got others in channel {channel}")
