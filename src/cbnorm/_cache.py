"""What the caches of forward calls keep of the statistics: no more than x takes, where that is much."""

MANY = 2048  # channels or rows; for fewer, 64 KiB are kept rather than computed again


def kept(statistics, x, given=False):
    """The part of the statistics, (4, n), that a cache keeps: all, unless they take more memory than x does.

    None stands for those of a batch, which the same kernel computes from x again. Given ones are mean and variance,
    (2, n): mean_lo is 0 then, and inv_std is found again.
    """
    if statistics.nbytes <= x.nbytes:
        return statistics
    return statistics[[0, 2]] if given else None
