"""`show_config`: what was built, what runs here and on what, how many threads, what the pool holds, what is set."""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from cbnorm import _kernels, _memory, _runtime
from cbnorm._arrays import check_choice
from cbnorm._cpu import core_cache, last_level_cache
from cbnorm._pool import get_pool_limit
from cbnorm._threads import decide

SETTINGS = ("CBNORM_", "OMP_", "GOMP_", "KMP_")  # how the variables begin that cbnorm or OpenMP reads


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
    """Print what a bug report needs: versions, platform, CPU, kernel build, OpenMP, caches, threads, pool and settings.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        "dicts" returns a dict instead, as `numpy.show_config` does; its "threads" is the number alone, and
        "threads_by" what limits or sets it, "" where nothing does. "openmp_runtime" is the file of the OpenMP library
        in use, "" without one or where the system does not tell; "cache" has the bytes of the last-level cache and of
        what a core has to itself; "settings" the environment variables that cbnorm and OpenMP read, as they are now.

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
    >>> config = cbnorm.show_config("dicts")
    >>> config["threads"] == cbnorm.get_num_threads()
    True
    >>> print(*config)  # doctest: +NORMALIZE_WHITESPACE
    cbnorm python numpy platform cpu kernels builds openmp openmp_runtime cache threads threads_by pool settings
    """
    mode = check_choice("mode", mode, ("stdout", "dicts"))
    from cbnorm import __version__

    threads, threads_by = decide()
    config = {
        "cbnorm": __version__,
        "python": _python(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "kernels": _kernels.active_name,
        "builds": list(_kernels.BUILDS),
        "openmp": _kernels.active.openmp,
        "openmp_runtime": _runtime.path(),
        "cache": {"last_level": last_level_cache(), "core": core_cache()},
        "threads": threads,
        "threads_by": threads_by,
        "pool": f"{_memory.bytes_kept()} / {get_pool_limit()} bytes",
        "settings": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS)},
    }
    if mode == "dicts":
        return config
    _print(config)
    return None


def _python():
    kind = ", free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{platform.python_version()} ({platform.python_implementation()}{kind})"


def _print(config):
    settings = ", ".join(f"{name}={value}" for name, value in config["settings"].items()) or "none"
    runtime, why, cache = config.pop("openmp_runtime"), config.pop("threads_by"), config["cache"]
    words = {
        "builds": ", ".join(config["builds"]),
        "openmp": f"{config['openmp']} ({runtime})" if runtime else str(config["openmp"]),
        "cache": f"{cache['last_level']} bytes, {cache['core']} a core",
        "threads": f"{config['threads']} ({why})" if why else str(config["threads"]),
        "settings": settings.encode("ascii", "backslashreplace").decode(),  # an environment may hold any bytes
    }
    for name, value in (config | words).items():
        print(f"{name:8} {value}")
