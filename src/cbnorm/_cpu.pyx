# What this CPU can run: the names of the kernel builds, slowest first.

import os
import sys


cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #define CBNORM_X86 1
    /* The builtin takes literals only. */
    #define CBNORM_HAS_V2 (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"))
    #define CBNORM_HAS_V3 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") \\
        && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
    #define CBNORM_HAS_V4 (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") \\
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") \\
        && __builtin_cpu_supports("avx512vl"))
    #else
    #define CBNORM_X86 0
    #define CBNORM_HAS_V2 0
    #define CBNORM_HAS_V3 0
    #define CBNORM_HAS_V4 0
    #endif
    """
    const bint CBNORM_X86
    bint CBNORM_HAS_V2
    bint CBNORM_HAS_V3
    bint CBNORM_HAS_V4


def supported_builds():
    """The builds that this CPU runs, the fastest last; other architectures have the baseline alone."""
    builds = []
    if not CBNORM_X86 or CBNORM_HAS_V2:
        builds.append("baseline")
    if CBNORM_HAS_V3:
        builds.append("avx2")
    if CBNORM_HAS_V3 and CBNORM_HAS_V4:
        builds.append("avx512")
    return builds


def last_level_cache():
    """Bytes of the largest cache, 8 MiB where nothing tells. ``CBNORM_CACHE_BYTES`` overrides it."""
    from cbnorm._environment import number_in_environment  # not at the top: this module needs no other to begin with

    given = number_in_environment("CBNORM_CACHE_BYTES", 0, sys.maxsize)
    if given is not None:
        return given
    return max(_cache_bytes(2), _cache_bytes(3)) or 8 << 20


def core_cache():
    """Bytes of the largest cache that a core has to itself, 256 KiB where nothing tells."""
    return _cache_bytes(2) or 256 << 10


def _cache_bytes(level):
    """What the C library says of a level, or the kernel where that says 0, as glibc 2.36 does of new processors."""
    name = f"SC_LEVEL{level}_CACHE_SIZE"
    size = int(os.sysconf(name)) if name in getattr(os, "sysconf_names", ()) else 0
    if size > 0:
        return size
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size") as file:
            return int(file.read().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 0
