"""The threads of a call share its passes: their number changes no bit, and none is woken that has no work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import DTYPES, LARGE, assert_same_bits, batch, make_case, results
from processes import linux, needs_openmp, run_python

import cbnorm

NUMBERS = (1, 2, 3, 8)
# More numbers than eight threads need for a share each.
CASE = batch(), *make_case(batch(), (2_003, 151), np.float32)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(kernels, dtype, name):
    norm, shape = LARGE[name]
    case = make_case(norm, shape, dtype)
    found = []
    for number in NUMBERS:
        with cbnorm.threads(number):
            found.append(results(norm, *case))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("number", NUMBERS, ids="{} threads".format)
def test_moments_do_not_depend_on_the_number_of_threads(number):
    _, x, *_ = CASE
    with cbnorm.threads(1):
        want = cbnorm.moments(x)
    with cbnorm.threads(number):
        got = cbnorm.moments(x)
    assert_same_bits([got.mean, got.m2], [want.mean, want.m2])


def test_python_threads_at_the_same_time_give_the_same_bits():
    with cbnorm.threads(1):
        want = results(*CASE)
    start = threading.Barrier(4, timeout=30)

    def work(number):
        with cbnorm.threads(number):
            start.wait()
            for _ in range(5):
                assert_same_bits(results(*CASE), want)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, NUMBERS))


def test_fewer_threads_than_asked_for_give_the_same_bits():
    code = """
import hashlib, numpy as np, cbnorm
x = np.random.default_rng(0).standard_normal((2_003, 151))
y, cache, _, _ = cbnorm.batchnorm_forward(x)
results = y, *cbnorm.batchnorm_backward(x * x, cache)
print(hashlib.sha256(b"".join(part.tobytes() for part in results)).hexdigest())
"""
    four = run_python(code, CBNORM_NUM_THREADS="4").stdout
    assert run_python(code, CBNORM_NUM_THREADS="4", OMP_THREAD_LIMIT="3").stdout == four


@linux
@needs_openmp
def test_no_thread_is_woken_that_has_no_row():
    code = """
import os
import numpy as np, cbnorm
from cbnorm import _kernels

_kernels.active.set_judging(False)
with cbnorm.threads({}):
    cbnorm.layernorm_forward(np.ones((2, 262_144), np.float32))
print(len(os.listdir("/proc/self/task")))
"""
    alone, eight = (int(run_python(code.format(number)).stdout) for number in (1, 8))
    assert eight == alone + 1
