"""How much freed memory is kept for the next results: what the user says, or a share of what there is."""

from __future__ import annotations

import os
import sys

from cbnorm import _memory
from cbnorm._arrays import check_integer
from cbnorm._cgroup import memory_limits
from cbnorm._environment import number_in_environment

MOST_BYTES = sys.maxsize
# A training loop frees y and dx of a layer before it takes them anew: four results of 64 MB are those of the two
# largest layers, and a smaller network's as a whole.
DEFAULT_BYTES = 256 << 20
UNKNOWN_TOTAL = 1 << 30  # where the system does not tell how much memory it has


def _machine_memory():
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_TOTAL


def _default_limit(total, environ=os.environ):
    own = number_in_environment("CBNORM_POOL_BYTES", 0, MOST_BYTES, environ)
    if own is not None:
        return own
    return min(DEFAULT_BYTES, total // 16)


def _start(machine, limits):
    """Watch what limits this process, and set the limit to begin with."""
    limits = [group for group in limits if group[0] < machine]  # others never bind; version 1 has a number for "none"
    total = min([machine, *(limit for limit, *_ in limits)])
    _memory.watch("/proc/meminfo", limits, total)
    _memory.set_limit(_default_limit(total))


_start(_machine_memory(), memory_limits())

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.after_fork)


def set_pool_limit(nbytes: int) -> None:
    """Set how much freed memory is kept for the next results, for the whole process.

    Results of 128 KiB and more that are freed keep their pages for later ones, up to this limit; the
    oldest go back to the system first. Nothing is kept while the machine or a control group is short
    of memory. ``CBNORM_POOL_BYTES`` sets the limit at import; by default it is 256 MiB, or a
    sixteenth of what the process may use where that is less.

    Parameters
    ----------
    nbytes : int
        At least 0. With 0, results are ordinary memory, and nothing is kept.

    Raises
    ------
    TypeError, ValueError
        If `nbytes` is not an integer in that range.

    Examples
    --------
    >>> import cbnorm
    >>> before = cbnorm.get_pool_limit()
    >>> cbnorm.set_pool_limit(64 << 20)
    >>> cbnorm.get_pool_limit()
    67108864
    >>> cbnorm.set_pool_limit(before)
    """
    _memory.set_limit(check_integer("nbytes", nbytes, 0, MOST_BYTES))


def get_pool_limit() -> int:
    """How many bytes of freed results are kept at most.

    Returns
    -------
    int

    Examples
    --------
    >>> import cbnorm
    >>> cbnorm.get_pool_limit() >= 0
    True
    """
    return _memory.get_limit()


def empty_pool() -> int:
    """Give back what is kept for the next results; arrays in use are not touched.

    Returns
    -------
    int
        How many bytes were given back.

    Examples
    --------
    >>> import cbnorm
    >>> freed = cbnorm.empty_pool()
    >>> cbnorm.empty_pool()
    0
    """
    return _memory.empty()
