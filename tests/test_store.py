"""Where results go: to an array of the caller's, over their input, past the caches. No way changes a bit."""

import numpy as np
import pytest
from cases import DTYPES, LARGE, SMALL_AND_LARGE, assert_same_bits, make_case, results

import cbnorm
from cbnorm import _kernels
from cbnorm._cpu import last_level_cache


@pytest.fixture
def cache_size(kernels):
    """Let the test set the size of the cache, beyond which results are written past it."""
    yield
    _kernels.active.set_cache_bytes(last_level_cache())


@pytest.fixture
def two_busy_threads(kernels):
    """Share the work of every call, however little that is."""
    before = _kernels.active.set_grain(1)
    with cbnorm.threads(2):
        yield
    _kernels.active.set_grain(before)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_in_an_array_of_the_callers_have_the_same_bits(kernels, dtype, name):
    norm, shape = LARGE[name]
    x, _, parameters = make_case(norm, shape, dtype)
    y, *_ = norm.forward(x, *parameters)
    outs = [np.empty_like(x)]
    if norm.given:  # y may take the place of x where backward does not need it
        outs.append(x)
    for out in outs:
        assert norm.forward(x, *parameters, out=out)[0] is out
        assert_same_bits(out, y)


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_of_the_cache_changes_no_bit(cache_size, dtype, name):
    norm, shape = SMALL_AND_LARGE[name]
    x, dout, parameters = make_case(norm, shape, dtype)
    found = []
    for cache_bytes in (0, 2**62):  # everything is written past it; everything fits
        _kernels.active.set_cache_bytes(cache_bytes)
        for given in (x, np.asfortranarray(x)):
            _, cache, *_ = norm.forward(given, *parameters)
            in_place = dout.copy()
            norm.backward(in_place, cache, out=in_place)
            found.append([*results(norm, given, dout, parameters), in_place])
    for other in found[1:]:
        assert_same_bits(other, found[0])


def in_guarded_memory(values, start):
    """A copy that begins `start` numbers after a cache line, and views of the memory before and after it."""
    memory = np.full(values.size + 64, 7, values.dtype)
    first = -memory.ctypes.data % 64 // values.itemsize + start
    before, copy, after = np.split(memory, [first, first + values.size])
    copy[:] = values.ravel()
    return copy.reshape(values.shape), (before, after)


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 31, 32, 33, 255, 1000, 2500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_past_the_cache_go_where_they_belong(cache_size, two_busy_threads, dtype, channels):
    random = np.random.default_rng(0)
    gamma, beta = random.standard_normal((2, channels)).astype(dtype)
    for rows, start in [(2, 1), (3, 3), (15, 5), (33, 0), (200, 15)]:
        x, dout = random.standard_normal((2, rows, channels)).astype(dtype)
        found = []
        for cache_bytes in (2**62, 0):
            _kernels.active.set_cache_bytes(cache_bytes)
            guarded = [in_guarded_memory(values, start) for values in (x, dout, dout)]
            (y, _), (in_place, _), (dx, _) = guarded
            cache = cbnorm.batchnorm_forward(x, gamma, beta, out=y)[1]
            cbnorm.batchnorm_backward(in_place, cache, out=in_place)
            cbnorm.batchnorm_backward(dout, cache, out=dx)
            assert all((guard == 7).all() for _, guards in guarded for guard in guards)
            found.append([y, in_place, dx])
        direct, streamed = found
        for one, other in zip(streamed, direct, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(direct[1], direct[2])
