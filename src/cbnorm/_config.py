"""`show_config`: what was built, what runs here, how many threads, what the pool holds."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from cbnorm import _kernels, _memory
from cbnorm._arrays import check_choice
from cbnorm._pool import get_pool_limit
from cbnorm._threads import decide


def cpu_model():
    """The processor's name as its maker gives it, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Print the kernel build in use, the CPU, OpenMP, the number of threads and the pool of results.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        "dicts" returns a dict instead, as `numpy.show_config` does; its "threads" is the number alone, and
        "threads_by" what limits or sets it, "" where nothing does.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        If `mode` is neither.

    Examples
    --------
    >>> import cbnorm
    >>> sorted(cbnorm.show_config("dicts"))
    ['builds', 'cbnorm', 'cpu', 'kernels', 'numpy', 'openmp', 'pool', 'threads', 'threads_by']
    """
    mode = check_choice("mode", mode, ("stdout", "dicts"))
    from cbnorm import __version__

    threads, threads_by = decide()
    config = {
        "cbnorm": __version__,
        "numpy": np.__version__,
        "cpu": cpu_model(),
        "kernels": _kernels.active_name,
        "builds": list(_kernels.BUILDS),
        "openmp": _kernels.active.openmp,
        "threads": threads,
        "threads_by": threads_by,
        "pool": f"{_memory.bytes_kept()} / {get_pool_limit()} bytes",
    }
    if mode == "dicts":
        return config
    if config.pop("threads_by"):
        config["threads"] = f"{threads} ({threads_by})"
    for name, value in config.items():
        print(f"{name:8} {', '.join(value) if isinstance(value, list) else value}")
    return None
