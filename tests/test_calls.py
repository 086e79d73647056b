"""What calls return and keep: caches hold no more than x takes where that is much, and every number all the same."""

import pickle

import numpy as np
import pytest
from arguments import NAN, SHAPE, make_arguments, make_dout, mapped
from cases import INSTANCE, MODES, assert_same_bits, batch, group, layer, make_case, rms

import cbnorm

MANY = 10_000  # channels or rows


def held(value, seen=None):
    """Bytes of all arrays that a cache refers to, x apart, and its copy of gamma, which a step of training is owed."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else max(value.nbytes, held(value.base, seen))
    parts = value if isinstance(value, tuple | list) else [getattr(value, name) for name in _slots(value)]
    return sum(held(part, seen) for part in parts)


def _slots(value):
    return [name for name in getattr(type(value), "__slots__", ()) if name not in ("_x", "_gamma")]


# The normalization, and the shape for so many channels or rows of so many numbers.
CASES = {
    "batch": (batch(), lambda many, few: (few, many)),
    "batch, planes": (batch(), lambda many, few: (1, many, few)),
    "test mode": (batch(mode="test"), lambda many, few: (few, many)),
    "layer": (layer(), lambda many, few: (many, few)),
    "RMS": (rms(), lambda many, few: (many, few)),
    "group": (group(2), lambda many, few: (many // 2, 4, few // 2)),
    "instance": (INSTANCE, lambda many, few: (many // 2, 2, few)),
}


def make(name, many, few, dtype=np.float32):
    norm, make_shape = CASES[name]
    return norm, *make_case(norm, make_shape(many, few), dtype, offset=1e3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_a_cache_holds_no_more_than_x_where_that_is_much(name, dtype):
    norm, x, _, parameters = make(name, MANY, 2, dtype)
    cache = norm.forward(x, *parameters)[1]
    limit = 16 * MANY if norm.given else 0  # what cannot be computed again: two numbers a channel
    assert held(cache) <= limit
    cache.mean, cache.inv_std, cache.xhat  # noqa: B018 - and these leave nothing behind
    assert held(cache) <= limit


def everything(norm, x, dout, parameters):
    y, cache, *_ = norm.forward(x, *parameters)
    gradients = norm.backward(dout, cache)
    dx_alone = norm.backward(dout, cache, need=(True, *[False] * (len(gradients) - 1)))[0]
    last_alone = norm.backward(dout, cache, need=(*[False] * (len(gradients) - 1), True))[-1]
    return [y, cache.mean, cache.inv_std, cache.xhat, *gradients, dx_alone, last_alone]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_computed_again_has_the_same_bits(name, dtype, num_threads, monkeypatch):
    norm, x, dout, parameters = make(name, MANY, 2, dtype)
    again = everything(norm, x, dout, parameters)
    monkeypatch.setattr("cbnorm._calls.MANY", 2 * MANY)
    assert held(norm.forward(x, *parameters)[1]) >= 32 * MANY  # all is kept
    assert_same_bits(again, everything(norm, x, dout, parameters))


@pytest.mark.parametrize("name", ["layer", "RMS", "instance", "batch"])
def test_channels_and_rows_are_as_in_a_small_array(name):
    # Few enough to be kept; a row has its bits in any company.
    norm, x, dout, parameters = make(name, MANY, 2)
    some = (slice(None), slice(2000)) if name == "batch" else slice(1000)
    few = norm.forward(x[some], *(values[:2000] for values in parameters))[1]
    cache = norm.forward(x, *parameters)[1]
    part = slice(2000) if name == "batch" else some
    assert held(few) > 0
    assert held(cache) == 0
    assert_same_bits(cache.mean[part], few.mean)
    assert_same_bits(cache.inv_std[part], few.inv_std)
    assert_same_bits(norm.backward(dout, cache)[0][some], norm.backward(dout[some], few)[0])


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
    norm, x, _, parameters = make(name, 3000, 16)
    cache = norm.forward(x, *parameters)[1]
    assert 0 < held(cache) <= x.nbytes
    assert np.shares_memory(cache.mean, cache.mean)


# What a call returns.


@pytest.mark.parametrize("momentum", [0, 0.75, 1])
@pytest.mark.parametrize("mode", MODES)
def test_moving_statistics_are_new_arrays(mode, momentum):
    arguments = {**make_arguments(), "momentum": momentum}
    _, _, *moving = cbnorm.batchnorm_forward(**arguments, mode=mode)
    for statistic, name in zip(moving, ("moving_mean", "moving_var"), strict=True):
        assert not np.shares_memory(statistic, arguments[name])
        statistic[:] = NAN
        assert np.isfinite(arguments[name]).all()


def test_the_cache_refers_to_x_and_has_a_copy_of_gamma():
    arguments = make_arguments()
    _, cache, _, _ = cbnorm.batchnorm_forward(**arguments)
    assert cache.x is arguments["x"]
    assert_same_bits(cache.gamma, arguments["gamma"])
    assert not np.shares_memory(cache.gamma, arguments["gamma"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["array", "memmap", "view", "Fortran input"])
def test_out_is_filled_and_returned(form, mode, dtype, tmp_path):
    arguments, dout = make_arguments(), make_dout()
    arguments["x"] = arguments["x"].astype(dtype, order="F" if form == "Fortran input" else "C")
    y, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode)
    dx, _, _ = cbnorm.batchnorm_backward(dout, cache)
    result = np.full(SHAPE, NAN, y.dtype)
    if form == "memmap":
        result = mapped(result, tmp_path)
    elif form == "view":
        result = np.full((6, 3), NAN, y.dtype)[1:5]
    got, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode, out=result)
    assert got is result
    assert_same_bits(result, y)
    got, _, _ = cbnorm.batchnorm_backward(dout, cache, out=result)
    assert got is result
    assert_same_bits(result, dx)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 3), (5, 3, 7), (3, 3, 400), (30_001, 3)])
def test_out_may_be_x_in_test_mode_and_dout_in_backward(dtype, shape):
    arguments, dout = make_arguments(dtype, shape), make_dout(dtype, shape)
    for mode in MODES:
        y, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode)
        fresh, *sums = cbnorm.batchnorm_backward(dout, cache)
        for dx in (dout.copy(), dout.copy()[:]):
            got, *got_sums = cbnorm.batchnorm_backward(dx, cache, out=dx)
            assert got is dx
            assert_same_bits([dx, *got_sums], [fresh, *sums])
    x = arguments["x"] = arguments["x"].copy()
    # Another view of the same numbers is x itself, too.
    got, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode="test", out=x[:])
    assert cache.x is None
    assert_same_bits([x, got], [y, y])


def test_neighbours_in_one_memory_do_not_overlap():
    arguments = make_arguments()
    memory = np.zeros(27)
    x, out, gamma = memory[:12].reshape(SHAPE), memory[12:24].reshape(SHAPE), memory[24:]
    x[...], gamma[...] = arguments["x"], arguments["gamma"]
    want = cbnorm.batchnorm_forward(**arguments)[0]
    got = cbnorm.batchnorm_forward(**{**arguments, "x": x, "gamma": gamma}, out=out)[0]
    assert_same_bits([got, x], [want, arguments["x"]])


@pytest.mark.parametrize("name", CASES)
def test_every_cache_is_of_the_one_public_class_and_can_be_pickled(name):
    norm, x, dout, parameters = make(name, 6, 4)
    cache = norm.forward(x, *parameters)[1]
    assert type(cache) is cbnorm.Cache is cbnorm.BatchNormCache
    assert cache.mode == ("test" if name == "test mode" else "train")
    copy = pickle.loads(pickle.dumps(cache))
    for one, other in zip(norm.backward(dout, cache), norm.backward(dout, copy), strict=True):
        assert_same_bits(one, other)
