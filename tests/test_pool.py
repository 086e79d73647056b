"""The pool that large results come from: what is kept, and up to which limit."""

import sys

import numpy as np
import pytest
from pooled import MIB, address, array, bytes_kept, forward, is_pooled
from processes import run_python

import cbnorm
from cbnorm import _pool

pytestmark = pytest.mark.usefixtures("plenty")


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
    kept = bytes_kept()
    assert kept > 0
    for _ in range(3):
        cbnorm.batchnorm_forward(x, out=out)
    assert bytes_kept() == kept


def test_small_results_are_not_pooled():
    y = forward(np.ones((64, 128), np.float32))
    assert not is_pooled(y)
    del y
    assert bytes_kept() == 0


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
    assert x.nbytes <= bytes_kept() <= x.nbytes * 9 / 8


def test_the_oldest_blocks_go_where_the_limit_would_be_passed():
    cbnorm.set_pool_limit(3 * MIB)
    x = array(1)
    results = [forward(x) for _ in range(5)]
    places = [address(result) for result in results]
    while results:
        del results[0]
        assert bytes_kept() <= 3 * MIB
    results = [forward(x) for _ in range(3)]
    assert [address(result) for result in results] == places[:1:-1]
    assert bytes_kept() == 0


def test_a_result_above_the_limit_is_ordinary_and_leaves_what_is_kept():
    cbnorm.set_pool_limit(2 * MIB)
    y = forward(array(1))
    del y
    y = forward(array(3))
    assert not is_pooled(y)
    del y
    assert bytes_kept() == MIB


def test_many_small_blocks_do_not_pile_up():
    x = array(0.13)
    results = [forward(x) for _ in range(100)]
    del results
    kept = bytes_kept()
    assert 0 < kept <= 100 * x.nbytes * 9 / 8
    assert cbnorm.empty_pool() == kept


def test_a_lower_limit_gives_back_at_once():
    results = [forward(array(1)) for _ in range(4)]
    del results
    cbnorm.set_pool_limit(2 * MIB)
    assert bytes_kept() == 2 * MIB


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
    assert bytes_kept() == 0


@pytest.mark.parametrize("number", [0, 1, 10**9, np.int64(3), sys.maxsize])
def test_set_and_get_the_limit(number):
    cbnorm.set_pool_limit(number)
    assert cbnorm.get_pool_limit() == number
    assert type(cbnorm.get_pool_limit()) is int


@pytest.mark.parametrize(
    ("number", "error"),
    [
        *((number, ValueError) for number in (-1, sys.maxsize + 1, 10**30)),
        *((number, TypeError) for number in (None, "2", 2.0, float("nan"), [2], True)),
    ],
)
def test_bad_limits(number, error):
    with pytest.raises(error, match=r"^nbytes: expected .*, got "):
        cbnorm.set_pool_limit(number)
    assert cbnorm.get_pool_limit() == 64 * MIB


def test_the_limit_of_the_environment():
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
