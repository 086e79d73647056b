"""How many threads a call may use: what the process is given, or what the user says; one after a fork.

Each number goes with the words that say where it comes from, for `show_config`; "" where nothing limits it.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from cbnorm._arrays import check_integer
from cbnorm._cgroup import control_groups
from cbnorm._environment import number_in_environment
from cbnorm._runtime import came_by_fork, max_threads, openmp, processors, recent, remember

MOST_THREADS = 1024
SMALL = 32768  # numbers, for which a call takes one thread at any rate (twice `grain` in team.pxi)
QUOTA_HOLDS = 1.0  # seconds: reading it takes as long as a small call

_local = ContextVar("cbnorm_threads", default=None)


QUOTA_FILES = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}  # "quota period" in all


def _cgroup_quota(*places):
    """CPUs that the control groups of this process allow, rounded up; None for no limit."""
    quotas = []
    for version, folder in control_groups("cpu", *places):
        try:
            quota, period = " ".join((folder / name).read_text() for name in QUOTA_FILES[version]).split()
            if quota != "max" and int(quota) > 0:
                quotas.append(math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):
            continue  # not there, or not for us to read
    return min(quotas, default=None)


_quota = None
_quota_until = -math.inf  # then it is read again


def _read_quota(now):
    global _quota, _quota_until
    _quota, _quota_until = _cgroup_quota(), now + QUOTA_HOLDS


def _own_variable(environ=os.environ):
    """What CBNORM_NUM_THREADS says; None where it is not set."""
    number = number_in_environment("CBNORM_NUM_THREADS", 1, MOST_THREADS, environ)
    return None if number is None else (number, "CBNORM_NUM_THREADS")


def _openmp_variable(environ=os.environ):
    """What OMP_NUM_THREADS says; None where OpenMP would not take it either."""
    text = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list holds one number a nesting level
    if not text.isdecimal() or not text.strip("0"):
        return None
    return min(int(text) if len(text) <= 20 else MOST_THREADS, MOST_THREADS), "OMP_NUM_THREADS"


def _first_max_threads():
    """What OpenMP started with: a new thread has that still, whatever was set on this one."""
    found = []
    try:
        new = threading.Thread(target=lambda: found.append(max_threads()))
        new.start()
        new.join()
    except RuntimeError:  # no more threads: the interpreter is about to end, or the system has none
        found.append(max_threads())
    return found[0]


_global = _own_variable()
_variable = _openmp_variable()
_single = ""  # why calls can only use one thread here
if not openmp:
    _single = "built without OpenMP"
elif came_by_fork:
    _single = "OpenMP was there before cbnorm in a forked process"
_cpus = os.cpu_count() or 1
_first = 1 if _single else _first_max_threads()


def _after_fork():
    # GNU OpenMP hangs in a child whose parent ran threads, as soon as the child starts some too.
    global _single
    remember(0)
    _single = _single or "forked after cbnorm was imported"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _given(limit):
    """The number where cbnorm itself was told none: what the process may use."""
    if _variable and limit <= _first:
        return _variable
    now = monotonic()
    if now >= _quota_until:
        _read_quota(now)
    number, reason = processors(), "CPU affinity"
    if _quota and _quota < number:
        number, reason = _quota, "control-group quota"
    if _variable and limit < number:  # OMP_NUM_THREADS=1, raised by omp_set_num_threads since
        number, reason = limit, "omp_set_num_threads"
    return number, reason if number < _cpus else ""


def decide():
    """How many threads a call made here uses at most, and why."""
    if _single:
        return 1, _single
    limit = max_threads()
    own = _local.get() or _global
    number, reason = own or _given(limit)
    if limit < _first and limit < number:
        number, reason = limit, "omp_set_num_threads, as by threadpoolctl"
    if not own:
        remember(number)
    return number, reason


def threads_for(numbers):
    """The number of threads for a call on so many numbers, in a tenth of a microsecond.

    So an affinity or quota that has changed may be seen a hundredth of a second later.
    """
    if _local.get() or _global:
        return decide()[0]
    return 1 if numbers < SMALL else recent() or decide()[0]


def set_num_threads(num_threads: int) -> None:
    """Set how many threads a call uses at most, for the whole process.

    Results do not depend on it, to the bit. Small arrays use one thread in any case, and limits hold that
    `get_num_threads` tells of.

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
    >>> cbnorm.get_num_threads() <= 2  # 1 without OpenMP
    True
    >>> cbnorm.set_num_threads(before)
    """
    global _global
    _global = check_integer("num_threads", num_threads, 1, MOST_THREADS), "set_num_threads"


def get_num_threads() -> int:
    """How many threads a call made here uses at most.

    The first of these that is set: the innermost `threads` block, `set_num_threads`,
    ``CBNORM_NUM_THREADS``, ``OMP_NUM_THREADS``; else what the process may use at this moment (CPU affinity
    or, where OpenMP binds threads, its places; and the control-group quota, read once a second).

    A limit counts beside all these: where the number of OpenMP's threads was lowered on the calling thread
    (``omp_set_num_threads``, as `threadpoolctl` calls it), no more are used. A number that was raised there
    takes the place of ``OMP_NUM_THREADS``, up to what the process may use.

    It is always 1 in a library built without OpenMP, and in a forked child, as GNU OpenMP would hang there:
    a child of a process that had imported cbnorm, or one where OpenMP was loaded before cbnorm.

    Returns
    -------
    int

    Examples
    --------
    >>> import cbnorm
    >>> cbnorm.get_num_threads() >= 1
    True
    """
    return decide()[0]


@contextmanager
def threads(num_threads: int):
    """Use at most so many threads inside a ``with`` block, in this Python thread or task alone.

    Limits hold that `get_num_threads` tells of.

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
    token = _local.set((check_integer("num_threads", num_threads, 1, MOST_THREADS), "threads"))
    try:
        yield
    finally:
        _local.reset(token)
