"""What the caches of forward calls hold: no more than x takes where that is much, and every number all the same."""

import numpy as np
import pytest

import cbnorm

MANY = 10_000  # channels or rows


def held(value, seen=None):
    """Bytes of all arrays that a cache refers to, x and gamma apart."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else max(value.nbytes, held(value.base, seen))
    parts = value if isinstance(value, tuple | list) else [getattr(value, name) for name in _slots(value)]
    return sum(held(part, seen) for part in parts)


def _slots(value):
    return [name for name in getattr(type(value), "__slots__", ()) if name not in ("x", "gamma")]


def batch_norm(x, gamma, mode="train"):
    moving = {"moving_mean": np.linspace(0, 1, x.shape[1]), "moving_var": np.linspace(1, 2, x.shape[1])}
    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma, **moving, mode=mode)
    return y, cache


# name: forward, backward, and the shape for so many channels or rows of so many numbers
CASES = {
    "batch": (batch_norm, cbnorm.batchnorm_backward, lambda many, few: (few, many)),
    "batch, planes": (batch_norm, cbnorm.batchnorm_backward, lambda many, few: (1, many, few)),
    "test mode": (lambda x, gamma: batch_norm(x, gamma, "test"), cbnorm.batchnorm_backward, lambda m, f: (f, m)),
    "layer": (cbnorm.layernorm_forward, cbnorm.layernorm_backward, lambda many, few: (many, few)),
    "RMS": (cbnorm.rmsnorm_forward, cbnorm.rmsnorm_backward, lambda many, few: (many, few)),
    "group": (
        lambda x, gamma: cbnorm.groupnorm_forward(x, gamma, None, 2),
        cbnorm.groupnorm_backward,
        lambda many, few: (many // 2, 4, few // 2),
    ),
    "instance": (cbnorm.instancenorm_forward, cbnorm.instancenorm_backward, lambda many, few: (many // 2, 2, few)),
}


def make(name, many, few, dtype=np.float32):
    forward, backward, shape = CASES[name]
    random = np.random.default_rng(0)
    x = random.normal(1e3, 1, shape(many, few)).astype(dtype)
    dout = random.standard_normal(x.shape).astype(dtype)
    size = x.shape[-1] if name in ("layer", "RMS") else x.shape[1]
    gamma = random.standard_normal(size).astype(dtype)
    return forward, backward, x, dout, gamma


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_a_cache_holds_no_more_than_x_where_that_is_much(name, dtype):
    forward, _, x, _, gamma = make(name, MANY, 2, dtype)
    cache = forward(x, gamma)[1]
    limit = 16 * MANY if name == "test mode" else 0  # what cannot be computed again: two numbers a channel
    assert held(cache) <= limit
    cache.mean, cache.inv_std, cache.xhat  # noqa: B018 - and these leave nothing behind
    assert held(cache) <= limit


def everything(forward, backward, x, dout, gamma):
    y, cache = forward(x, gamma)
    gradients = backward(dout, cache)
    dx_alone = backward(dout, cache, need=(True, *[False] * (len(gradients) - 1)))[0]
    last_alone = backward(dout, cache, need=(*[False] * (len(gradients) - 1), True))[-1]
    return y, cache.mean, cache.inv_std, cache.xhat, *gradients, dx_alone, last_alone


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_computed_again_has_the_same_bits(name, dtype, num_threads, monkeypatch):
    case = make(name, MANY, 2, dtype)
    got = everything(*case)
    for module in (cbnorm.batchnorm, cbnorm._rows):
        monkeypatch.setattr(module, "MANY", 2 * MANY)
    assert held(case[0](case[2], case[4])[1]) >= 32 * MANY  # all is kept
    for one, other in zip(got, everything(*case), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ["layer", "RMS", "instance", "batch"])
def test_channels_and_rows_are_as_in_a_small_array(name):
    # Few enough to be kept; a row has its bits in any company.
    forward, backward, x, dout, gamma = make(name, MANY, 2)
    some = (slice(None), slice(2000)) if name == "batch" else slice(1000)
    few = forward(x[some], gamma[:2000])[1]
    cache = forward(x, gamma)[1]
    part = slice(2000) if name == "batch" else some
    assert held(few) > 0
    assert held(cache) == 0
    assert cache.mean[part].tobytes() == few.mean.tobytes()
    assert cache.inv_std[part].tobytes() == few.inv_std.tobytes()
    assert backward(dout, cache)[0][some].tobytes() == backward(dout[some], few)[0].tobytes()


def test_a_test_mode_cache_whose_x_was_overwritten_still_gives_dx_and_the_statistics():
    x, dout = np.random.default_rng(0).standard_normal((2, 2, MANY))
    mean, var = np.linspace(0, 1, MANY), np.linspace(1, 2, MANY)
    _, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        x, moving_mean=mean, moving_var=var, mode="test", eps=0.0, out=x
    )
    new_mean[:] = new_var[:] = np.nan  # the caller's own
    np.testing.assert_array_equal(cache.mean, mean)
    np.testing.assert_allclose(cache.inv_std, var**-0.5)
    np.testing.assert_allclose(cbnorm.batchnorm_backward(dout, cache, need=(True, False, True))[0], dout * var**-0.5)


def test_an_empty_batch_of_many_channels_has_statistics_of_0():
    y, cache, *_ = cbnorm.batchnorm_forward(np.empty((0, MANY)))
    assert held(cache) == 0
    assert not cache.mean.any()
    assert not cache.inv_std.any()
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(y, cache)
    assert dx.shape == (0, MANY)
    assert not dgamma.any()
    assert not dbeta.any()
    assert cbnorm.layernorm_forward(np.empty((MANY, 0)))[1].mean.shape == (MANY,)


@pytest.mark.parametrize("name", CASES)
def test_numbers_that_take_less_than_x_are_kept(name):
    forward, _, x, _, gamma = make(name, 3000, 16)
    cache = forward(x, gamma)[1]
    assert 0 < held(cache) <= x.nbytes
    assert np.shares_memory(cache.mean, cache.mean)
