"""The hard numbers: large offsets, outliers, mixed scales, long sums, extreme and special values."""

import mpmath
import numpy as np
import pytest
import reference
from cases import DTYPES, LARGE_ROWS, Y, along, assert_normalized, batch, check, make_case

import cbnorm

OFFSETS = [0, 1, 1e2, 1e4, 1e5, 1e6]
BATCH = batch(momentum=0.0)  # so that the moving statistics are those of the batch
# Each walk over channels, with several tiles of each; the channel axis is 1.
SHAPES = {
    "columns": (5_003, 7),
    "wide columns": (300, 301),
    "short planes": (77, 3, 49),
    "planes": (3, 4, 9_001),
}
CHANNELS = {name: (BATCH, shape) for name, shape in SHAPES.items()}
EVERY_WALK = CHANNELS | LARGE_ROWS
CONSTANT = {
    f"batch {shape}": (BATCH, shape)
    for shape in [(1, 3), (3, 2), (1000, 5), (5003, 7), (7, 3, 49), (3, 4, 9001), (2, 300, 1)]
} | {name: case for name, case in LARGE_ROWS.items() if case[0].centred}


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def check_channels(x, eps=1e-5):
    """All results of training with x within the bounds."""
    _, dout, parameters = make_case(BATCH, x.shape, x.dtype, seed=1)
    check(BATCH, x, dout, parameters, eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_digit_is_lost_at_any_offset(kernels, dtype, offset, shape):
    check_channels((normal(SHAPES[shape]) + offset).astype(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_row_far_from_the_rest(kernels, dtype, shape, place):
    x = normal(SHAPES[shape]).astype(dtype)
    x[0 if place == "first" else -1] += 1e5
    check_channels(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_of_very_different_scales(kernels, dtype, shape):
    x = normal(SHAPES[shape])
    scale = np.geomspace(1e-6, 1e6, x.shape[1]).reshape(along(1, x.ndim))
    check_channels((x * scale).astype(dtype), eps=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVERY_WALK)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_very_large_and_very_small_numbers(kernels, dtype, name, size):
    norm, shape = EVERY_WALK[name]
    x, dout, parameters = make_case(norm, shape, np.float64)
    check(norm, (x * size).astype(dtype), dout.astype(dtype), [values.astype(dtype) for values in parameters], eps=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_values_against_mpmath(kernels, dtype):
    x = (normal((37, 1)) + 1e6).astype(dtype)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(float(value)) for value in x.ravel()]
        mean = mpmath.fsum(exact) / len(exact)
        var = mpmath.fsum((value - mean) ** 2 for value in exact) / len(exact)
        want = [(value - mean) / mpmath.sqrt(var + mpmath.mpf(1e-5)) for value in exact]
        y, _, moving_mean, moving_var = cbnorm.batchnorm_forward(
            x, momentum=0.0, moving_mean=np.zeros(1), moving_var=np.zeros(1)
        )
        for got, value in zip(y.ravel(), want, strict=True):
            assert abs(mpmath.mpf(float(got)) - value) <= Y[y.dtype] * max(1, abs(value))
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


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_constant_set_gives_exactly_beta(kernels, dtype, name, eps):
    norm, shape = CONSTANT[name]
    x, _, (gamma, beta) = make_case(norm, shape, dtype)
    sets = norm.sets(x)
    value = normal(len(sets)) * 10.0 ** np.arange(len(sets)).clip(max=6)
    sets[...] = value.reshape(along(0, sets.ndim))
    for given in (beta, np.zeros_like(beta)):
        y, cache, *_ = norm.forward(x, gamma, given, eps)
        np.testing.assert_array_equal(y, np.broadcast_to(given.reshape(norm.parameters_along(shape)), shape))
        assert np.isfinite(norm.backward(np.ones(shape, dtype), cache)[0]).all()


@pytest.mark.parametrize("name", EVERY_WALK)
def test_subnormal_numbers_survive(kernels, name):
    norm, shape = EVERY_WALK[name]
    x = (np.random.default_rng(0).integers(-1000, 1000, shape) * 1e-42).astype(np.float32)
    y, *_ = norm.forward(x)
    want, *_ = norm.want_forward(x)
    assert np.count_nonzero(y) > 0.9 * y.size
    # y is about 1e-37 itself: what counts is its last digit, some 1e-45.
    assert np.abs(y - want).max() <= 3e-6 * np.abs(want).max()


@pytest.mark.parametrize(("special", "place"), [(np.nan, 0), (np.inf, 1), (-np.inf, -1)])
@pytest.mark.parametrize("name", EVERY_WALK)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_stay_in_their_set(kernels, dtype, name, special, place):
    norm, shape = EVERY_WALK[name]
    x, dout, parameters = make_case(norm, shape, dtype)
    spoilt = x.copy()
    norm.sets(spoilt)[place].flat[2] = special
    found = []
    for values in (x, spoilt):
        y, cache, *moving = norm.forward(values, *parameters)
        dx, *sums = norm.backward(dout, cache)
        # Of a batch all results are the channel's own.
        found.append([norm.sets(y), norm.sets(dx), *(moving and [*moving, *sums])])
    others = np.arange(len(found[0][0])) != place % len(found[0][0])
    for clean, dirty in zip(*found, strict=True):
        np.testing.assert_array_equal(dirty[others], clean[others])
    y, dx, *own = found[1]
    assert np.isnan(y[place]).any()
    assert np.isnan(dx[place]).any()
    if own:
        _, var, dgamma, _ = own
        assert np.isnan(y[place]).all()
        assert np.isnan(var[place])
        assert np.isnan(dgamma[place])


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_a_channel(kernels, dtype, shape):
    x = normal(shape).astype(dtype) + 100
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
    x = (normal((500, 7)) + 1e6).astype(np.float32)
    mean, var = reference.pooled_statistics([x])
    y, _, _, _ = cbnorm.batchnorm_forward(x, moving_mean=mean, moving_var=var, mode="test")
    want, _, _, _ = reference.batchnorm_forward(x, moving_mean=mean, moving_var=var, mode="test")
    assert_normalized(y, want)
