"""What `cbnorm bench` says before it begins: how long it will take, whether arrays fit, whether the machine is busy."""

import math
import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from cbnorm._cgroup import memory_limits
from cbnorm._cli import formulas
from cbnorm._cli.bench.timing import LEAST_RUNS

IMPORT = 2.0  # seconds until a peer is there, on a machine where NumPy's formulas take USUAL a number
USUAL = 15e-9  # seconds
# In NumPy's formulas: the arrays of a line and the truth in float64; one call of each peer, as the slower ones need it.
PREPARING, CALL = 7, 1.2


def seconds_per_number():
    """What NumPy's formulas take here for each number: a tenth of a second or less."""
    x = np.ones((1024, 1024), np.float32)
    best = math.inf
    for _ in range(3):
        start = perf_counter()
        formulas.forward(x, x[0], x[0], axes=0, eps=1e-5)
        best = min(best, perf_counter() - start)
    return best / x.size


def line_seconds(shape, num_peers, budget, per_number):
    """About how long a line of the table takes: its arrays, a check of everyone, and their calls."""
    numbers = math.prod(shape.sizes)
    calls = numbers * per_number * CALL * num_peers
    return numbers * per_number * PREPARING + calls + max(budget, LEAST_RUNS * calls)


def import_seconds(peers, per_number):
    """About how long the peers of these names take to be there; NumPy is."""
    return IMPORT * sum(name != "numpy" for name in peers) * per_number / USUAL


def line_bytes(operation, shape, dtype):
    """Memory that a line takes at its peak: its arrays, and those in float64 that results are checked against."""
    itemsize = np.dtype(dtype).itemsize
    each = 6 * itemsize + 48 if operation.is_backward else 3 * itemsize + 40
    return each * math.prod(shape.sizes)


def free_bytes():
    """Memory that this process may still take; all that can have an address where the system does not tell."""
    free = [sys.maxsize]
    try:
        fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        free += [int(size) << 10 for name, size, *_ in fields if name == "MemAvailable:"]
    except (OSError, ValueError):
        pass
    for limit, usage, stat in memory_limits():
        try:
            # What the group holds of files is given back when memory is short.
            counts = dict(line.split() for line in stat.read_text().splitlines())
            free.append(limit - int(usage.read_text()) + int(counts.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
    return max(0, min(free))


def gibibytes(size):
    """`1.7 GiB`."""
    size /= 1 << 30
    return f"{size:,.0f} GiB" if size >= 100 else f"{size:.2g} GiB"


def load():
    """How many processes wanted a core in the last minute, 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def is_busy(load, num_threads):
    """Whether so much else runs that times are not the library's own."""
    return load > max(1, (os.cpu_count() or 1) - num_threads)
