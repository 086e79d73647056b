"""No memory: whichever allocation of a call fails raises a MemoryError, nothing is lost and the next call is right."""

import shutil
import subprocess
from pathlib import Path

import pytest
from processes import linux, run_python

HERE = Path(__file__).parent

TRY = """
import ctypes
import gc
import numpy as np
from numpy._core.multiarray import get_handler_name
import cbnorm
from public_calls import bits_of, make_input, public_calls

FOREVER = 1 << 60
failing = ctypes.CDLL(None)
failing.fail.argtypes = [ctypes.c_size_t, ctypes.c_long, ctypes.c_long]
failing.stop.restype = failing.blocks.restype = ctypes.c_long
cbnorm.set_pool_limit({pool})
x, dout = (np.asarray(make_input({shape}, {dtype!r}, seed), order={order!r}) for seed in (0, 1))

def blocks():
    gc.collect()
    cbnorm.empty_pool()
    return failing.blocks()

def attempt(call, first, last):
    "How many allocations it asked for; whether it was right, None where it raised."
    results = None
    failing.fail({least}, first, last)
    try:
        results = call()
    except MemoryError:
        pass
    except RuntimeError as error:
        assert str(error) == "can't allocate lock"      # Python's own
    finally:
        asked = failing.stop()
    return asked, None if results is None else bits_of(results) == want

calls = public_calls(x, dout)
gc.freeze()     # collections take long enough without what is there already
failures = 0
for name in {names}:
    want = bits_of(calls[name]())
    for forever in {forever}:
        for number in range(1000):
            before = blocks()
            asked, right = attempt(calls[name], number, FOREVER if forever else number)
            failed = asked > number
            assert right or (failed and right is None), (name, number)
            assert bits_of(calls[name]()) == want, (name, number)
            assert get_handler_name() == "default_allocator", (name, number)
            assert blocks() == before or name in {leaking}, (name, number)
            if not failed:
                break
            failures += 1
        assert not failed
print(failures)
"""
NORMS = ["batchnorm", "layernorm", "groupnorm", "instancenorm", "rmsnorm"]
FUNCTIONS = [f"{norm}{end}" for norm in NORMS for end in ("_forward", "_backward", " cache")]
LAYERS = ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"]


@pytest.fixture(scope="session")
def failing_malloc(tmp_path_factory):
    """The environment of a process whose allocations can be made to fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    command = [compiler, "-O1", "-fno-builtin", "-shared", "-fPIC", str(HERE / "failing_malloc.c"), "-o", str(library)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no glibc")
    return {
        "LD_PRELOAD": str(library),
        "PYTHONMALLOC": "malloc",  # Python's arenas would come and go among what is counted
        "PYTHONPATH": str(HERE),
        "CBNORM_NUM_THREADS": "1",  # OpenMP ends the process where it finds no memory for its threads
    }


@linux
@pytest.mark.not_sanitized(reason="one malloc at a time can be replaced")
@pytest.mark.parametrize("pool", [0, 1 << 28])
@pytest.mark.parametrize(("dtype", "order"), [("f4", "C"), ("f2", "F")])
def test_whichever_large_allocation_fails(failing_malloc, dtype, order, pool):
    code = TRY.format(
        pool=pool, shape=(24, 40, 48), dtype=dtype, order=order, least=16384, names="calls", leaking=(), forever=(0, 1)
    )
    assert int(run_python(code, **failing_malloc).stdout) > 50


# NumPy's functions crash where small allocations fail: only what calls none of them is tried.
@linux
@pytest.mark.not_sanitized(reason="one malloc at a time can be replaced")
@pytest.mark.parametrize("shape", [(4, 6, 8), (24, 40, 48)])  # the second one's results come from the pool
@pytest.mark.parametrize(("names", "forever"), [(FUNCTIONS, (0, 1)), (LAYERS, (0,))])
def test_whichever_allocation_fails(failing_malloc, names, forever, shape):
    # Python 3.11 loses a reference to `self` where there is no memory for a closure's cell, and where there is none for
    # good it may never get out of a `with`. It also loses what is in the tuple of `f(*arrays, more)`, which is why no
    # call of a forward or backward function is made so.
    options = {"dtype": "f4", "order": "C", "leaking": LAYERS, "forever": forever}
    code = TRY.format(pool=1 << 28, shape=shape, least=1, names=names, **options)
    assert int(run_python(code, **failing_malloc).stdout) > 300


@linux
@pytest.mark.not_sanitized(reason="one malloc at a time can be replaced")
def test_no_memory_to_take_back_the_hooks_of_the_pool(failing_malloc):
    code = TRY.format(
        pool=1 << 28,
        shape=(24, 40, 48),
        dtype="f4",
        order="C",
        least=1,
        names=["layernorm_forward"],
        leaking=(),
        forever=(0, 1),
    )
    assert int(run_python(code, **failing_malloc).stdout) > 20
