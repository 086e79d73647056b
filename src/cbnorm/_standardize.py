"""(x - mean) / std over any axes of any array, with the array's own statistics or with others, and the way back."""

import numpy as np

from cbnorm._arrays import check_out
from cbnorm._axes import Channels
from cbnorm._calls import normalize
from cbnorm._results import (
    as_result,
    copy_into,
    float_dtypes,
    is_readable,
    room_for,
    statistics_for,
    stored,
)


def standardized(x, view, out, find_plan, statistics=None):
    """y, and the statistics (kinds, channels) in the order of the view that is the third result.

    ``find_plan(view)`` says how the kernels take what a view sees; `statistics` are given as they are there, or None.
    """
    computed, wanted = float_dtypes(x, out)
    straight = False  # into out
    if out is not None:
        check_out(out, x.shape, wanted, "x", ("x",), (x,), True)
        seen = Channels(out, view.reduced)
        straight = (computed == wanted or computed.itemsize == 4) and seen.arranged(out).flags.c_contiguous
        if straight and not (is_readable(view.arranged(x), computed) and view.arranged(out).flags.c_contiguous):
            copy_into(out, x)  # no room is taken but that of the result
            x, view = out, seen
    arranged = view.arranged(x)
    plan = find_plan(view)
    if not x.size:
        return np.empty_like(x, wanted) if out is None else out, np.zeros((plan.kinds, plan.sets)), view
    if statistics is None:
        statistics = statistics_for(plan)
    values = stored(arranged, computed, plan)
    y = view.arranged(out) if straight else room_for(None, values, arranged, computed, wanted, plan)
    normalize(plan, arranged, values, y, None, None, statistics, None)
    if out is None:
        return view.restored(as_result(y, wanted, None)), statistics, view
    if not straight:
        copy_into(view.arranged(out), y)
    return out, statistics, view


def unstandardized(y, mean, mean_lo, std, out):
    """y·std + mean, in float64, block by block; the statistics broadcast to y."""
    wanted = float_dtypes(y)[1]
    if out is None:
        out = np.empty_like(y, wanted, order="K", subok=False)
    else:
        check_out(out, y.shape, wanted, "y", ("y",), (y,), True)
    inputs = [["readonly", "overlap_assume_elementwise"]] + [["readonly"]] * 3
    blocks = np.nditer(
        [y, std, mean_lo, mean, out],
        ["buffered", "external_loop", "zerosize_ok", "copy_if_overlap"],
        [*inputs, ["writeonly", "overlap_assume_elementwise"]],
        [np.float64] * 5,
        casting="unsafe",
        buffersize=2**13,
    )
    with np.errstate(all="ignore"), blocks:
        for values, scale, low, high, result in blocks:
            np.multiply(values, scale, out=result)
            result += low
            result += high
    return out
