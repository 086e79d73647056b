"""Missing values, and batches that are not finite, against NumPy: odd sizes, layouts, dtypes, builds."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from cases import (
    DTYPES,
    LARGE_COLUMNS,
    LARGE_PLANES,
    SMALL_COLUMNS,
    SMALL_PLANES,
    along,
    assert_same_bits,
    odd_shapes,
    sample,
    truth,
)

import cbnorm

SMALL = SMALL_COLUMNS | SMALL_PLANES
LARGE = LARGE_COLUMNS | LARGE_PLANES


def record(moments):
    return [moments.count, moments.mean, moments.mean_lo, moments.m2]


def with_holes(x, share=0.2, seed=3):
    return np.where(np.random.default_rng(seed).random(x.shape) < share, x.dtype.type(np.nan), x)


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_omitted_values_of_odd_sizes(kernels, dtype, layout, offset):
    axis, make_shape = SMALL[layout]
    for shape in odd_shapes(make_shape):
        check_omitted(with_holes(sample(shape, dtype, offset)), axis, offset)


def check_omitted(x, axis, offset=0):
    others = tuple(number for number in range(x.ndim) if number != axis % x.ndim)
    given = x.copy()
    y, m = cbnorm.standardize(x, others, nan_policy="omit")
    assert_same_bits(x, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of channels without values
        exact = truth(x)
        mean, var = (find(exact - offset, axis=others) for find in (np.nanmean, np.nanvar))
    np.testing.assert_array_equal(m.count, np.sum(~np.isnan(x), axis=others))
    np.testing.assert_array_equal(np.isnan(m.mean), m.count == 0)
    there = m.count > 0
    std = np.sqrt(var)
    assert np.all(np.abs(m.mean - offset - mean)[there] <= 1e-9 * std[there] + 1e-15 * offset)
    assert np.all(np.abs(m.var() - var)[there] <= 1e-9 * var[there])
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    shape = along(axis, x.ndim)
    scale = np.where(var > 0, std, 1)
    want = (exact - offset - mean.reshape(shape)) / scale.reshape(shape)
    np.testing.assert_allclose(
        y, want, rtol=0, atol=5e-6 * max(1.0, np.nanmax(np.abs(want), initial=0)) if x.dtype == np.float32 else 1e-9
    )


@pytest.mark.parametrize("layout", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_omitted_values_of_large_arrays(dtype, layout):
    axis, shape = LARGE[layout]
    check_omitted(with_holes(sample(shape, dtype, 5)), axis)


def test_without_missing_values_omit_gives_the_same_to_the_digit(kernels):
    x = sample((300, 70), np.float32, 1e4)
    got, want = cbnorm.moments(x, nan_policy="omit"), cbnorm.moments(x)
    assert_same_bits([got.mean, got.mean_lo, got.m2], [want.mean, want.mean_lo, want.m2])


def test_omit_with_weights_and_merging():
    x = with_holes(sample((60, 4), offset=3))
    weights = np.random.default_rng(0).random(60)
    m = cbnorm.moments(x, weights=weights, nan_policy="omit")
    there = ~np.isnan(x)
    each = there * weights[:, np.newaxis]
    np.testing.assert_allclose(m.count, each.sum(axis=0))
    np.testing.assert_allclose(m.mean, np.nansum(each * x, axis=0) / each.sum(axis=0))
    merged = sum(
        cbnorm.moments(x[part], weights=weights[part], nan_policy="omit")
        for part in (slice(0, 7), slice(7, 8), slice(8, 60))
    )
    np.testing.assert_allclose(merged.var(), m.var(), rtol=1e-12)
    np.testing.assert_allclose(merged.mean, m.mean, rtol=1e-14)


def test_moments_with_counts_of_their_own_merge_and_stay():
    nan = np.nan
    a = cbnorm.moments([[1.0, nan, nan], [3.0, 5.0, nan]], nan_policy="omit")
    b = cbnorm.moments([[8.0, 7.0, nan]], nan_policy="omit")
    for both in (a + b, b + a, sum([a, b])):
        assert both.count.tolist() == [3, 2, 0]
        np.testing.assert_allclose(both.mean, [4, 6, nan])
        np.testing.assert_allclose(both.var(), [26 / 3, 1, nan])
        np.testing.assert_allclose(both.var(ddof=2), [26, nan, nan])
    assert_same_bits(record(a + b), record(b + a))
    plain = cbnorm.moments(np.ones((2, 3)))
    assert (a + plain).count.tolist() == [4, 3, 2]
    for same in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert_same_bits(record(same), record(a))
    np.testing.assert_allclose(a.standardize([[2.0, 5.0, 1.0]]), [[0, 0, nan]])
    np.testing.assert_allclose(a.unstandardize([[1.0, 1.0, 1.0]]), [[3, 5, nan]])


def test_infinities_are_values_and_all_missing_is_silent():
    x = np.array([[1.0, np.nan, np.nan], [np.inf, np.nan, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = cbnorm.moments(x, nan_policy="omit")
        y, _ = cbnorm.standardize(x, nan_policy="omit")
    np.testing.assert_array_equal(m.mean, [np.inf, np.nan, 2])
    np.testing.assert_array_equal(m.var(), [np.nan, np.nan, 0])
    np.testing.assert_array_equal(y[:, 1:], [[np.nan, np.nan], [np.nan, 0]])


def test_raise_names_the_first_place():
    x = sample((3, 4, 5))
    x[1, 2, 3] = x[2, 0, 0] = np.nan
    x[0, 0, 0] = np.inf
    for call in (
        lambda: cbnorm.moments(x, nan_policy="raise"),
        lambda: cbnorm.standardize(x, nan_policy="raise", out=x),
        lambda: cbnorm.PopulationStats().update(x, nan_policy="raise"),
    ):
        with pytest.raises(ValueError, match=r"x: expected no NaN, got one at \[1, 2, 3\]"):
            call()
    with pytest.raises(ValueError, match="nan_policy: expected 'propagate' or 'omit' or 'raise', got 'drop'"):
        cbnorm.moments(x, nan_policy="drop")


# Batches that are not finite


def test_a_batch_with_nan_need_not_poison_a_layer():
    good = sample((8, 3), offset=1)
    bad = good.copy()
    bad[2, 1] = np.nan
    layers = {policy: cbnorm.BatchNorm(3, nonfinite=policy) for policy in ("propagate", "skip", "raise")}
    for policy, layer in layers.items():
        layer(good)
        before = layer.moving_mean.copy(), layer.moving_var.copy()
        if policy == "raise":
            with pytest.raises(
                ValueError, match="x: expected finite statistics of each channel, got others in channel 1"
            ):
                layer(bad)
            assert_same_bits([layer.moving_mean, layer.moving_var], list(before))
            assert layer.num_batches == 1
            continue
        y = layer(bad)
        assert np.isnan(y[:, 1]).all()
        assert np.isnan(layer.moving_mean).tolist() == [False, policy == "propagate", False]
        assert layer.num_batches == 2
        if policy == "skip":
            assert layer.moving_mean[1] == before[0][1]
            assert layer.moving_mean[0] != before[0][0]
    assert "nonfinite='skip'" in repr(layers["skip"])


def test_population_statistics_leave_out_what_is_not_finite():
    good = sample((8, 3), offset=1)
    bad = good.copy()
    bad[2, 1] = np.inf
    p = cbnorm.PopulationStats(nonfinite="skip")
    for x in (good, bad, good):
        p.update(x)
    assert p.count.tolist() == [24, 16, 24]
    np.testing.assert_allclose(p.var()[1], good[:, 1].var())
    mean, _ = p.batch_average()
    np.testing.assert_allclose(mean, good.mean(axis=0))
    p = cbnorm.PopulationStats(nonfinite="raise")
    p.update(good)
    with pytest.raises(ValueError, match="channel 1"):
        p.update(bad)
    assert (p.count, p.batches) == (8, 1)
    with pytest.raises(ValueError, match="nonfinite: expected"):
        cbnorm.PopulationStats(nonfinite="omit")


def test_a_variance_beyond_float64_is_not_finite():
    layer = cbnorm.BatchNorm(2, nonfinite="skip", dtype=np.float64)
    layer(np.array([[1e200, 1.0], [-1e200, 3.0]]))
    assert np.isfinite(layer.moving_var).all()
    assert layer.moving_mean.tolist() == [0, pytest.approx(0.2)]


@pytest.mark.parametrize("policy", ["omit", "raise"])
def test_missing_values_of_bfloat16(policy):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([[1.0, 2.0], [np.nan, 4.0]]).astype(ml_dtypes.bfloat16)
    if policy == "raise":
        with pytest.raises(ValueError, match=r"x: expected no NaN, got one at \[1, 0\]"):
            cbnorm.moments(x, nan_policy=policy)
    else:
        assert cbnorm.moments(x, nan_policy=policy).count.tolist() == [1, 2]
