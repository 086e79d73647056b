"""The steps of batch normalization: alone its functions to the bit, and merged between parts those of the whole."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cases import (
    DTYPES,
    LARGE_COLUMNS,
    LARGE_PLANES,
    SMALL_COLUMNS,
    SMALL_PLANES,
    assert_same_bits,
    batch,
    check,
    make_case,
    odd_shapes,
    random_arrays,
    truth,
)

import cbnorm
from cbnorm import parts
from cbnorm.parts import GradientSums

# Name: the channel axis, and the shape of so many samples.
LAYOUTS = {
    "(N, C)": (1, lambda samples: (samples, 5)),
    "NCHW": (1, lambda samples: (samples, 5, 3, 4)),
    "NHWC": (-1, lambda samples: (samples, 3, 4, 5)),
}
# Samples in each part.
SPLITS = {
    "even": (20, 20),
    "uneven": (37, 3),
    "one row": (1, 39),
    "an empty part": (0, 30, 10),
    "many": (1, 0, 7, 1, 16, 0, 2, 13),
    "single rows": (1,) * 40,
}
every_layout = pytest.mark.parametrize(("axis", "make_shape"), LAYOUTS.values(), ids=LAYOUTS)
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def steps(ranks, douts, gamma, beta, eps, axis):
    """Each rank's y and dx, and what all have merged, as ranks do that send each other moments and sums."""
    merged = sum(parts.moments(x, axis) for x in ranks)
    ys = [parts.normalize(x, merged, gamma, beta, eps, axis=axis) for x in ranks]
    both = list(zip(douts, ranks, strict=True))
    sums = sum(parts.gradient_sums(*each, merged, eps, axis=axis) for each in both)
    dxs = [parts.input_gradient(*each, merged, sums, gamma, eps, axis=axis) for each in both]
    return merged, ys, sums, dxs


def in_ranks(split, axis):
    """Batch normalization in training whose samples lie in parts: called as `batch` of the shared cases."""
    cuts = np.cumsum(split)[:-1]

    def forward(x, gamma=None, beta=None, eps=1e-5):
        ranks = np.split(x, cuts)
        ys = steps(ranks, ranks, gamma, beta, eps, axis)[1]
        return np.concatenate(ys), (ranks, gamma, beta, eps)

    def backward(dout, cache):
        ranks, *parameters = cache
        _, _, sums, dxs = steps(ranks, np.split(dout, cuts), *parameters, axis)
        return np.concatenate(dxs), sums.dout_xhat.astype(dout.dtype), sums.dout.astype(dout.dtype)

    return replace(batch(axis), forward=forward, backward=backward)


@every_dtype
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@every_split
@every_layout
def test_ranks_together_are_the_whole(axis, make_shape, split, offset, dtype):
    norm = in_ranks(split, axis)
    x, dout, parameters = make_case(norm, make_shape(sum(split)), dtype, offset)
    check(norm, x, dout, parameters)

    merged = sum(parts.moments(each, axis) for each in np.split(x, np.cumsum(split)[:-1]))
    columns = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(np.longdouble)
    columns -= columns[-1]
    deviations = columns - columns.mean(axis=0)
    std = np.sqrt(np.square(deviations).mean(axis=0))
    last = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])[-1]
    assert merged.count == len(columns)
    assert np.all(np.abs(((merged.mean - last) - columns.mean(axis=0)) + merged.mean_lo) <= 1e-12 * std)
    assert np.all(np.abs(merged.std() - std) <= 1e-12 * std)


@every_dtype
@every_layout
def test_parts_of_different_shapes_are_the_whole(axis, make_shape, dtype):
    """Images of other sizes: what is merged knows only how many values there were."""
    shapes = [make_shape(4), make_shape(3), make_shape(0)]
    if len(shapes[0]) == 4:
        shapes.append((2, 5, 1, 7) if axis == 1 else (2, 1, 7, 5))
    ranks, douts = ([values.astype(dtype) for values in random_arrays(*shapes, seed=seed)] for seed in (0, 1))
    merged, ys, sums, dxs = steps(ranks, douts, None, None, 1e-5, axis)
    as_rows = [
        np.concatenate([np.moveaxis(each, axis, -1).reshape(-1, 5) for each in arrays])
        for arrays in (ranks, ys, douts, dxs)
    ]
    norm = batch()
    x, y, dout, dx = as_rows
    same = replace(
        norm,
        forward=lambda x, *parameters, eps: (y, None),
        backward=lambda dout, cache: (dx, sums.dout_xhat.astype(dtype), sums.dout.astype(dtype)),
    )
    check(same, x, dout, [])
    assert merged.count == len(x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_dtype
@every_layout
def test_nan_in_one_part_reaches_its_channel_in_all_parts_and_no_other(axis, make_shape, dtype, value):
    norm = batch(axis)
    x, dout, (gamma, beta) = make_case(norm, make_shape(9), dtype)
    split = [4]
    clean = steps(np.split(x, split), np.split(dout, split), gamma, beta, 1e-5, axis)
    np.moveaxis(x, axis, -1)[1, ..., 2] = value
    got = steps(np.split(x, split), np.split(dout, split), gamma, beta, 1e-5, axis)
    for arrays, unharmed in zip((got[1], got[3]), (clean[1], clean[3]), strict=True):
        for array, want in zip(arrays, unharmed, strict=True):
            assert np.isnan(np.take(array, 2, axis)).all()
            assert_same_bits(np.delete(array, 2, axis), np.delete(want, 2, axis))
    for record, want, names in ((got[0], clean[0], ("mean", "m2", "mean_lo")), (got[2], clean[2], ("dout_xhat",))):
        for name in names:
            array = getattr(record, name)
            assert name == "mean_lo" or not np.isfinite(array[2])
            assert_same_bits(np.delete(array, 2), np.delete(getattr(want, name), 2))
    assert_same_bits(got[2].dout, clean[2].dout)  # dbeta has nothing to do with x


def assert_steps_are_the_functions(x, dout, parameters, axis, eps=1e-5):
    """All results of the four steps with nothing merged, to the bit."""
    gamma, beta = parameters
    y, cache, *_ = cbnorm.batchnorm_forward(x, gamma, beta, eps, axis=axis)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    merged, ys, sums, dxs = steps([x], [dout], gamma, beta, eps, axis)
    assert_same_bits([*ys, *dxs], [y, dx])
    assert_same_bits([sums.dout_xhat.astype(dgamma.dtype), sums.dout.astype(dbeta.dtype)], [dgamma, dbeta])
    others = tuple(number for number in range(x.ndim) if number != axis % x.ndim)
    assert merged.count == sums.count == math.prod(x.shape[number] for number in others)
    if merged.count:
        assert_same_bits(merged.mean, cache.mean)
    of_axes = cbnorm.moments(x, others)
    assert_same_bits([merged.mean, merged.mean_lo, merged.m2], [of_axes.mean, of_axes.mean_lo, of_axes.m2])


@every_dtype
@pytest.mark.parametrize(
    ("axis", "make_shape"), (SMALL_COLUMNS | SMALL_PLANES).values(), ids=SMALL_COLUMNS | SMALL_PLANES
)
def test_with_nothing_merged_they_are_batch_normalization_to_the_bit(axis, make_shape, dtype):
    for shape in odd_shapes(make_shape):
        for offset in (0.0, 1e6):
            x, dout, parameters = make_case(batch(axis), shape, dtype, offset)
            assert_steps_are_the_functions(x, dout, parameters, axis)
        assert_steps_are_the_functions(x, dout, (None, None), axis, eps=0.0)


@every_dtype
@pytest.mark.parametrize(("axis", "shape"), (LARGE_COLUMNS | LARGE_PLANES).values(), ids=LARGE_COLUMNS | LARGE_PLANES)
def test_of_large_arrays_too_on_each_build_and_number_of_threads(axis, shape, dtype, num_threads, kernels):
    assert_steps_are_the_functions(*make_case(batch(axis), shape, dtype), axis)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint16, np.int64, np.bool_])
@every_layout
def test_of_the_dtypes_that_are_computed_in_another(axis, make_shape, dtype):
    x, dout, parameters = make_case(batch(axis), make_shape(33), np.float64)
    x = np.abs(x * 10) % 2 if dtype is np.bool_ else np.abs(x * 10) % 127
    assert_steps_are_the_functions(x.astype(dtype), dout, parameters, axis)


@pytest.mark.parametrize("form", ["Fortran order", "strides", "byte order", "list"])
@every_layout
def test_any_form_of_array(axis, make_shape, form):
    x, dout, parameters = make_case(batch(axis), make_shape(9), np.float64)
    forms = {
        "Fortran order": np.asfortranarray,
        "strides": lambda values: np.repeat(values, 2, axis=0)[::2],
        "byte order": lambda values: values.astype(values.dtype.newbyteorder()),
        "list": np.ndarray.tolist,
    }
    made = [forms[form](values) for values in (x, dout)]
    want = steps([x], [dout], *parameters, 1e-5, axis)
    got = steps([made[0]], [made[1]], *(forms["list"](each) for each in parameters), 1e-5, axis)
    assert_same_bits([*got[1], *got[3], got[2].dout_xhat], [*want[1], *want[3], want[2].dout_xhat])


@every_layout
def test_inputs_are_not_changed(axis, make_shape):
    arrays = random_arrays(make_shape(7), make_shape(7), (5,), (5,))
    before = [array.tobytes() for array in arrays]
    x, dout, gamma, beta = arrays
    steps([x[:3], x[3:]], [dout[:3], dout[3:]], gamma, beta, 1e-5, axis)
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@every_layout
def test_results_go_where_out_says(axis, make_shape, dtype):
    x, dout = (values.astype(dtype) for values in random_arrays(make_shape(7), make_shape(7)))
    merged = parts.moments(x, axis)
    sums = parts.gradient_sums(dout, x, merged, axis=axis)
    y, dx = parts.normalize(x, merged, axis=axis), parts.input_gradient(dout, x, merged, sums, axis=axis)
    same = dout.copy()
    for given, out in ((dout, np.empty_like(x)), (same, same)):
        assert parts.input_gradient(given, x, merged, sums, axis=axis, out=out) is out
        assert_same_bits(out, dx)
    for out in (np.empty_like(x), x):
        assert parts.normalize(x, merged, axis=axis, out=out) is out
        assert_same_bits(out, y)


@every_dtype
@pytest.mark.parametrize(("axis", "shape"), [(1, (0, 3)), (1, (0, 3, 4)), (-1, (0, 4, 3)), (1, (2, 3, 0))])
def test_an_empty_part_and_an_empty_whole(axis, shape, dtype):
    empty = np.empty(shape, dtype)
    nothing = parts.moments(empty, axis)
    assert nothing.count == 0
    assert np.isnan(nothing.mean).all()
    others = cbnorm.Moments(4, [1, 2, 3], [1, 1, 0]), GradientSums(4, [1, 2, 3], [1, 2, 3])
    for merged, of_others in ((nothing, GradientSums(0, [0] * 3, [0] * 3)), others):
        y = parts.normalize(empty, merged, [1, 2, 3], axis=axis)
        sums = parts.gradient_sums(empty, empty, merged, axis=axis)
        assert (sums.count, sums.dout.tolist(), sums.dout_xhat.tolist()) == (0, [0, 0, 0], [0, 0, 0])
        dx = parts.input_gradient(empty, empty, merged, sums + of_others, axis=axis)
        for array in (y, dx):
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert parts.moments(np.empty((3, 0))).count == 3


@every_dtype
def test_one_value_a_channel_gives_beta_and_no_gradient(dtype):
    x, dout = (values.astype(dtype) for values in random_arrays((1, 3), (1, 3)))
    merged = parts.moments(x) + parts.moments(x[:0])
    sums = parts.gradient_sums(dout, x, merged) + parts.gradient_sums(x[:0], x[:0], merged)
    assert parts.normalize(x, merged, [5, 5, 5], [1, 2, 3]).tolist() == [[1, 2, 3]]
    assert parts.input_gradient(dout, x, merged, sums).tolist() == [[0, 0, 0]]
    assert_same_bits(sums.dout, dout[0].astype(float))


def test_the_count_of_the_gradient_is_that_of_all_parts():
    x, dout = random_arrays((6, 3), (6, 3))
    merged = parts.moments(x)
    sums = parts.gradient_sums(dout, x, merged)
    want = parts.input_gradient(dout, x, merged, sums)
    twice = parts.input_gradient(dout, x, merged + merged, sums + sums)
    np.testing.assert_allclose(twice, want, rtol=0, atol=1e-14)
    hundredfold = cbnorm.Moments(600, merged.mean, 100 * merged.m2, merged.mean_lo)
    many = parts.input_gradient(dout, x, hundredfold, GradientSums(600, sums.dout, sums.dout_xhat))
    inv_std, xhat = 1 / np.sqrt(merged.var() + 1e-5), parts.normalize(x, merged)
    np.testing.assert_allclose(many, inv_std / 600 * (600 * dout - xhat * sums.dout_xhat - sums.dout), atol=1e-14)


def test_float32_sums_leave_in_float64():
    """Merged in float32 they would lose what one part is sure of."""
    x, dout, _ = make_case(batch(), (1000, 3), np.float32)
    sums = parts.gradient_sums(dout, x, parts.moments(x))
    assert np.any(sums.dout_xhat != sums.dout_xhat.astype(np.float32))
    np.testing.assert_allclose(sums.dout, truth(dout).sum(axis=0), rtol=0, atol=1e-5)
