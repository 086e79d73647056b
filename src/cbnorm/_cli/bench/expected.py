"""What `cbnorm bench` says before it begins: how long it will take, whether arrays fit, whether the machine is busy."""

import math
import os
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from cbnorm._cgroup import memory_limits
from cbnorm._cli import formulas
from cbnorm._cli.bench.cases import EPS, Case, Shape
from cbnorm._cli.bench.timing import LEAST_RUNS

USUAL = 50e-9  # seconds that `seconds_per_number` finds on a machine where a peer is imported in IMPORT seconds
IMPORT = 2.0
SAMPLE = Shape.parse("2048x1024")
# In times what `seconds_per_number` finds: the arrays of a line and the truth, mostly larger than the sample's; one
# call of a peer that works through NumPy, and of one that has kernels of its own.
PREPARING, NUMPY_CALL, CALL = 2.0, 0.7, 0.1
THROUGH_NUMPY = ("numpy", "sklearn")


def seconds_per_number():
    """What a number costs here and now that is drawn and normalized in float64; found in a tenth of a second."""
    start = perf_counter()
    case = Case.make("train", SAMPLE, np.dtype("float32")).in_float64()
    formulas.forward(case.x, case.gamma, case.beta, axes=0, eps=EPS)
    return (perf_counter() - start) / case.x.size


def line_seconds(shape, peers, budget, per_number):
    """About how long a line of the table takes: its arrays, a check of the peers of these names, and their calls."""
    numbers = math.prod(shape.sizes) * per_number
    calls = numbers * sum(NUMPY_CALL if name in THROUGH_NUMPY else CALL for name in peers)
    return numbers * PREPARING + calls + max(budget, LEAST_RUNS * calls)


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
