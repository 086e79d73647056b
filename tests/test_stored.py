"""float16, bfloat16 and integers are storage: the results are those of float32, or float64, rounded once."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from cases import SMALL_AND_LARGE, assert_same_bits, make_case, sample

import cbnorm
from cbnorm import parts

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.bool_, np.int32, np.uint32, np.int64]


def rounded(arrays, dtype):
    """What a computation in float32 gives, in the dtype of the arrays that are as large as x."""
    y, *others = arrays
    return [y.astype(dtype), *others]


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_float32_rounded_once(kernels, dtype, name):
    norm, shape = SMALL_AND_LARGE[name]
    x, dout, parameters = make_case(norm, shape, np.float32)
    x, dout = x.astype(dtype), dout.astype(dtype)
    wide_x, wide_dout = x.astype(np.float32), dout.astype(np.float32)
    y, cache, *moving = norm.forward(x, *parameters)
    want, want_cache, *want_moving = norm.forward(wide_x, *parameters)
    assert_same_bits([y, *moving], rounded([want, *want_moving], dtype))
    want = rounded(norm.backward(wide_dout, want_cache), dtype)
    for given in (dout, wide_dout):
        assert_same_bits(norm.backward(given, cache), want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_do_not_depend_on_threads(num_threads, dtype):
    with cbnorm.threads(num_threads):
        for shape in ((4099, 67), (5, 9, 6151), (401, 768)):
            x = sample(shape, dtype, 3)
            got = cbnorm.batchnorm_forward(x)[0], cbnorm.layernorm_forward(x)[0]
            wide = x.astype(np.float32)
            want = cbnorm.batchnorm_forward(wide)[0], cbnorm.layernorm_forward(wide)[0]
            assert_same_bits(got, [each.astype(dtype) for each in want])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_and_written_as_it_is(kernels, dtype):
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    moving = {"moving_mean": np.zeros(every.size), "moving_var": np.ones(every.size)}
    y = cbnorm.batchnorm_forward(every[np.newaxis], **moving, eps=0.0, mode="test")[0][0]
    np.testing.assert_array_equal(y.astype(np.float32), every.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_rounded_to_nearest_even(kernels, dtype):
    wide = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halfway = (np.arange(65535, dtype=np.uint32) * 2 + 1) << 15  # of bfloat16, and near the largest float16
    wide = np.concatenate([wide, halfway.view(np.float32), np.float32([65504, 65519, 65520, 65536, 2e-8, 3e-8, 6e-8])])
    wide = wide[np.isfinite(wide)]
    with np.errstate(over="ignore"):
        want = wide.astype(dtype)
    moving = {"moving_mean": np.zeros(wide.size), "moving_var": np.ones(wide.size)}
    x = np.zeros((1, wide.size), dtype)
    got = cbnorm.batchnorm_forward(x, None, wide, **moving, mode="test")[0][0]
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_that_are_not_finite_or_not_in_order(dtype):
    x = sample((6, 4, 5), np.float32).astype(dtype)
    x[0, 1, 0], x[1, 2, 0] = np.nan, np.inf
    y = cbnorm.batchnorm_forward(x)[0]
    assert np.isnan(y[:, 1:3].astype(np.float32)).all()
    assert np.isfinite(y[:, [0, 3]].astype(np.float32)).all()
    other = np.asfortranarray(x)[:, ::-1]
    assert_same_bits(cbnorm.batchnorm_forward(other)[0], cbnorm.batchnorm_forward(np.ascontiguousarray(other))[0])
    assert_same_bits(cbnorm.standardize(np.full((5, 2), 3, dtype))[0], np.zeros((5, 2), dtype))
    m = cbnorm.moments(x, nan_policy="omit")
    assert m.count[1, 0] == 5


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_in_place_weighted_and_in_parts(dtype):
    x = sample((70, 30), np.float32, 2).astype(dtype)
    dout = sample((70, 30), np.float32, seed=1).astype(dtype)
    weights = np.random.default_rng(0).random(70)
    y, cache, *_ = cbnorm.batchnorm_forward(x, weights=weights)
    want, want_cache, *_ = cbnorm.batchnorm_forward(x.astype(np.float32), weights=weights)
    assert_same_bits(y, want.astype(dtype))
    want = cbnorm.batchnorm_backward(dout.astype(np.float32), want_cache)[0].astype(dtype)
    assert_same_bits(cbnorm.batchnorm_backward(dout, cache)[0], want)
    same = dout.copy()
    assert cbnorm.batchnorm_backward(same, cache, out=same)[0] is same
    assert_same_bits(same, want)
    place = x.copy()
    y, _ = cbnorm.standardize(x)
    cbnorm.standardize(place, out=place)
    assert_same_bits(place, y)
    whole = parts.moments(x[:20]) + parts.moments(x[20:])
    sums = parts.gradient_sums(dout, x, whole)
    wide = x.astype(np.float32), dout.astype(np.float32)
    assert_same_bits(sums.dout_xhat, parts.gradient_sums(wide[1], wide[0], whole).dout_xhat)
    want = parts.input_gradient(wide[1], wide[0], whole, sums).astype(dtype)
    assert_same_bits(parts.input_gradient(dout, x, whole, sums), want)


@pytest.mark.parametrize("shape", [(50, 7), (3, 4, 50), (4000, 3), (2, 300, 11)])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_read_where_they_are(kernels, dtype, shape):
    x = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 100, shape).astype(dtype)
    wide = x.astype(np.float64)
    for function in (cbnorm.batchnorm_forward, cbnorm.layernorm_forward, cbnorm.standardize):
        got, want = function(x), function(wide)
        assert_same_bits(got[0], want[0])
        single = np.empty(shape, np.float32)
        assert function(x, out=single)[0] is single
        np.testing.assert_allclose(single, want[0], rtol=0, atol=2e-6 * np.abs(want[0]).max())
    y, cache, *_ = cbnorm.batchnorm_forward(x)
    want_y, want_cache, *_ = cbnorm.batchnorm_forward(wide)
    assert_same_bits(cbnorm.batchnorm_backward(y, cache), cbnorm.batchnorm_backward(want_y, want_cache))
    assert_same_bits(cbnorm.moments(x).m2, cbnorm.moments(wide).m2)


@pytest.mark.parametrize("dtype", [*HALVES, np.dtype(np.uint8)], ids=str)
def test_no_memory_is_taken_but_the_results(dtype):
    x = np.zeros((64, 128, 128, 3), np.uint8) + np.arange(3, dtype=np.uint8)
    x = x.astype(dtype)
    out = np.empty(x.shape, np.float32 if dtype == np.uint8 else dtype)
    cbnorm.standardize(x, (0, 1, 2), out=out)
    tracemalloc.start()
    try:
        cbnorm.standardize(x, (0, 1, 2), out=out)
        cbnorm.batchnorm_forward(x, axis=-1, out=out)
        cbnorm.groupnorm_forward(x, None, None, 3, axis=-1, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_what_float16_cannot_hold_is_infinite_and_nothing_warns():
    x = np.float16([[1], [-1]])
    with np.errstate(all="raise"):
        y = cbnorm.batchnorm_forward(x, [1e6], eps=0.0)[0]
    assert_same_bits(y, np.float16([[np.inf], [-np.inf]]))


def test_layers_keep_bfloat16():
    x = sample((8, 6), np.float32).astype(HALVES[1])
    for layer in (cbnorm.BatchNorm(6), cbnorm.LayerNorm(6), cbnorm.GroupNorm(2, 6), cbnorm.RMSNorm(6)):
        y = layer(x)
        assert y.dtype == x.dtype
        assert layer.backward(y).dtype == x.dtype
        assert layer.grads["gamma"].dtype == np.float32


def test_in_place_where_only_x_is_stored_otherwise():
    x = np.random.default_rng(0).integers(0, 256, (9, 70), np.uint8)
    dout = sample(x.shape, np.float32)
    for function, backward in (
        (cbnorm.layernorm_forward, cbnorm.layernorm_backward),
        (cbnorm.batchnorm_forward, cbnorm.batchnorm_backward),
    ):
        cache = function(x, out=np.empty(x.shape, np.float32))[1]
        want = backward(dout, cache)[0]
        same = dout.copy()
        assert backward(same, cache, out=same)[0] is same
        assert_same_bits(same, want)


def test_a_bool_is_any_byte_but_0():
    x = np.array([[2, 0], [0, 255], [7, 1]], np.uint8).view(np.bool_)
    np.testing.assert_allclose(cbnorm.moments(x).mean, [2 / 3, 2 / 3], rtol=1e-15)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_is_standardized_leads_back(dtype):
    x = np.array([[1, 10], [3, 30], [5, 20]], np.float32).astype(dtype)
    y, m = cbnorm.standardize(x)
    back = m.unstandardize(y)
    assert back.dtype == dtype
    np.testing.assert_allclose(back.astype(np.float64), x.astype(np.float64), rtol=0.01)
    assert_same_bits(m.standardize(x), y)
