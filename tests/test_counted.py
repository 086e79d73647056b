"""Weights and masks against the equations, for odd sizes, layouts, dtypes and builds; test_bits.py has the threads."""

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
