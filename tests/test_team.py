"""A call's threads: they cost no more than they save, wait without keeping a core, and compute as the caller does."""

import os
import subprocess
import sys

import pytest

CALLS_ON_ONE_CORE = """
import os, time
import numpy as np, cbnorm
x = np.random.default_rng(0).standard_normal((128, 256), np.float32)
cbnorm.batchnorm_forward(x)
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), [min(os.sched_getaffinity(0))])
print("ready", flush=True)
input()
start = time.perf_counter()
for _ in range(100):
    cbnorm.batchnorm_forward(x)
print(time.perf_counter() - start)
"""

BETWEEN_MATMULS = """
import time
import numpy as np, cbnorm

x, weights = np.ones((256, 1024), np.float32), np.ones((1024, 1024), np.float32)
seconds = {1: 0.0, 2: 0.0}
for _ in range(100):
    for number in seconds:
        with cbnorm.threads(number):
            for _ in range(3):
                z = x @ weights
                start = time.perf_counter()
                cbnorm.batchnorm_forward(z, out=z.copy())
                seconds[number] += time.perf_counter() - start
print(seconds[2] / seconds[1])
"""

IN_THE_CALLERS_MODE = """
import ctypes, sys
import numpy as np, cbnorm
from cbnorm import _kernels

_kernels.active.set_judging(False)

def flush_to_zero():
    libm = ctypes.CDLL("libm.so.6")
    state = (ctypes.c_uint32 * 8)()
    libm.fegetenv(state)
    state[7] |= 0x8040  # MXCSR: subnormal results are 0, subnormal inputs too
    libm.fesetenv(state)

def results(threads):
    with cbnorm.threads(threads):
        y, cache, *_ = cbnorm.batchnorm_forward(x, gamma)
        y_rows, rows_cache = cbnorm.layernorm_forward(x, gamma)
        backward = cbnorm.batchnorm_backward(dout, cache) + cbnorm.layernorm_backward(dout, rows_cache)
        return b"".join(array.tobytes() for array in (y, y_rows, *backward))

x, dout = np.random.default_rng(0).standard_normal((2, 3000, 100), np.float32)
gamma = np.full(100, 1e-38, np.float32)  # so that most results are subnormal
kept = results(1)
assert results(2) == kept
if sys.argv[1:] != ["kept"]:
    flush_to_zero()
    flushed = results(1)
    assert flushed != kept
    assert results(2) == flushed
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


@linux
def test_two_processes_of_two_threads_share_one_core():
    command = [sys.executable, "-c", CALLS_ON_ONE_CORE]
    environment = {**os.environ, "CBNORM_NUM_THREADS": "2"}
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipe) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        seconds = [float(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert max(seconds) < 2


@linux
def test_two_threads_between_matmuls_cost_no_multiple_of_one(run_python):
    # Threads that wait by spinning, as all others do, took 30 to 60 times as long here.
    assert float(run_python(BETWEEN_MATMULS).stdout) < 5


@linux
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="sets a register of x86-64")
def test_all_threads_flush_to_zero_if_the_caller_does(run_python):
    run_python(IN_THE_CALLERS_MODE)


@linux
def test_openmp_is_told_to_spin_shortly_and_nobody_else_is(run_python):
    code = "import os; before = dict(os.environ); import cbnorm; assert dict(os.environ) == before"
    told = run_python(code, OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("built with another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '3000'" in told
    told = run_python(code, OMP_DISPLAY_ENV="verbose", GOMP_SPINCOUNT="77").stderr
    assert "GOMP_SPINCOUNT = '77'" in told
