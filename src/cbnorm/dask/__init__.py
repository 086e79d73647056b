"""Moments, standardization and population statistics of Dask arrays: lazy, in parts, in parallel.

    m = cbnorm.dask.moments(x, axis=0); m.mean, m.var(); m.compute()    # a tree of merges that Dask's schedulers see
    y, m = cbnorm.dask.standardize(x, axis=0)                           # y is lazy too; x is read twice, never held
    p = cbnorm.dask.population_stats(x, axis=1).compute()               # each chunk is a batch

Every chunk is read once, on one thread of its own, and what a worker holds of it afterwards is a few numbers a channel.
The merges have the order of the chunks, whoever computes them: the bits of a result depend on the chunks, not on
workers, nor on their number or their fate. Needs ``pip install 'cbnorm[dask]'``.
"""

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError("cbnorm.dask: Dask is missing, `pip install 'cbnorm[dask]'` brings it") from error

from cbnorm.dask.lazy import LazyMoments
from cbnorm.dask.reduce import moments, population_stats, standardize

__all__ = ["LazyMoments", "moments", "population_stats", "standardize"]
