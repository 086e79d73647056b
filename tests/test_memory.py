"""Results in memory of the pool are ordinary arrays: for any thread, after a fork, beside hooks of the user's own."""

import ctypes
import os
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy._core.multiarray import get_handler_name
from pooled import MIB, address, array, bytes_kept, forward, is_pooled
from processes import run_python

import cbnorm

pytestmark = pytest.mark.usefixtures("plenty")


def test_results_own_their_data_and_begin_with_a_cache_line():
    y = forward(array(1))
    assert y.flags.owndata
    assert y.flags.writeable
    assert y.flags.c_contiguous
    assert y.base is None
    assert address(y) % 64 == 0
    assert pickle.loads(pickle.dumps(y)).tobytes() == y.tobytes()


@pytest.mark.parametrize("rows", [1, 8, 128, 250, 257, 1000, 10_000])
def test_results_can_be_resized(rows):
    y = forward(array(1))
    want = np.zeros((rows, 1024), np.float32)
    want[: len(y)] = y[:rows]
    y.resize((rows, 1024), refcheck=False)
    assert y.tobytes() == want.tobytes()
    y.resize((300, 1024), refcheck=False)
    assert y[:rows].tobytes() == want[:300].tobytes()
    del y
    assert forward(array(1)).shape == (256, 1024)


def test_a_result_that_shrinks_gives_its_memory_up():
    y = forward(array(16))
    y.resize((16, 1024), refcheck=False)
    assert cbnorm.empty_pool() >= 16 * MIB


def test_results_can_be_freed_by_another_thread():
    results = [forward(array(1)) for _ in range(3)]
    with ThreadPoolExecutor(1) as executor:
        executor.submit(results.clear).result()
    assert bytes_kept() == 3 * MIB


def test_tracemalloc_sees_results_and_not_what_is_kept():
    x = array(4)
    tracemalloc.start()
    try:
        for _ in range(2):
            before = tracemalloc.get_traced_memory()[0]
            y = forward(x)
            during = tracemalloc.get_traced_memory()[0]
            del y
            after = tracemalloc.get_traced_memory()[0]
            assert during - before == pytest.approx(4 * MIB, rel=0.01)
            assert after - before < 0.01 * MIB
    finally:
        tracemalloc.stop()


LATE = """
import atexit, sys, threading
import numpy as np
import cbnorm

x = np.ones((256, 1024), np.float32)
kept = [cbnorm.batchnorm_forward(x)[0] for _ in range(4)]

class Late:
    def __init__(self):
        self.y = cbnorm.batchnorm_forward(x)[0]

    def __del__(self):
        self.y.resize((512, 1024), refcheck=False)

sys.late = Late()
atexit.register(cbnorm.empty_pool)
atexit.register(lambda: kept.pop())
threading.Thread(target=lambda: kept.pop()).start()
"""


def test_results_outlive_the_interpreter():
    assert run_python(LATE).stderr == ""


def test_threads_that_hammer_the_pool_get_memory_of_their_own():
    cbnorm.set_pool_limit(8 * MIB)
    inputs = [array(mib) for mib in (0.2, 0.5, 0.55, 1, 2)]
    want = [forward(x).tobytes() for x in inputs]
    start = threading.Barrier(8, timeout=30)

    def work(seed):
        rng = np.random.default_rng(seed)
        held = []
        start.wait()
        with cbnorm.threads(1):
            for turn in range(150):
                number = rng.integers(len(inputs))
                held.append((number, forward(inputs[number])))
                if len(held) > 3:
                    number, y = held.pop(rng.integers(len(held)))
                    if y.tobytes() != want[number]:
                        return False
                if turn % 50 == 0:
                    cbnorm.empty_pool()
        return True

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(work, range(8)))
    assert bytes_kept() <= 8 * MIB
    assert cbnorm.empty_pool() <= 8 * MIB


FORK = """
import os, threading
import numpy as np
import cbnorm
from cbnorm import _memory

cbnorm.set_num_threads(1)
x = np.random.default_rng(0).standard_normal((40, 1024), np.float32)
want = cbnorm.batchnorm_forward(x)[0].tobytes()
stop = threading.Event()

def work():
    while not stop.is_set():
        cbnorm.batchnorm_forward(x)

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for turn in range(30):
    child = os.fork()
    if child == 0:
        right = _memory.bytes_kept() == 0
        for _ in range(5):
            right &= cbnorm.batchnorm_forward(x)[0].tobytes() == want
        right &= _memory.bytes_kept() > 0 and cbnorm.empty_pool() > 0
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_children_forked_while_other_threads_use_the_pool_start_with_an_empty_one():
    run_python(FORK)


class Handler(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 127), ("rest", ctypes.c_char * 41))


def numpy_function(number):
    """One of NumPy's C functions, that returns an object."""
    table = ctypes.cast(pointer(np._core.multiarray._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return table[number]


def pointer(capsule, name):
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return get_pointer(capsule, name)


THEIRS, WORD = Handler(), ctypes.c_char_p(b"mem_handler")


def test_where_the_user_has_hooks_of_their_own_results_come_from_those():
    get_handler = ctypes.PYFUNCTYPE(ctypes.py_object)(numpy_function(305))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(numpy_function(304))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    numpys = get_handler()
    ctypes.memmove(ctypes.addressof(THEIRS), pointer(numpys, WORD), ctypes.sizeof(THEIRS))
    THEIRS.name = b"theirs"
    theirs = new_capsule(ctypes.addressof(THEIRS), WORD, None)
    x = array(1)
    set_handler(theirs)
    try:
        y = forward(x)
    finally:
        before = set_handler(numpys)
    assert before is theirs
    assert get_handler_name(y) == "theirs"
    assert is_pooled(forward(x))
    assert get_handler_name(np.empty(MIB)) == "default_allocator"
