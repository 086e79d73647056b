"""Picks the fastest kernel build that this CPU runs; ``CBNORM_KERNELS`` forces one."""

import os
from importlib import import_module
from importlib.util import find_spec

from cbnorm import _runtime  # noqa: F401 - OpenMP is loaded there, with care, before a build would load it
from cbnorm._cpu import supported_builds

BUILDS = [name for name in supported_builds() if find_spec(f"{__name__}.{name}")]


def use(name):
    """Make the build of this name, one of BUILDS, the one that all calls go through."""
    global active, active_name
    if name not in BUILDS:
        raise ImportError(f"CBNORM_KERNELS: expected one of {', '.join(BUILDS)} (what can run here), got {name!r}")
    active = import_module(f"{__name__}.{name}")
    active_name = name


if not BUILDS:
    raise ImportError("cbnorm needs a CPU with SSE4.2 and POPCNT (x86-64-v2)")
use(os.environ.get("CBNORM_KERNELS") or BUILDS[-1])
