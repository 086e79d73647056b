"""Code in Python processes of its own, and what a test needs of the system for it."""

import os
import subprocess
import sys

import pytest

from cbnorm import _threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
needs_openmp = pytest.mark.skipif(not _threads.openmp, reason="built without OpenMP")
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two_cpus = pytest.mark.skipif(
    len(CPUS) < 2 or not os.path.isdir("/proc/self/task") or not _threads.openmp,
    reason="this needs Linux, two CPUs and OpenMP",
)

# Functions for code that runs in a process of its own.
PEAK = """
def peak():
    "The most memory that the process has had, in bytes (Linux)."
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""
STARTED = """
import os
import numpy as np
import cbnorm
from cbnorm import _kernels

_kernels.active.set_judging(False)
x = np.ones((512, 512), np.float32)

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))

def started():
    "The threads that a call starts; OpenMP keeps them."
    before = tasks()
    cbnorm.batchnorm_forward(x)
    return tasks() - before
"""
IN_A_CHILD = """
import os, signal, sys, time

def run_in_child(work):
    "The end of a forked process; it is killed if it hangs."
    child = os.fork()
    if child == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    for _ in range(2000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"
"""


def start_python(code, *arguments, **environment):
    """Start code in a new process, where cbnorm finds nothing in the environment but what is passed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CBNORM_", "OMP_"))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**inherited, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code, *, status=0, timeout=60, **environment):
    """Run it to its end; returns what it printed."""
    with start_python(code, **environment) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
    assert process.returncode == status, errors
    return subprocess.CompletedProcess(process.args, status, output, errors)


def words(code, **environment):
    """Run it, and split what it printed at white space."""
    return run_python(code, **environment).stdout.split()
