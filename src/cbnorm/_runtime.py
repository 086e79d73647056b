"""Loads the OpenMP runtime of the kernels, which the process may have loaded, bound to CPUs or forked before.

Imported before the kernels, so that what it finds out holds for them.
"""

import os
from contextlib import contextmanager
from pathlib import Path

PF_FORKNOEXEC = 0x40  # of the flags in /proc/self/stat: forked, and no programme executed since
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")  # each makes OpenMP bind threads
NAMES = ("libgomp", "libomp", "libiomp5")

# How long a thread without work spins before it sleeps: GNU's turns, some 30 ns each, and LLVM's milliseconds.
# Their own 10 and 200 ms would keep a core from whoever works between two calls, such as NumPy's matmul; without
# any spinning, calls that follow each other would wake the threads each time.
SPIN = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
WAITING = (*SPIN, "OMP_WAIT_POLICY", "KMP_LIBRARY")  # by any of these the user has decided


@contextmanager
def short_spin():
    """Let OpenMP find `SPIN` in the environment while it starts, the only time that it looks."""
    ours = {} if any(name in os.environ for name in WAITING) else SPIN
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _is_forked():
    """Whether this process came from a fork; False where there is no /proc, as on macOS, whose OpenMP bears forks."""
    try:
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & PF_FORKNOEXEC)


def _mapped_files():
    """(start, end, path) of every piece of a file in memory; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    pieces = [line.split(maxsplit=5) for line in lines]
    return [(*(int(part, 16) for part in piece[0].split("-")), piece[5]) for piece in pieces if len(piece) == 6]


def _cpus_of_runtimes():
    """CPUs of all places of the OpenMP runtimes in this process."""
    import ctypes  # 10 ms that only few processes need

    cpus = set()
    for path in {path for _, _, path in _mapped_files() if os.path.basename(path).startswith(NAMES)}:
        try:
            runtime = ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_NOLOAD)
            for place in range(runtime.omp_get_num_places()):
                numbers = (ctypes.c_int * runtime.omp_get_place_num_procs(place))()
                runtime.omp_get_place_proc_ids(place, numbers)
                cpus.update(numbers)
        except (OSError, AttributeError):  # no such library, or older than places
            continue
    return cpus


@contextmanager
def _all_cpus_in_sight():
    """Undo for a moment what another runtime did to this thread: it bound it to the first of the process's CPUs.

    A runtime that is loaded then would take these for all there are. It binds the thread again by itself.
    """
    if not any(map(os.environ.get, BINDING)) or not hasattr(os, "sched_setaffinity"):
        yield
        return
    bound, cpus = os.sched_getaffinity(0), _cpus_of_runtimes()
    widened = bound < cpus
    if widened:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:  # taken away from the process since
            widened = False
    try:
        yield
    finally:
        if widened and os.sched_getaffinity(0) == cpus:  # nothing was loaded that would bind it
            os.sched_setaffinity(0, bound)


# GNU OpenMP hangs in a forked process, as soon as that starts threads: its own are those of the parent.
_inherited = _mapped_files() if _is_forked() else []
with _all_cpus_in_sight(), short_spin():
    from cbnorm import _openmp

    _openmp.max_threads()  # LLVM's runtime looks at the environment when it is first called

openmp, max_threads, processors = _openmp.openmp, _openmp.max_threads, _openmp.processors
remember, recent = _openmp.remember, _openmp.recent
came_by_fork = any(start <= _openmp.address() < end for start, end, _ in _inherited)


def path():
    """The file of the OpenMP runtime in use; "" without OpenMP, or where the system does not tell."""
    address = _openmp.address()
    return next((path for start, end, path in _mapped_files() if start <= address < end), "") if openmp else ""
