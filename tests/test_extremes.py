"""The numbers contract where numbers end: weights of 0, infinities, squares that overflow or vanish, far values."""

from fractions import Fraction
from functools import cache

import mpmath
import numpy as np
import pytest
from cases import DTYPES, INSTANCE, Y, assert_same_bits, batch, check, group, layer, make_case, rms

import cbnorm


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 50)])
def test_a_weight_of_0_does_not_read_the_other_side(kernels, shape, special):
    x = np.random.default_rng(0).standard_normal(shape)
    spoilt = x.copy()
    spoilt[0, 1] = special
    old_mean, old_var = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    _, _, mean, var = cbnorm.batchnorm_forward(spoilt, momentum=1.0, moving_mean=old_mean, moving_var=old_var)
    np.testing.assert_array_equal((mean, var), (old_mean, old_var))
    old = np.full(3, special)
    _, _, mean, var = cbnorm.batchnorm_forward(x, momentum=0.0, moving_mean=old, moving_var=old)
    of_batch = cbnorm.parts.moments(x)
    np.testing.assert_allclose((mean, var), (of_batch.mean, of_batch.var()), rtol=1e-15)


def test_the_first_batch_of_a_layer_that_averages_all_forgets_what_was_there():
    layer = cbnorm.BatchNorm(2, momentum=None)
    layer.moving_mean = np.array([np.nan, 7.0])
    layer.moving_var = np.array([np.inf, 7.0])
    layer(np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_array_equal(layer.moving_mean, [2.0, 4.0])
    np.testing.assert_array_equal(layer.moving_var, [1.0, 4.0])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_an_empty_batch_has_no_weight(momentum):
    old = np.array([1.0, np.inf])
    _, _, mean, var = cbnorm.batchnorm_forward(np.empty((0, 2)), momentum=momentum, moving_mean=old, moving_var=old)
    np.testing.assert_array_equal((mean, var), (old, old))


# One case of each walk, and of each normalization; momentum 1, as no float holds the variance of some.
TRAIN = batch(momentum=1.0)
WALKS = {
    "columns": (TRAIN, (70, 5)),
    "wide columns": (TRAIN, (9, 301)),
    "planes": (TRAIN, (3, 40, 77)),
    "long planes": (TRAIN, (2, 2, 5003)),
    "layer": (layer(), (7, 129)),
    "layer, long rows": (layer(), (3, 5003)),
    "rms": (rms(), (7, 129)),
    "group": (group(2), (3, 4, 45)),
    "instance": (INSTANCE, (3, 4, 45)),
}


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, np.float64) for size in (1e-305, 1e-200, 1e-160, 1e-154, 1e153, 1e160, 1e305)]
    + [(size, np.float32) for size in (1e-42, 1e-39, 1e36)],
)
def test_squares_that_no_float_holds(kernels, num_threads, size, dtype, name):
    norm, shape = WALKS[name]
    x, dout, parameters = make_case(norm, shape, np.float64)
    dout = (dout * (1e3 if size > 1 else 1e-6)).astype(dtype)  # so that dx is not beyond its dtype, nor subnormal
    check(norm, (x * size).astype(dtype), dout, [values.astype(dtype) for values in parameters], eps=0.0)


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("place", [0, -1])
def test_one_value_that_is_as_large_as_float32_goes(kernels, name, place):
    norm, shape = WALKS[name]
    x, dout, parameters = make_case(norm, shape, np.float32)
    x = x / abs(x).max() * np.finfo(np.float32).max
    norm.sets(x)[0].flat[place] = -np.finfo(np.float32).max
    x[abs(x) < 1] = 1
    check(norm, x, dout, parameters)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, (np.inf, -np.inf), (np.inf, np.inf), (-np.inf, np.nan)])
@pytest.mark.parametrize("name", WALKS)
def test_the_mean_of_infinities_does_not_depend_on_where_they_stand(kernels, name, special, dtype):
    norm, shape = WALKS[name]
    if not norm.centred:
        pytest.skip("no mean")
    for places in ((0, 1), (1, 0), (5, -1), (-1, 2), (33, 8)):
        x, _, parameters = make_case(norm, shape, dtype)
        for place, value in zip(places, np.atleast_1d(special), strict=False):
            norm.sets(x)[0].flat[place % norm.sets(x)[0].size] = value
        with np.errstate(all="ignore"):
            want = np.sum(special)
        y, cache, *_ = norm.forward(x, *parameters)
        np.testing.assert_array_equal(cache.mean.flat[0], want)
        assert np.isnan(cache.inv_std.flat[0])
        assert np.isfinite(cache.mean.flat[1:]).all()
        assert np.isfinite(cache.inv_std.flat[1:]).all()
        assert np.isnan(norm.sets(y)[0]).all()
        found = cbnorm.moments(np.stack([norm.sets(x)[0].ravel()] * 3), 1)
        np.testing.assert_array_equal(found.mean, [want] * 3)
        assert np.isnan(found.var()).all()


@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_moving_averages_of_infinities(kernels, momentum):
    x = np.array([[np.inf, -np.inf, 1.0], [1.0, 2.0, 3.0]])
    old = np.array([np.inf, np.inf, -np.inf])
    _, _, mean, _ = cbnorm.batchnorm_forward(x, momentum=momentum, moving_mean=old, moving_var=np.ones(3))
    want = {0: [np.inf, -np.inf, 2.0], 0.25: [np.inf, np.nan, -np.inf], 1: old}[momentum]
    np.testing.assert_array_equal(mean, want)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(40, 3), (2, 3, 50)])
@pytest.mark.parametrize("in_place", [False, True])
def test_moving_statistics_that_float32_does_not_hold(kernels, dtype, shape, in_place):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    dout = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    mean, var, gamma = np.array([0.0, 1e39, 1e-45]), np.array([1.0, 4e77, 1e-82]), np.array([1.0, 2.0, 1e-41])
    one_by_std = 1 / np.sqrt(var)
    along = (3,) + (1,) * (x.ndim - 2)
    want = (x - mean.reshape(along)) * (gamma * one_by_std).reshape(along)
    given = x.copy()
    y, cache, *_ = cbnorm.batchnorm_forward(
        given, gamma, None, 0.0, 0.9, mean, var, "test", out=given if in_place else None
    )
    assert y.dtype == dtype
    tolerance = {np.float16: 1e-3, np.float32: 2e-4}[dtype]  # gamma is subnormal
    np.testing.assert_allclose(y, want, rtol=tolerance, atol=tolerance)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache, need=(True, not in_place, True))
    np.testing.assert_allclose(dx, dout * (gamma * one_by_std).reshape(along), rtol=tolerance, atol=1e-7)
    assert dx.dtype == dtype
    assert dbeta.dtype == np.float32
    if not in_place:
        assert dgamma.dtype == np.float32
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        terms = dout * ((x - mean.reshape(along)) * one_by_std.reshape(along))
        assert np.all(np.abs(dgamma - terms.sum(axes))[:2] <= 1e-6 * np.abs(terms).sum(axes)[:2])


@pytest.mark.parametrize("name", [name for name in WALKS if "columns" not in name])
@pytest.mark.parametrize("size", [1e-42, 3e38])
def test_the_bits_of_a_set_do_not_depend_on_one_that_float32_does_not_hold(kernels, name, size):
    norm, shape = WALKS[name]
    x, dout, parameters = make_case(norm, shape, np.float32)
    beside = x.copy()
    numbers = norm.sets(beside)[0]
    numbers *= np.float32(size) / abs(numbers).max()
    numbers.flat[0] = -size
    found = []
    for values in (x, beside, np.asfortranarray(beside)):
        y, cache, *_ = norm.forward(values, *parameters, eps=0.0)
        found.append((norm.sets(y)[1:], norm.sets(norm.backward(dout, cache)[0])[1:], norm.sets(y)))
    assert_same_bits(found[1][:2], found[0][:2])
    assert_same_bits(found[2], found[1])  # through a copy


@cache
def exact_y(dtype, size, eps, centred):
    """Of hostile rows, from fractions: only the square root is rounded, to 60 digits."""
    found = []
    with mpmath.workdps(60):
        for row in hostile_rows(dtype, size):
            values = [Fraction(float(value)) for value in row]
            mean = sum(values) / len(values) if centred else Fraction(0)
            var = sum((value - mean) ** 2 for value in values) / len(values) + Fraction(eps)
            std = mpmath.sqrt(mpmath.mpf(var.numerator) / var.denominator)
            deviations = [mpmath.mpf(each.numerator) / each.denominator for each in (value - mean for value in values)]
            found.append([float(each / std) if var else 0.0 for each in deviations])
    return np.array(found)


def hostile_rows(dtype, size):
    """Rows of numbers that a pivot, a sum or a square may fall over."""
    random = np.random.default_rng(size)
    info = np.finfo(dtype)
    most, tiny = float(info.max), float(info.smallest_subnormal)
    plain = random.standard_normal(size)
    signs = np.where(np.arange(size) % 2, 1.0, -1.0)
    rows = [plain]
    for far in (1e4, 1e9, 1e30, most / 4):
        for place in (0, -1, size // 2):
            rows.append(plain.copy())
            rows[-1][place] = far
        rows.append(signs * far)
        rows.append(signs * far + plain)
        rows.append(plain + far if far < 1e10 else plain * (far / 8))
    rows += [np.where(plain > 0, most / 2, -most / 2), np.where(plain > 1, -most, most / 3)]
    rows += [random.integers(-9, 9, size) * tiny * scale for scale in (2.0**12, 2.0**20)]
    rows += [np.where(np.arange(size) == 3 % size, tiny * 2.0**14, 0.0), np.where(plain > 0, most / 8, tiny)]
    rows += [np.ldexp(plain, random.integers(-90, 90, size)), np.full(size, most), np.full(size, tiny)]
    return np.array(rows).astype(dtype)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("size", [2, 5, 33, 129, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_numbers_against_exact_arithmetic(kernels, dtype, size, eps):
    rows = hostile_rows(dtype, size)
    tolerance = Y[np.dtype(dtype)]
    for centred in (True, False):
        want = exact_y(dtype, size, eps, centred)
        if centred:
            stacked = np.ascontiguousarray(rows.T)
            got = {
                "layer": cbnorm.layernorm_forward(rows, eps=eps)[0],
                "columns": cbnorm.batchnorm_forward(stacked, eps=eps)[0].T,
                "planes": cbnorm.batchnorm_forward(rows[np.newaxis].copy(), eps=eps)[0][0],
                "instance": cbnorm.instancenorm_forward(rows[np.newaxis].copy(), eps=eps)[0][0],
                "parts": cbnorm.parts.normalize(stacked, cbnorm.parts.moments(stacked), eps=max(eps, 1e-5)).T,
            }
            if eps == 0:
                del got["parts"]
        else:
            got = {"rms": cbnorm.rmsnorm_forward(rows, eps=eps)[0]}
        largest = abs(rows).max(axis=1).astype(np.float64)
        for name, y in got.items():
            # A sign is enough where the m2 of Moments is beyond float64.
            beyond = (dtype == np.float64) & (name == "parts") & (largest > 1e154)
            with np.errstate(all="ignore"):
                error = np.where(beyond[:, None] & ~np.isfinite(y), 0, np.abs(y - want) / np.maximum(1, np.abs(want)))
            wrong = np.flatnonzero(~(error.max(axis=1) <= tolerance))
            assert not wrong.size, (name, wrong, rows[wrong[0]][:6], y[wrong[0]][:6], want[wrong[0]][:6])


def test_infinite_moving_statistics(kernels):
    """An infinite variance is the limit of larger and larger ones, y = beta; whatever else is not finite gives NaN."""
    x, beta = np.ones((2, 4)), np.full(4, 5.0)
    mean, var = np.array([0.0, np.inf, 0.0, np.nan]), np.array([np.inf, 1.0, np.nan, 1.0])
    y = cbnorm.batchnorm_forward(x, None, beta, moving_mean=mean, moving_var=var, mode="test")[0]
    np.testing.assert_array_equal(y, [[5.0, np.nan, np.nan, np.nan]] * 2)


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, True)])
def test_sums_of_dout_that_float32_does_not_hold(kernels, num_threads, name, need):
    """Four of them are added before they become float64: here 1.2e39, where their sum and all results fit."""
    norm, shape = WALKS[name]
    x, dout, parameters = make_case(norm, shape, np.float32)
    for numbers in norm.sets(dout):
        flat = np.full(numbers.size, 1e30, np.float32)
        flat[:4], flat[4:8] = 3e38, -3e38
        numbers[...] = flat.reshape(numbers.shape)
    need = need[: 1 + len(parameters)]
    parameters = [np.full_like(each, 1e-3) for each in parameters]
    _, cache, *_ = norm.forward(x, *parameters)
    wide = norm.forward(x.astype(np.float64), *(each.astype(np.float64) for each in parameters))[1]
    got = norm.backward(dout, cache, need=need)
    want = norm.backward(dout.astype(np.float64), wide, need=need)
    for narrow, wanted in zip(got, want, strict=True):
        assert (narrow is None) == (wanted is None)
        if narrow is not None:
            within = np.abs(wanted) <= np.finfo(np.float32).max
            terms = 1e39 if narrow.shape != x.shape else 0  # what cancels in a sum
            scale = np.abs(wanted[within]).max(initial=terms)
            np.testing.assert_array_equal(narrow[~within], np.sign(wanted[~within]) * np.inf)
            assert np.abs(narrow[within] - wanted[within]).max(initial=0) <= 1e-5 * scale


@pytest.mark.parametrize("name", WALKS)
def test_partial_sums_of_dout_that_float64_does_not_hold(kernels, name):
    norm, shape = WALKS[name]
    x, dout, parameters = make_case(norm, shape, np.float64)
    parameters = [np.full_like(each, 1e-9) for each in parameters]
    for numbers in norm.sets(dout):
        flat = np.ones(numbers.size)
        flat[:4], flat[4:8] = 1e308, -1e308
        numbers[...] = flat.reshape(numbers.shape)
    _, cache, *_ = norm.forward(x, *parameters)
    got, want = norm.backward(dout, cache), norm.backward(dout * 2.0**-60, cache)
    for large, small in zip(got, want, strict=True):
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(large, small * 2.0**60, rtol=1e-12, atol=1e295)
