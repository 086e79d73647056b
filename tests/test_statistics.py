"""The hard numbers: large offsets, outliers, mixed scales, long sums, extreme and special values."""

import mpmath
import numpy as np
import pytest
import reference
from cases import assert_gradients, assert_normalized

import cbnorm

DTYPES = [np.float32, np.float64]
OFFSETS = [0, 1, 1e2, 1e4, 1e5, 1e6]
# Each walk, with several tiles of each; the channel axis is 1.
SHAPES = {
    "columns": (5_003, 7),
    "wide columns": (300, 301),
    "short planes": (77, 3, 49),
    "planes": (3, 4, 9_001),
}


def truth(values):
    """Exact enough to judge the dtype: float64 for float32, extended precision for float64."""
    return values.astype(np.float64 if values.dtype == np.float32 else np.longdouble)


def check(x, eps=1e-5, seed=1):
    """y, the statistics and all gradients of x in training mode, within the bounds."""
    rng = np.random.default_rng(seed)
    channels = x.shape[1]
    gamma, beta = rng.normal(1, 0.3, channels).astype(x.dtype), rng.normal(size=channels).astype(x.dtype)
    dout = rng.standard_normal(x.shape).astype(x.dtype)
    moving = {"moving_mean": np.zeros(channels), "moving_var": np.zeros(channels)}
    y, cache, mean, var = cbnorm.batchnorm_forward(x, gamma, beta, eps, 0.0, **moving)
    want, want_cache, want_mean, want_var = reference.batchnorm_forward(truth(x), gamma, beta, eps, 0.0, **moving)
    assert_normalized(y, want)
    tolerance = {"rtol": 1e-14, "atol": float(1e-10 * np.sqrt(want_var.max()))}
    np.testing.assert_allclose(mean, want_mean.astype(float), **tolerance)
    np.testing.assert_allclose(var, want_var.astype(float), rtol=1e-12)
    assert_gradients(
        cbnorm.batchnorm_backward(dout, cache),
        reference.batchnorm_backward(truth(dout), want_cache),
        dout,
        want_cache,
        axis=1,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_digit_is_lost_at_any_offset(kernels, dtype, offset, shape):
    check((np.random.default_rng(0).standard_normal(SHAPES[shape]) + offset).astype(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_row_far_from_the_rest(kernels, dtype, shape, place):
    x = np.random.default_rng(0).standard_normal(SHAPES[shape]).astype(dtype)
    x[0 if place == "first" else -1] += 1e5
    check(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_of_very_different_scales(kernels, dtype, shape):
    x = np.random.default_rng(0).standard_normal(SHAPES[shape])
    scale = np.geomspace(1e-6, 1e6, x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))
    check((x * scale).astype(dtype), eps=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_very_large_and_very_small_numbers(kernels, dtype, shape, size):
    check((np.random.default_rng(0).standard_normal(SHAPES[shape]) * size).astype(dtype), eps=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_values_against_mpmath(kernels, dtype):
    x = (np.random.default_rng(0).standard_normal((37, 1)) + 1e6).astype(dtype)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(value)) for value in x.ravel()]
        mean = mpmath.fsum(exact) / len(exact)
        var = mpmath.fsum((value - mean) ** 2 for value in exact) / len(exact)
        want = [(value - mean) / mpmath.sqrt(var + mpmath.mpf(1e-5)) for value in exact]
        y, _, moving_mean, moving_var = cbnorm.batchnorm_forward(
            x, momentum=0.0, moving_mean=np.zeros(1), moving_var=np.zeros(1)
        )
        bound = 2e-6 if dtype == np.float32 else 1e-12
        for got, value in zip(y.ravel(), want, strict=True):
            assert abs(mpmath.mpf(float(got)) - value) <= bound * max(1, abs(value))
        assert abs(mpmath.mpf(float(moving_var[0])) - var) <= 1e-13 * var
        assert float(moving_mean[0]) == float(mean)


def test_many_rows_of_one_number(kernels):
    x = np.full((2**25, 1), 1.1, np.float32)
    y, _, mean, var = cbnorm.batchnorm_forward(
        x, beta=[0.25], momentum=0.0, moving_mean=np.zeros(1), moving_var=np.ones(1), out=x.copy()
    )
    assert mean[0] == np.float32(1.1)
    assert var[0] == 0
    assert y.min() == y.max() == 0.25


@pytest.mark.parametrize("shape", [(1, 3), (3, 2), (1000, 5), (5003, 7), (7, 3, 49), (3, 4, 9001), (2, 300, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_constant_channel_gives_exactly_beta(kernels, dtype, shape, eps):
    value = np.random.default_rng(0).normal(size=shape[1]) * 10.0 ** np.arange(shape[1]).clip(max=6)
    along = (1, -1) + (1,) * (len(shape) - 2)
    x = np.broadcast_to(value.astype(dtype).reshape(along), shape)
    beta = np.random.default_rng(1).normal(size=shape[1]).astype(dtype)
    for given in (beta, np.zeros_like(beta)):
        y, cache, _, _ = cbnorm.batchnorm_forward(x, np.full(shape[1], 3.0), given, eps)
        np.testing.assert_array_equal(y, np.broadcast_to(given.reshape(along), shape))
        assert np.isfinite(cbnorm.batchnorm_backward(np.ones(shape, dtype), cache)[0]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_subnormal_numbers_survive(kernels, shape):
    x = (np.random.default_rng(0).integers(-1000, 1000, SHAPES[shape]) * 1e-42).astype(np.float32)
    y, _, _, _ = cbnorm.batchnorm_forward(x)
    want, _, _, _ = reference.batchnorm_forward(x)
    assert np.count_nonzero(y) > 0.9 * y.size
    # y is about 1e-37 itself: what counts is its last digit, some 1e-45.
    assert np.abs(y - want).max() <= 3e-6 * np.abs(want).max()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_stay_in_their_channel(kernels, dtype, shape, special):
    rng = np.random.default_rng(0)
    x, dout = (rng.standard_normal(SHAPES[shape]).astype(dtype) for _ in range(2))
    spoilt = x.copy()
    spoilt[2, 1] = special
    results = []
    for values in (x, spoilt):
        moving = {"moving_mean": np.zeros(x.shape[1]), "moving_var": np.ones(x.shape[1])}
        y, cache, mean, var = cbnorm.batchnorm_forward(values, **moving)
        dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
        results.append([np.moveaxis(y, 1, 0), np.moveaxis(dx, 1, 0), mean, var, dgamma, dbeta])
    others = np.arange(x.shape[1]) != 1
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(dirty[others], clean[others])
    y, dx, _, var, dgamma, _ = results[1]
    assert np.isnan(var[1])
    assert np.isnan(dgamma[1])
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_a_channel(kernels, dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype) + 100
    y, cache, mean, var = cbnorm.batchnorm_forward(
        x, beta=np.arange(5.0), moving_mean=np.zeros(5), moving_var=np.ones(5)
    )
    np.testing.assert_array_equal(y.ravel(), np.arange(5.0))
    np.testing.assert_allclose(mean, 0.1 * x.ravel(), rtol=1e-7)
    np.testing.assert_array_equal(var, np.full(5, 0.9))
    np.testing.assert_array_equal(cbnorm.batchnorm_backward(y, cache)[0], np.zeros(shape))
    with pytest.raises(ValueError, match=r"^ddof: expected 0 .* got 1"):
        cbnorm.batchnorm_forward(x, ddof=1)


def test_test_mode_keeps_its_digits_too(kernels):
    x = (np.random.default_rng(0).standard_normal((500, 7)) + 1e6).astype(np.float32)
    mean, var = reference.pooled_statistics([x])
    y, _, _, _ = cbnorm.batchnorm_forward(x, moving_mean=mean, moving_var=var, mode="test")
    want, _, _, _ = reference.batchnorm_forward(x, moving_mean=mean, moving_var=var, mode="test")
    assert_normalized(y, want)
