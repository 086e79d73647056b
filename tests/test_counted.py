"""Weights, masks and missing values against the equations, for odd sizes, layouts, dtypes, builds and threads."""

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
    batch,
    derivative,
    make_case,
    odd_shapes,
    results,
    sample,
    truth,
)

import cbnorm
from cbnorm import parts

SMALL = SMALL_COLUMNS | SMALL_PLANES
LARGE = LARGE_COLUMNS | LARGE_PLANES
KINDS = ["mask", "fractions", "few", "integers"]


def places(shape, axis):
    """The shape of x without its channel axis."""
    return tuple(size for number, size in enumerate(shape) if number != axis % len(shape))


def make_weights(kind, shape, axis, seed=1):
    random = np.random.default_rng(seed)
    size = places(shape, axis)
    return {
        "mask": lambda: random.random(size) < 0.7,
        "fractions": lambda: random.random(size).astype(np.float32),
        "few": lambda: (random.random(size) < 0.02) * 10.0 ** random.integers(-6, 3, size),
        "integers": lambda: random.integers(0, 5, size),
    }[kind]()


def moments_of(x, weights, axis):
    """W, mean and variance of each channel, from the definition, in `x`'s own dtype."""
    columns = np.moveaxis(x, axis, 0).reshape(x.shape[axis], np.size(weights))
    weights = np.ravel(weights).astype(x.dtype)
    there = weights > 0
    columns, weights = columns[:, there], weights[there]
    total = weights.sum()
    if total == 0:
        return 0.0, np.zeros(len(columns)), np.zeros(len(columns))
    first = columns[:, :1]
    mean = first[:, 0] + (weights * (columns - first)).sum(axis=1) / total
    return total, mean, (weights * (columns - mean[:, None]) ** 2).sum(axis=1) / total


def forward_and_gradients(x, dout, gamma, beta, weights, axis, eps):
    """y, dx, dgamma, dbeta and the scale of dx, from the equations of the design."""
    shape = along(axis, x.ndim)
    others = tuple(number for number in range(x.ndim) if number != axis % x.ndim)
    total, mean, var = (np.reshape(each, shape) if np.ndim(each) else each for each in moments_of(x, weights, axis))
    inv_std = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * inv_std
    dgamma, dbeta = (each.sum(axis=others, keepdims=True) for each in (dout * xhat, dout))
    weights = np.expand_dims(weights, axis % x.ndim).astype(x.dtype)
    gamma = gamma.reshape(shape)
    dx = gamma * inv_std * (dout - weights / total * (dbeta + xhat * dgamma))
    sums = (np.abs(each).sum(axis=others, keepdims=True) for each in (dout, dout * xhat))
    largest = weights / total * (next(sums) + np.abs(xhat) * next(sums))
    terms = gamma * inv_std * (np.abs(dout).max(initial=0) + largest)
    return gamma * xhat + beta.reshape(shape), dx, dgamma.ravel(), dbeta.ravel(), np.abs(terms).max(initial=0)


def check_weighted(x, dout, gamma, beta, weights, axis, eps=1e-5):
    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma, beta, eps, axis=axis, weights=weights)
    got = cbnorm.batchnorm_backward(dout, cache)
    if not np.any(weights):
        for gradient in got:
            assert not np.any(gradient)
        return
    exact = [truth(each) for each in (x, dout, gamma, beta)]
    want_y, want_dx, want_dgamma, want_dbeta, scale = forward_and_gradients(*exact, weights, axis, eps)
    bound = 4e-6 if x.dtype == np.float32 else 1e-12
    assert np.all(np.abs(y - want_y) <= bound * np.maximum(1, np.abs(want_y)))
    assert np.all(np.abs(got[0] - want_dx) <= bound * scale)
    numbers = max(1, x.size // max(1, x.shape[axis]))
    largest = np.abs(want_y).max(initial=1) * np.abs(dout).max(initial=1)
    for sums, want in zip(got[1:], (want_dgamma, want_dbeta), strict=True):
        assert np.all(np.abs(sums - want) <= bound * largest * numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_batches_of_odd_sizes(kernels, dtype, layout, kind):
    axis, make_shape = SMALL[layout]
    for shape in odd_shapes(make_shape):
        x, dout, (gamma, beta) = make_case(batch(axis), shape, dtype)
        check_weighted(x, dout, gamma, beta, make_weights(kind, shape, axis), axis)


@pytest.mark.parametrize("kind", ["mask", "fractions"])
@pytest.mark.parametrize("layout", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_batches_of_large_arrays(dtype, layout, kind):
    axis, shape = LARGE[layout]
    x, dout, (gamma, beta) = make_case(batch(axis), shape, dtype)
    check_weighted(x, dout, gamma, beta, make_weights(kind, shape, axis), axis)


@pytest.mark.parametrize("layout", LARGE | {name: (axis, make(33)) for name, (axis, make) in SMALL.items()})
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_one_give_the_bits_of_none(kernels, dtype, layout):
    axis, shape = (LARGE | {name: (axis, make(33)) for name, (axis, make) in SMALL.items()})[layout]
    norm = batch(axis, ddof=1)
    x, dout, parameters = make_case(norm, shape, dtype, offset=1e3)
    for ones in (np.ones(places(shape, axis), bool), np.ones(places(shape, axis), np.float16)):
        assert_same_bits(results(norm, x, dout, parameters, weights=ones), results(norm, x, dout, parameters))
        assert_same_bits(record(parts.moments(x, axis, weights=ones)), record(parts.moments(x, axis)))


def record(moments):
    return [moments.count, moments.mean, moments.mean_lo, moments.m2]


@pytest.mark.parametrize("layout", LARGE)
def test_weighted_bits_do_not_depend_on_threads_or_build(kernels, num_threads, layout):
    axis, shape = LARGE[layout]
    norm = batch(axis)
    x, dout, parameters = make_case(norm, shape, np.float32)
    weights = make_weights("fractions", shape, axis)
    with cbnorm.threads(num_threads):
        got = results(norm, x, dout, parameters, weights=weights)
    if layout not in WANTED:
        WANTED[layout] = got
    assert_same_bits(got, WANTED[layout])


WANTED = {}  # of each layout, by the first build and number of threads


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((2, 3, 4), 1), ((2, 4, 3), -1)])
def test_weighted_gradients_are_derivatives(shape, axis):
    x, dout, (gamma, beta) = make_case(batch(axis), shape, np.float64)
    weights = make_weights("fractions", shape, axis).astype(np.float64)

    def loss(x, gamma, beta):
        return (cbnorm.batchnorm_forward(x, gamma, beta, axis=axis, weights=weights)[0] * dout).sum()

    cache = cbnorm.batchnorm_forward(x, gamma, beta, axis=axis, weights=weights)[1]
    want = derivative(loss, [x, gamma, beta], "central")
    for gradient, numerical in zip(cbnorm.batchnorm_backward(dout, cache), want, strict=True):
        np.testing.assert_allclose(gradient, numerical, rtol=0, atol=1e-7)


@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_counts_nothing_is_not_read(kernels, dtype, layout):
    axis, make_shape = SMALL[layout]
    shape = make_shape(33)
    x = sample(shape, dtype, offset=5)
    mask = make_weights("mask", shape, axis)
    hidden = np.broadcast_to(np.expand_dims(~mask, axis % x.ndim), shape)
    for garbage in (np.nan, np.inf, np.finfo(dtype).max):
        spoilt = np.where(hidden, dtype(garbage), x)
        assert_same_bits(
            record(parts.moments(spoilt, axis, weights=mask)), record(parts.moments(x, axis, weights=mask))
        )
        y, cache, *_ = cbnorm.batchnorm_forward(spoilt, axis=axis, weights=mask)
        np.testing.assert_array_equal(y[~hidden], cbnorm.batchnorm_forward(x, axis=axis, weights=mask)[0][~hidden])
        dx = cbnorm.batchnorm_backward(np.where(hidden, 0, 1).astype(dtype), cache, need=(True, False, False))[0]
        assert np.isfinite(dx[hidden]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1e6])
def test_weights_that_repeat_a_row_are_that_row_repeated(dtype, offset):
    x = sample((70, 40), dtype, offset)
    times = np.random.default_rng(0).integers(0, 4, 70)
    got, want = cbnorm.moments(x, weights=times), cbnorm.moments(np.repeat(x, times, axis=0))
    assert got.count == want.count == times.sum()
    for ddof in (0, 1):
        np.testing.assert_allclose(got.var(ddof), want.var(ddof), rtol=1e-12)
    np.testing.assert_allclose(got.mean - offset, want.mean - offset, rtol=0, atol=1e-12)


def test_weights_of_samples_hold_for_all_their_positions():
    x, weights = sample((4, 5, 6)), np.array([1.0, 0.0, 2.0, 0.5])
    of_places = np.repeat(weights, 5).reshape(4, 5)
    assert_same_bits(record(parts.moments(x, -1, weights=weights)), record(parts.moments(x, -1, weights=of_places)))
    got = cbnorm.moments(x, axis=(0, 1), weights=weights)
    assert_same_bits(record(got), record(cbnorm.moments(x, axis=(0, 1), weights=of_places)))


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (0, 2), (1, 2), None])
@pytest.mark.parametrize("order", ["C", "F", "swapped"])
def test_weights_follow_the_axes_reduced(axis, order):
    x = sample((5, 6, 7), np.float64, 3)
    x = np.asfortranarray(x) if order == "F" else x.swapaxes(0, 1).copy().swapaxes(0, 1) if order == "swapped" else x
    reduced = range(3) if axis is None else np.atleast_1d(axis)
    weights = np.random.default_rng(0).random([x.shape[number] for number in reduced])
    weights *= weights > 0.2
    got = cbnorm.moments(x, axis, weights=weights)
    full = np.broadcast_to(weights.reshape([x.shape[i] if i in reduced else 1 for i in range(3)]), x.shape)
    axes = tuple(int(number) for number in reduced)
    mean = np.average(x, axis=axes, weights=full)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-13)
    deviations = (x - np.expand_dims(mean, axes)) ** 2
    np.testing.assert_allclose(got.var(), np.average(deviations, axis=axes, weights=full), rtol=1e-12)
    y, m = cbnorm.standardize(x, axis, weights=weights)
    np.testing.assert_allclose(y, (x - np.expand_dims(mean, axes)) / np.expand_dims(got.std(), axes), atol=1e-12)
    assert_same_bits(m.mean, got.mean)


def test_no_weight_at_all_is_an_empty_batch():
    x, none = np.ones((3, 2)), np.zeros(3)
    moving = {"moving_mean": np.array([1.0, 2.0]), "moving_var": np.array([3.0, 4.0])}
    y, cache, mean, var = cbnorm.batchnorm_forward(x, None, [5.0, 6.0], **moving, weights=none)
    assert_same_bits([mean, var], list(moving.values()))
    np.testing.assert_array_equal(y, [[5, 6]] * 3)
    for gradient in cbnorm.batchnorm_backward(np.ones_like(x), cache):
        assert not gradient.any()
    assert np.isnan(cbnorm.moments(x, weights=none).mean).all()
    layer = cbnorm.BatchNorm(2)
    layer(x, weights=none)
    assert layer.num_batches == 0
    assert not layer.moving_mean.any()


def test_layers_and_population_statistics_take_weights():
    x, mask = sample((6, 5, 3), offset=2), np.arange(30).reshape(6, 5) % 3 > 0
    layer = cbnorm.BatchNorm(3, axis=-1, momentum=0.0, ddof=1)
    y = layer(x, weights=mask)
    kept = x[mask]
    np.testing.assert_allclose(layer.moving_mean, kept.mean(axis=0))
    np.testing.assert_allclose(layer.moving_var, kept.var(axis=0, ddof=1))
    np.testing.assert_allclose(y[mask].mean(axis=0), 0, atol=1e-12)
    p = cbnorm.PopulationStats(axis=-1)
    p.update(x, weights=mask)
    p.update(x[:1], weights=mask[:1])
    both = np.concatenate([kept, x[:1][mask[:1]]])
    np.testing.assert_allclose(p.var(1), both.var(axis=0, ddof=1))
    cbnorm.recompute_stats(layer, [(x, mask), (x[:1], mask[:1])], weighted=True)
    np.testing.assert_allclose(layer.moving_var, both.var(axis=0, ddof=1))
    with pytest.raises(TypeError, match="batches: expected pairs"):
        cbnorm.recompute_stats(layer, [x], weighted=True)


def test_weighted_parts_are_the_whole():
    x, dout, (gamma, beta) = make_case(batch(), (50, 7), np.float64)
    weights = make_weights("fractions", x.shape, 1)
    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma, beta, weights=weights)
    cut = [slice(0, 13), slice(13, 13), slice(13, 50)]
    whole = sum(parts.moments(x[part], weights=weights[part]) for part in cut)
    sums = sum(parts.gradient_sums(dout[part], x[part], whole, weights=weights[part]) for part in cut)
    np.testing.assert_allclose(
        np.concatenate([parts.normalize(x[part], whole, gamma, beta) for part in cut]), y, rtol=0, atol=1e-12
    )
    got = [parts.input_gradient(dout[part], x[part], whole, sums, gamma, weights=weights[part]) for part in cut]
    np.testing.assert_allclose(np.concatenate(got), cbnorm.batchnorm_backward(dout, cache)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (np.ones(3), ValueError, r"weights: expected shape \(4, 2\), or \(4,\), one for each place, got \(3,\)"),
        (np.ones((4, 3)), ValueError, "weights: expected shape"),
        ([-1, 1, 1, 1], ValueError, "weights: expected no negative number, got -1"),
        ([np.nan, 1, 1, 1], ValueError, "weights: expected finite numbers"),
        ([np.inf, 1, 1, 1], ValueError, "weights: expected finite numbers"),
        ("many", TypeError, "weights: expected real numbers"),
        (np.ma.masked_equal([1, 1, 0, 1], 0), TypeError, "weights: expected an array without a mask"),
    ],
)
def test_wrong_weights(weights, error, words):
    x = np.ones((4, 2, 3))
    out = np.full_like(x, 7)
    calls = [
        lambda: cbnorm.batchnorm_forward(x, axis=-1, weights=weights, out=out),
        lambda: cbnorm.batchnorm_forward(
            x, axis=-1, weights=weights, mode="test", moving_mean=np.zeros(3), moving_var=np.ones(3)
        ),
        lambda: cbnorm.moments(x, (0, 1), weights=weights),
        lambda: cbnorm.standardize(x, (0, 1), weights=weights, out=out),
        lambda: cbnorm.PopulationStats(-1).update(x, weights=weights),
        lambda: cbnorm.BatchNorm(3, axis=-1)(x, weights=weights),
        lambda: parts.moments(x, -1, weights=weights),
    ]
    for call in calls:
        with pytest.raises(error, match=words):
            call()
    assert (out == 7).all()


# Missing values


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
