"""How many threads a call may use: what the process is given, or what the user says; one after a fork."""

import math
import operator
import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

MOST_THREADS = 1024

_local = ContextVar("cbnorm_threads", default=None)


def _cgroup_quota(root=Path("/sys/fs/cgroup"), membership=Path("/proc/self/cgroup")):
    """CPUs that the control groups of this process allow, rounded up; None for no limit."""
    quotas = []
    try:
        lines = membership.read_text().splitlines()
        groups = [(controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines)]
    except (OSError, ValueError):
        return None
    for controllers, path in groups:
        if controllers == "":  # version 2: one file, "quota period"
            top, names = root, ("cpu.max",)
        elif "cpu" in controllers.split(","):  # version 1: a file for each number
            top, names = root / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # a limit holds for all groups below it
            if not folder.is_relative_to(top):
                break
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if quota != "max" and int(quota) > 0:
                    quotas.append(math.ceil(int(quota) / int(period)))
            except (OSError, ValueError):
                continue  # not there, or not for us to read
    return min(quotas, default=None)


def _default_threads(environ=os.environ):
    own = environ.get("CBNORM_NUM_THREADS", "").strip()
    if own:
        if not own.isdecimal() or not 1 <= int(own) <= MOST_THREADS:
            raise ValueError(f"CBNORM_NUM_THREADS: expected 1 to {MOST_THREADS}, got {own!r}")
        return int(own)
    openmp = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list holds one number a nesting level
    if openmp.isdecimal() and int(openmp) > 0:
        return min(int(openmp), MOST_THREADS)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _cgroup_quota() or affinity)


_global = _default_threads()
_forked = False


def _after_fork():
    # GNU OpenMP hangs in a child whose parent ran threads, as soon as the child starts some too.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check(num_threads):
    try:
        count = operator.index(num_threads)
    except TypeError:
        raise TypeError(f"num_threads: expected an integer, got {num_threads!r}") from None
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"num_threads: expected 1 to {MOST_THREADS}, got {count}")
    return count


def set_num_threads(num_threads: int) -> None:
    """Set how many threads a call uses at most, for the whole process.

    Results do not depend on it, to the bit. Small arrays use one thread in any case.

    Parameters
    ----------
    num_threads : int
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `num_threads` is not an integer in that range.

    Examples
    --------
    >>> import cbnorm
    >>> before = cbnorm.get_num_threads()
    >>> cbnorm.set_num_threads(2)
    >>> cbnorm.get_num_threads()
    2
    >>> cbnorm.set_num_threads(before)
    """
    global _global
    _global = _check(num_threads)


def get_num_threads() -> int:
    """How many threads a call made here uses at most.

    The first of these that is set: the innermost `threads` block, `set_num_threads`,
    ``CBNORM_NUM_THREADS``, ``OMP_NUM_THREADS``; else what the process may use (CPU affinity and
    control-group quota). In a forked child it is always 1, as GNU OpenMP would hang there.

    Returns
    -------
    int

    Examples
    --------
    >>> import cbnorm
    >>> cbnorm.get_num_threads() >= 1
    True
    """
    return 1 if _forked else _local.get() or _global


@contextmanager
def threads(num_threads: int):
    """Use at most so many threads inside a ``with`` block, in this Python thread or task alone.

    Parameters
    ----------
    num_threads : int
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `num_threads` is not an integer in that range.

    Examples
    --------
    >>> import cbnorm
    >>> with cbnorm.threads(1):
    ...     cbnorm.get_num_threads()
    1
    """
    token = _local.set(_check(num_threads))
    try:
        yield
    finally:
        _local.reset(token)
