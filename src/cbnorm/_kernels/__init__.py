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


def _for_those_who_freeze_applications():
    """Never called: names what is imported by name, and by compiled modules, for tools that read imports."""
    from cbnorm import _environment, _memory  # noqa: F401
    from cbnorm._kernels import avx2, avx512, baseline  # noqa: F401


if not supported_builds():
    raise ImportError("cbnorm: this CPU is too old, expected one with SSE4.2 and POPCNT (x86-64-v2)")
if not BUILDS:
    raise ImportError(
        f"cbnorm: no kernel file found for this Python, expected {' or '.join(supported_builds())} in {__path__[0]}; a "
        "source tree is built by `pip install -e .`, a frozen application must hold the module cbnorm._kernels.baseline"
    )
use(os.environ.get("CBNORM_KERNELS") or BUILDS[-1])
