"""The pool that large results come from: what is kept, up to which limit, and that results are ordinary arrays."""

import ctypes
import os
import pickle
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy._core.multiarray import get_handler_name

import cbnorm
from cbnorm import _cgroup, _memory, _pool

MIB = 1 << 20


def meminfo(folder, available):
    """A /proc/meminfo that tells of so many bytes."""
    path = folder / "meminfo"
    path.write_text(f"MemTotal:  8000000 kB\nMemFree:         0 kB\nMemAvailable:   {available >> 10} kB\n")
    return path


@pytest.fixture(autouse=True)
def plenty(tmp_path):
    """An empty pool of 64 MiB on a machine whose memory is not short, whatever else runs."""
    before = cbnorm.get_pool_limit()
    _memory.watch(meminfo(tmp_path, 4096 * MIB), [], 8192 * MIB)
    cbnorm.set_pool_limit(64 * MIB)
    cbnorm.empty_pool()
    yield
    _pool._start(_pool._machine_memory(), _cgroup.memory_limits())
    cbnorm.set_pool_limit(before)
    cbnorm.empty_pool()


def array(mib, dtype=np.float32):
    """An input of so many MiB."""
    rows = round(mib * MIB) // (1024 * np.dtype(dtype).itemsize)
    return np.random.default_rng(0).standard_normal((rows, 1024)).astype(dtype)


def forward(x, **options):
    """A result of a call that takes no other large memory."""
    return cbnorm.layernorm_forward(x, **options)[0]


def address(result):
    return result.__array_interface__["data"][0]


def is_pooled(result):
    return get_handler_name(result) == "cbnorm"


def test_a_result_takes_the_place_of_the_one_freed_last():
    x = array(1)
    results = [forward(x) for _ in range(3)]
    places = [address(result) for result in results]
    assert len(set(places)) == 3
    want = results[0].tobytes()
    while results:
        del results[0]
    y = forward(x)
    assert address(y) == places[-1]
    assert y.tobytes() == want


def test_gradients_come_from_the_pool_and_return_to_it():
    x = array(1)
    y, cache, *_ = cbnorm.batchnorm_forward(x)
    place = address(y)
    del y
    assert address(cbnorm.batchnorm_backward(x, cache)[0]) == place
    y, cache = cbnorm.layernorm_forward(x)
    assert address(y) == place
    del y
    assert address(cbnorm.layernorm_backward(x, cache)[0]) == place


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("axis", [0, 1])
def test_any_large_result_is_pooled(dtype, axis):
    x = (np.arange(512 * 1024) % 1000).reshape(1024, 512).astype(dtype)
    for given in (x, x.T):
        y, cache, *_ = cbnorm.batchnorm_forward(given, axis=axis)
        dx = cbnorm.batchnorm_backward(y, cache)[0]
        assert is_pooled(y)
        assert is_pooled(dx)
        np.testing.assert_allclose(y.mean(1 - axis, dtype=float), 0, atol=1e-3)


def test_statistics_and_gradients_of_many_channels_are_pooled():
    x = np.ones((2, 100_000))
    y, cache, *_ = cbnorm.batchnorm_forward(x)
    _, dgamma, dbeta = cbnorm.batchnorm_backward(y, cache)
    assert all(map(is_pooled, (cache.mean.base, dgamma, dbeta)))
    y, cache = cbnorm.layernorm_forward(x)
    _, dgamma, dbeta = cbnorm.layernorm_backward(y, cache)
    assert all(map(is_pooled, (dgamma, dbeta)))


def test_the_workspace_of_a_call_is_kept_where_it_is_large():
    x = np.ones((2, 100_000))
    out = np.empty_like(x)
    cbnorm.batchnorm_forward(x, out=out)
    kept = _memory.bytes_kept()
    assert kept > 0
    for _ in range(3):
        cbnorm.batchnorm_forward(x, out=out)
    assert _memory.bytes_kept() == kept


def test_small_results_are_not_pooled():
    y = forward(np.ones((64, 128), np.float32))
    assert not is_pooled(y)
    del y
    assert _memory.bytes_kept() == 0


def test_nearly_equal_sizes_share_a_block_and_others_do_not():
    y = forward(array(4.00))
    place = address(y)
    del y
    y = forward(array(3.95))
    assert address(y) == place
    del y
    for mib in (0.5, 3, 5, 8):
        y = forward(array(mib))
        assert address(y) != place
    assert address(forward(array(4))) == place


@pytest.mark.parametrize("mib", [0.13, 0.5, 1, 1.1, 3.3, 8, 9.9])
def test_a_kept_block_is_an_eighth_larger_than_its_result_at_most(mib):
    x = array(mib)
    y = forward(x)
    del y
    assert x.nbytes <= _memory.bytes_kept() <= x.nbytes * 9 / 8


def test_the_oldest_blocks_go_where_the_limit_would_be_passed():
    cbnorm.set_pool_limit(3 * MIB)
    x = array(1)
    results = [forward(x) for _ in range(5)]
    places = [address(result) for result in results]
    while results:
        del results[0]
        assert _memory.bytes_kept() <= 3 * MIB
    results = [forward(x) for _ in range(3)]
    assert [address(result) for result in results] == places[:1:-1]
    assert _memory.bytes_kept() == 0


def test_a_result_above_the_limit_is_ordinary_and_leaves_what_is_kept():
    cbnorm.set_pool_limit(2 * MIB)
    y = forward(array(1))
    del y
    y = forward(array(3))
    assert not is_pooled(y)
    del y
    assert _memory.bytes_kept() == MIB


def test_many_small_blocks_do_not_pile_up():
    x = array(0.13)
    results = [forward(x) for _ in range(100)]
    del results
    kept = _memory.bytes_kept()
    assert 0 < kept <= 100 * x.nbytes * 9 / 8
    assert cbnorm.empty_pool() == kept


def test_a_lower_limit_gives_back_at_once():
    results = [forward(array(1)) for _ in range(4)]
    del results
    cbnorm.set_pool_limit(2 * MIB)
    assert _memory.bytes_kept() == 2 * MIB


def test_emptying_returns_how_much_was_given_back_and_spares_arrays_in_use():
    x = array(1)
    y, other = forward(x), forward(x)
    want = y.tobytes()
    del other
    assert cbnorm.empty_pool() == MIB
    assert cbnorm.empty_pool() == 0
    assert y.tobytes() == want
    del y
    assert cbnorm.empty_pool() == MIB


def test_a_limit_of_0_turns_the_pool_off():
    before = forward(array(1))
    cbnorm.set_pool_limit(0)
    y = forward(array(1))
    assert not is_pooled(y)
    del y, before
    assert _memory.bytes_kept() == 0


@pytest.mark.parametrize("number", [0, 1, 10**9, np.int64(3), True, sys.maxsize])
def test_set_and_get_the_limit(number):
    cbnorm.set_pool_limit(number)
    assert cbnorm.get_pool_limit() == number
    assert type(cbnorm.get_pool_limit()) is int


@pytest.mark.parametrize(
    ("number", "error"),
    [
        *((number, ValueError) for number in (-1, sys.maxsize + 1, 10**30)),
        *((number, TypeError) for number in (None, "2", 2.0, float("nan"), [2])),
    ],
)
def test_bad_limits(number, error):
    with pytest.raises(error, match=r"^nbytes: expected .*, got "):
        cbnorm.set_pool_limit(number)
    assert cbnorm.get_pool_limit() == 64 * MIB


def test_the_limit_of_the_environment(run_python):
    code = "import cbnorm; print(cbnorm.get_pool_limit())"
    assert run_python(code, CBNORM_POOL_BYTES=" 12345 ").stdout == "12345\n"
    assert run_python(code, CBNORM_POOL_BYTES="0").stdout == "0\n"
    assert 0 < int(run_python(code, CBNORM_POOL_BYTES="").stdout) <= 256 * MIB
    failed = run_python(code, status=1, CBNORM_POOL_BYTES="8M")
    assert f"ValueError: CBNORM_POOL_BYTES: expected 0 to {sys.maxsize}, got '8M'" in failed.stderr


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "9" * 30])
def test_bad_limits_of_the_environment(text):
    with pytest.raises(ValueError, match=f"^CBNORM_POOL_BYTES: expected 0 to {sys.maxsize}, got '{text}'$"):
        _pool._default_limit(0, {"CBNORM_POOL_BYTES": text})


@pytest.mark.parametrize(("total", "limit"), [(64 << 30, 256 * MIB), (4096 * MIB, 256 * MIB), (512 * MIB, 32 * MIB)])
def test_by_default_a_sixteenth_of_the_memory_and_256_mib_at_most(total, limit):
    assert _pool._default_limit(total, {}) == limit


def test_show_config_tells_what_is_kept(capsys):
    y = forward(array(1))
    del y
    assert cbnorm.show_config("dicts")["pool"] == f"{MIB} / {64 * MIB} bytes"


# Results are ordinary arrays.


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
    assert _memory.bytes_kept() == 3 * MIB


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


def test_results_outlive_the_interpreter(run_python):
    assert run_python(LATE).stderr == ""


# Several threads, and a fork.


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
    assert _memory.bytes_kept() <= 8 * MIB
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
def test_children_forked_while_other_threads_use_the_pool_start_with_an_empty_one(run_python):
    run_python(FORK)


# Where memory is short.

FAULTS = """
import resource
import numpy as np
import cbnorm

x = np.ones((10 * 1024, 1024), np.float32)  # 40 MiB: malloc would take every page anew
gamma = np.ones(1024, np.float32)

def call():
    temporary = x * 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma)
    cbnorm.batchnorm_backward(x, cache)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

call(), call()
print(max(call() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count page faults in their own way")
def test_results_between_temporaries_of_their_size_take_no_page_anew(run_python):
    # 20 faults a result even with huge pages. Two results of 40 MiB go around.
    assert int(run_python(FAULTS, CBNORM_POOL_BYTES=str(128 * MIB)).stdout) < 20


def frees_into_the_pool():
    """Whether a result that is freed, after the next look at the memory, is kept."""
    time.sleep(0.13)
    cbnorm.empty_pool()
    y = forward(array(1))
    del y
    return _memory.bytes_kept() > 0


linux = pytest.mark.skipif(sys.platform != "linux", reason="this system does not tell what memory is left")


@linux
@pytest.mark.parametrize(
    ("total", "available", "kept"),
    [
        (8192, 4096, True),
        (8192, 520, True),
        (8192, 500, False),
        (1024, 70, True),
        (1024, 60, False),
        (8, 3, True),
        (8, 1, False),  # what would be kept is 1 MiB
        (1024, 0, False),
    ],
)
def test_nothing_is_kept_where_the_machine_is_short_of_memory(total, available, kept, tmp_path):
    _memory.watch(meminfo(tmp_path, available * MIB), [], total * MIB)
    assert frees_into_the_pool() == kept


@linux
@pytest.mark.parametrize("limit", [1 << 40, sys.maxsize])
def test_a_limit_beyond_the_memory_limits_nothing(limit, tmp_path):
    _memory.watch(meminfo(tmp_path, 4096 * MIB), [], 8192 * MIB)
    cbnorm.set_pool_limit(limit)
    assert frees_into_the_pool()


@linux
def test_groups_that_cannot_be_watched_leave_the_others_watched(tmp_path):
    limits = control_groups(tmp_path, VERSION_2, {"job/memory.max": MIB, "job/memory.current": MIB})
    _memory.watch(meminfo(tmp_path, 4096 * MIB), limits + [(MIB, "x" * 2000, "x")] + limits * 9, 8192 * MIB)
    assert not frees_into_the_pool()


@linux
def test_what_is_kept_goes_once_memory_is_short_and_comes_back_with_it(tmp_path):
    results = [forward(array(1)) for _ in range(5)]
    del results[1:]
    assert _memory.bytes_kept() == 4 * MIB
    meminfo(tmp_path, 10 * MIB)
    time.sleep(0.13)
    del results
    assert _memory.bytes_kept() == 0
    assert not frees_into_the_pool()
    meminfo(tmp_path, 4096 * MIB)
    assert frees_into_the_pool()


VERSION_1, VERSION_2 = "7:cpu:/\n4:memory:/job/step\n", "0::/job/step\n"


def control_groups(folder, membership, files):
    """The limits that these groups set."""
    for name, text in files.items():
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / name).write_text(f"{text}\n")
    (folder / "self").write_text(membership)
    return _cgroup.memory_limits(folder / "root", folder / "self")


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        (VERSION_2, {}, []),
        (VERSION_2, {"job/step/memory.max": "max"}, []),
        (VERSION_2, {"job/step/memory.max": "1000", "job/memory.max": "max", "memory.max": "3000"}, [1000, 3000]),
        (VERSION_2, {"other/memory.max": "1000", "../memory.max": "1000"}, []),
        (VERSION_1, {"memory/job/memory.limit_in_bytes": "2000", "memory.limit_in_bytes": "1"}, [2000]),
        (VERSION_1, {"memory/memory.limit_in_bytes": "2000", "job/step/memory.max": "1000"}, [2000]),
        ("no such line\n", {"memory.max": "1000"}, []),
    ],
)
def test_limits_of_control_groups(membership, files, limits, tmp_path):
    assert [limit for limit, *_ in control_groups(tmp_path, membership, files)] == limits


@linux
@pytest.mark.parametrize(("usage", "cached", "kept"), [(100, 0, True), (970, 0, False), (970, 500, True)])
@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_kept_where_a_control_group_is_short_of_memory(version, usage, cached, kept, tmp_path):
    top = "memory/job/memory." if version == 1 else "job/memory."
    names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    stat = f"anon 12\n{'total_' * (version == 1)}inactive_file {cached * MIB}\nslab 5"
    files = {top + names[0]: 1024 * MIB, top + names[1]: usage * MIB, top + "stat": stat}
    limits = control_groups(tmp_path, VERSION_1 if version == 1 else VERSION_2, files)
    _memory.watch(meminfo(tmp_path, 4096 * MIB), limits, 1024 * MIB)
    assert frees_into_the_pool() == kept


# Memory of the user's own kind.


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
