"""A call's threads: they cost no more than they save, wait without keeping a core, and compute as the caller does."""

import os

import numpy as np
import pytest
from processes import linux, run_python, start_python

from cbnorm import _kernels

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
import ctypes
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
flush_to_zero()
flushed = results(1)
assert flushed != kept
assert results(2) == flushed
"""


@linux
def test_two_processes_of_two_threads_share_one_core():
    processes = [start_python(CALLS_ON_ONE_CORE, CBNORM_NUM_THREADS="2") for _ in range(2)]
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
            process.communicate()
    assert max(seconds) < 2


@linux
def test_two_threads_between_matmuls_cost_no_multiple_of_one():
    # Threads that wait by spinning, as all others do, took 30 to 60 times as long here.
    assert float(run_python(BETWEEN_MATMULS).stdout) < 5


@linux
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="sets a register of x86-64")
def test_all_threads_flush_to_zero_if_the_caller_does():
    run_python(IN_THE_CALLERS_MODE)


# Whether threads pay: calls that never were, of a kind that takes 20 microseconds alone.
KIND, ALONE = 12345, 20e-6


@pytest.fixture
def judged(kernels):
    """Judge a call with two threads; returns for how many seconds it makes calls go alone."""
    build = _kernels.active
    if not build.openmp:
        pytest.skip("built without OpenMP, where there is nothing to judge")
    build.set_judging(True)
    for _ in range(5):
        build.rehearse(KIND, 1, ALONE, 0.0)
    yield lambda elapsed, waited=0.0: build.rehearse(KIND, 2, elapsed, waited)
    build.set_judging(False)


def lose(judged):
    """Lose 40 microseconds a call until calls go alone; returns for how long, and how much was lost."""
    for count in range(1, 1000):
        if alone := judged(3 * ALONE, 2.5 * ALONE):
            return alone, count * 2 * ALONE
    pytest.fail("calls that lose go on with their threads")


def test_calls_that_save_keep_their_threads(judged):
    assert not any(judged(0.7 * ALONE, 0.1 * ALONE) for _ in range(10_000))


def test_one_interruption_among_calls_that_save_changes_nothing(judged):
    assert not any(judged(0.7 * ALONE) for _ in range(1000))
    assert judged(3e-3, 3e-3 - 0.5 * ALONE) == 0
    assert not any(judged(0.7 * ALONE) for _ in range(1000))


def test_calls_that_lose_go_alone_for_ever_longer(judged):
    spells, losses = zip(*(lose(judged) for _ in range(7)), strict=True)
    assert np.allclose(np.divide(spells, losses), [1, 4, 16, 64, 256, 256, 256], rtol=0.1)


def test_calls_that_save_again_take_the_steps_back(judged):
    for _ in range(5):
        lose(judged)
    assert not any(judged(0.5 * ALONE) for _ in range(10_000))
    spell, loss = lose(judged)
    assert spell < 10 * loss


@pytest.mark.parametrize("stopped", [1.0, 3600.0, 1e9])
def test_a_process_that_was_stopped_does_not_pay_for_it(judged, stopped):
    assert judged(stopped, stopped) < 0.01
    for _ in range(5):
        lose(judged)
    assert judged(stopped, stopped) < 2


@pytest.mark.parametrize("nonsense", [float("nan"), 0.0, -1.0])
def test_what_cannot_be_is_forgotten(judged, nonsense):
    _kernels.active.rehearse(KIND, 1, nonsense, 0.0)
    judged(nonsense, nonsense)
    for _ in range(100):
        _kernels.active.rehearse(KIND, 1, ALONE, 0.0)
    lose(judged)
    assert np.isfinite(judged(ALONE))


def test_a_kind_that_was_never_alone_is_judged_by_what_its_thread_waited(judged):
    rehearse = _kernels.active.rehearse
    assert not any(rehearse(KIND + 1, 2, ALONE, 0.1 * ALONE) for _ in range(1000))
    assert any(rehearse(KIND + 2, 2, ALONE, 0.9 * ALONE) for _ in range(1000))
