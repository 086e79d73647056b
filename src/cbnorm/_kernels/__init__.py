"""Picks the fastest kernel build that this CPU runs; ``CBNORM_KERNELS`` forces one."""

import os
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from cbnorm._cpu import supported_builds

BUILDS = [name for name in supported_builds() if find_spec(f"{__name__}.{name}")]

# How long a thread without work spins before it sleeps: GNU's turns, some 30 ns each, and LLVM's milliseconds.
# Their own 10 and 200 ms would keep a core from whoever works between two calls, such as NumPy's matmul; without
# any spinning, calls that follow each other would wake the threads each time.
SPIN = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
WAITING = (*SPIN, "OMP_WAIT_POLICY", "KMP_LIBRARY")  # by any of these the user has decided


@contextmanager
def short_spin():
    """Let OpenMP find `SPIN` in the environment while it is loaded, the only time that it looks."""
    ours = {} if any(name in os.environ for name in WAITING) else SPIN
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def use(name):
    """Make the build of this name, one of BUILDS, the one that all calls go through."""
    global active, active_name
    if name not in BUILDS:
        raise ImportError(f"CBNORM_KERNELS: expected one of {', '.join(BUILDS)} (what can run here), got {name!r}")
    with short_spin():
        active = import_module(f"{__name__}.{name}")
    active_name = name


if not BUILDS:
    raise ImportError("cbnorm needs a CPU with SSE4.2 and POPCNT (x86-64-v2)")
use(os.environ.get("CBNORM_KERNELS") or BUILDS[-1])
