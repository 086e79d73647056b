"""Many calls, many threads, interrupts, arrays past 2**31 numbers, and other libraries in the process."""

import ctypes
import importlib.util
import itertools
import math
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from layer_cases import numbers
from processes import linux, needs_openmp, run_python
from public_calls import bits_of, make_input, public_calls

import cbnorm

HERE = {"PYTHONPATH": str(Path(__file__).parent)}

MANY_CALLS = """
import gc, sys
import numpy as np
from public_calls import make_input, public_calls

def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096, sys.getallocatedblocks()

x, dout = (make_input((4, 6, 8), np.float32, seed) for seed in (0, 1))
for name, call in public_calls(x, dout).items():
    for _ in range(100):
        call()
    before, blocks_before = memory()
    for _ in range({times}):
        call()
    after, blocks_after = memory()
    assert after - before < 1 << 20, (name, after - before)
    assert blocks_after - blocks_before < 50, (name, blocks_after - blocks_before)
"""


@linux
@pytest.mark.not_sanitized(reason="the sanitizer keeps freed memory for a while")
@pytest.mark.parametrize("times", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_calls_take_no_more_memory_than_one(times):
    run_python(MANY_CALLS.format(times=times), timeout=600, **HERE)


X, DOUT = make_input(seed=0), make_input(seed=1)


@pytest.mark.parametrize("name", public_calls(X, DOUT))
def test_eight_python_threads_call_one_function_with_one_array(name):
    call = public_calls(X, DOUT)[name]
    want = bits_of(call())
    start = threading.Barrier(8, timeout=30)

    def work(_):
        start.wait()
        return {bits_of(call()) for _ in range(10)}

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(work, range(8))) == {want}


def test_eight_python_threads_share_one_layer(layer_case):
    x, dout = numbers(0), numbers(1)
    alone, shared = layer_case.make(), layer_case.make()
    want = [bits_of([alone.forward(x), alone.backward(dout), *alone.grads.values()]) for _ in range(80)]
    start = threading.Barrier(8, timeout=30)

    def work(_):
        start.wait()
        return {bits_of([shared.forward(x), shared.backward(dout), *shared.grads.values()]) for _ in range(10)}

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(work, range(8))) == {want[0]}
    assert bits_of(shared.state_dict().values()) == bits_of(alone.state_dict().values())


NO_THREADS = """
import os, resource
import numpy as np
import cbnorm
from cbnorm import _kernels

_kernels.active.set_judging(False)
x = np.random.default_rng(0).standard_normal((512, 1024), np.float32)
with cbnorm.threads(1):
    want = cbnorm.layernorm_forward(x)[0]
before = len(os.listdir("/proc/self/task"))
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (20 << 20), resource.RLIM_INFINITY))
with cbnorm.threads(8):
    assert np.array_equal(cbnorm.layernorm_forward(x)[0], want)
    few = len(os.listdir("/proc/self/task")) - before
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert np.array_equal(cbnorm.layernorm_forward(x)[0], want)
print(few < 7, len(os.listdir("/proc/self/task")) - before)
"""


@linux
@needs_openmp
@pytest.mark.not_sanitized(reason="the sanitizer takes terabytes of addresses")
def test_fewer_threads_work_where_the_system_has_no_room_for_more():
    assert run_python(NO_THREADS).stdout.split() == ["True", "7"]


INTERRUPTS = """
import os, random, signal, threading, time
import numpy as np
import cbnorm

x = np.random.default_rng(0).standard_normal((1024, 1024), np.float32) + 3
want, cache, want_mean, want_var = cbnorm.batchnorm_forward(x, None, None, 1e-5, 0.5, np.zeros(1024), np.ones(1024))
want_dx = cbnorm.batchnorm_backward(x, cache)[0]
layer, plain = (cbnorm.BatchNorm(1024, momentum=0.5, eps=1e-5) for _ in range(2))
random.seed(0)

def interrupt():
    time.sleep(random.uniform(0, 0.02))
    os.kill(os.getpid(), signal.SIGINT)

interrupted = 0
for turn in range(30):
    y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
    forwards = backwards = 0
    sender = threading.Thread(target=interrupt)
    try:
        sender.start()
        while True:
            y[0, 0] = np.nan
            cbnorm.batchnorm_forward(x, out=y)
            dx[0, 0] = np.nan
            cbnorm.batchnorm_backward(x, cache, out=dx)
            layer.forward(x)
            layer.backward(x, layer.cache)  # the calls before may have been interrupted
    except KeyboardInterrupt:
        interrupted += 1
    sender.join()
    # Each call has written all or nothing: NaN stands where the next one had not begun.
    for got, right in ((y, want), (dx, want_dx)):
        assert np.isnan(got).sum() in (0, 1, got.size)
        assert np.all((got == right) | np.isnan(got))
    assert np.array_equal(cbnorm.batchnorm_forward(x)[0], want)
for _ in range(layer.num_batches):
    plain.forward(x)
assert layer.num_batches > 0
assert np.array_equal(layer.moving_mean, plain.moving_mean) and np.array_equal(layer.moving_var, plain.moving_var)
print(interrupted)
"""


@linux
def test_an_interrupt_comes_after_a_call_and_breaks_nothing():
    assert int(run_python(INTERRUPTS).stdout) == 30


COMPANY = {
    "torch": "import torch; assert float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()) == 600 ** 3",
    "sklearn": """
from sklearn.cluster import KMeans
assert KMeans(2, n_init=1).fit(np.arange(2000.0).reshape(-1, 1) // 1000).inertia_ == 0
""",
    "numba": """
import numba
assert numba.njit(parallel=True)(lambda n: sum([i for i in range(n)]))(100) == 4950
""",
    "cbnorm": """
import cbnorm
x = np.arange(400_000.0).reshape(400, 1000)
y = cbnorm.batchnorm_forward(x, eps=0)[0]
assert abs(y.mean()) < 1e-12 and abs(y.std() - 1) < 1e-12
""",
}
OTHERS = [name for name in COMPANY if name != "cbnorm" and importlib.util.find_spec(name)]
PAIRS = [order for name in OTHERS for order in ((name, "cbnorm"), ("cbnorm", name))]
ALL = [pytest.param(order, marks=pytest.mark.slow) for order in itertools.permutations(["cbnorm", *OTHERS])]


@pytest.mark.parametrize("order", PAIRS + ALL if len(OTHERS) > 1 else PAIRS, ids=" ".join)
def test_libraries_are_imported_in_any_order(order):
    code = "import numpy as np\n" + "\n".join(COMPANY[name] for name in order)
    run_python(code + "\n" + "\n".join(COMPANY[name] for name in reversed(order)), timeout=300)


BLOCK = 1 << 24  # numbers
TIMES = 129
assert BLOCK * TIMES > 1 << 31


@pytest.fixture
def repeated():
    """Arrays of far more numbers than there is memory for: one block of it, mapped many times in a row."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fixed = 0x10
    regions = []

    def repeat(block):
        region = mmap.mmap(-1, block.nbytes * TIMES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # not reserved
        regions.append(region)
        memory = np.frombuffer(region, block.dtype)
        file = os.memfd_create("block")
        os.ftruncate(file, block.nbytes)
        for number in range(TIMES):
            place = memory.ctypes.data + number * block.nbytes
            shared = mmap.MAP_SHARED | fixed
            assert libc.mmap(place, block.nbytes, mmap.PROT_READ | mmap.PROT_WRITE, shared, file, 0) == place
        os.close(file)
        memory[: block.size] = block.ravel()
        return memory

    return repeat


HUGE = {
    "columns": ("batchnorm", (1 << 14, 1024)),
    "planes": ("batchnorm", (16, 16, 1 << 16)),
    "one column": ("batchnorm", (BLOCK, 1)),
    "rows": ("layernorm", (1 << 14, 1024)),
    "long rows": ("groupnorm", (1, 4, 1 << 22)),
    "one row": ("groupnorm", (1, 1, BLOCK)),
}


def largest_error(parts, want):
    """Of all parts; in ten times less time than NumPy's testing takes, and in memory of one part."""
    error, largest = np.empty_like(want), 0.0
    for part in parts:
        np.subtract(part, want, out=error)
        largest = max(largest, float(np.max(np.abs(error, out=error))))
    return largest


@linux
@pytest.mark.huge
@pytest.mark.parametrize("case", HUGE)
def test_arrays_of_more_than_2_31_numbers(case, repeated):
    name, shape = HUGE[case]
    block, dout = (np.random.default_rng(seed).standard_normal(shape, np.float32) + 3 for seed in (0, 1))
    whole = (1, 3, TIMES // 3 * BLOCK) if case == "one row" else (TIMES * shape[0], *shape[1:])
    forward, backward = (getattr(cbnorm, f"{name}_{direction}") for direction in ("forward", "backward"))
    extra = (None, None, {"one row": 1, "long rows": 2}[case]) if name == "groupnorm" else ()
    want, cache = forward(block, *extra)[:2]
    want_dx, want_dgamma, *_ = backward(dout, cache)

    x, many_dout = (repeated(each).reshape(whole) for each in (block, dout))
    result = np.empty(whole, np.float32)
    _, cache, *_ = forward(x, *extra, out=result)
    in_blocks = result.reshape(TIMES, *shape)
    assert largest_error(in_blocks, want) < 4e-6
    need = (True, case != "one row", False)
    dx, dgamma, _ = backward(many_dout, cache, need=need, out=result)
    assert dx is result
    assert largest_error(in_blocks, want_dx) < 2e-5
    if dgamma is not None:
        scale = math.sqrt(BLOCK * TIMES)
        np.testing.assert_allclose(dgamma / scale, want_dgamma * (TIMES / scale), rtol=1e-5, atol=1e-3)
    if name == "batchnorm":
        kept = len(shape) > 1 and shape[1]
        moments = cbnorm.moments(x, axis=tuple(axis for axis in range(x.ndim) if axis != 1))
        assert moments.count == BLOCK * TIMES // kept
