"""standardize, and the way to and from it by Moments, against the formulas in float64."""

import itertools
import tracemalloc

import numpy as np
import pytest
from cases import assert_same_bits

import cbnorm

TOLERANCE = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-12}
LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "axes exchanged": lambda x: np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1),
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
}
SHAPES = [(), (1,), (17,), (1, 3), (3, 1), (16, 33), (2, 3, 4), (5, 1, 3, 2), (0, 3), (3, 0), (31, 5)]


def numbers(shape, dtype, seed=0):
    scale = 1 if np.dtype(dtype).kind == "f" else 20
    return (np.random.default_rng(seed).normal(3, 2, shape) * scale).astype(dtype)


def truth(x, axis, ddof):
    """By the formula in float64; 0 where std is 0."""
    x = x.astype(np.float64)
    if not x.size:
        return x
    mean = x.mean(axis=axis, keepdims=True)
    degrees = x.size // mean.size - ddof
    if degrees <= 0:
        return np.full(x.shape, np.nan)
    std = np.sqrt(((x - mean) ** 2).sum(axis=axis, keepdims=True) / degrees)
    return np.where(std > 1e-12, (x - mean) / np.where(std > 0, std, 1), 0)


def all_axes(ndim):
    return [axes for count in range(ndim + 1) for axes in itertools.combinations(range(ndim), count)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*TOLERANCE, "int16", "uint8", "bool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_formula_over_any_axes(shape, dtype, layout):
    if not shape and layout in ("axes exchanged", "every other", "backwards"):
        pytest.skip("has no axes")
    x = LAYOUTS[layout](numbers(shape, dtype))
    result = dtype if dtype in TOLERANCE else "float64"
    for axis, ddof in itertools.product([*all_axes(len(shape)), None, *([-1] if shape else [])], (0, 1)):
        want = truth(x, axis, ddof)
        y, m = cbnorm.standardize(x, axis, ddof=ddof)
        assert (y.dtype, y.shape) == (result, x.shape)
        np.testing.assert_allclose(y, want, rtol=TOLERANCE[result], atol=TOLERANCE[result])
        if x.size:
            np.testing.assert_allclose(m.mean, x.mean(axis=axis, dtype=np.float64), rtol=1e-12)
            again = m.standardize(x, axis, ddof=ddof)
            np.testing.assert_allclose(again, want, rtol=TOLERANCE[result], atol=TOLERANCE[result])
        for order in "CF":
            out = np.empty(x.shape, result, order)
            assert cbnorm.standardize(x, axis, ddof=ddof, out=out)[0] is out
            np.testing.assert_allclose(out, want, rtol=TOLERANCE[result], atol=TOLERANCE[result])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("axis", [0, 1, (0, 2), (1, 2), None])
def test_in_place(kernels, num_threads, axis, dtype, order):
    x = np.array(numbers((33, 16, 5), dtype), order=order)
    y, m = cbnorm.standardize(x, axis)
    if axis != 1:  # which lies between the others: a copy is made
        assert x.strides == y.strides
    out = x.copy(order="K")
    same, of_same = cbnorm.standardize(out, axis, out=out)
    assert same is out
    assert_same_bits(out, y)
    assert_same_bits((of_same.mean, of_same.m2), (m.mean, m.m2))
    assert m.standardize(x, axis, out=x) is x
    np.testing.assert_allclose(x, y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("size", [1e-42, 3e38])
def test_in_place_where_float32_does_not_hold_the_statistics(kernels, size):
    x = np.random.default_rng(0).uniform(-1, 1, (50, 3)) * [1, size, 1]
    x[0, 1], x[1, 1] = -size, size
    x = x.astype(np.float32)
    want = truth(x, 0, 0) if size > 1 else truth(x.astype(np.float64) * 2.0**130, 0, 0)
    np.testing.assert_allclose(cbnorm.standardize(x)[0], want, atol=2e-6)
    np.testing.assert_allclose(cbnorm.standardize(x, out=x)[0], want, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_back_again(dtype, layout):
    x = LAYOUTS[layout](numbers((17, 3, 2), dtype))
    for axis in [*all_axes(3), None]:
        m = cbnorm.moments(x, axis)
        y = m.standardize(x, axis)
        back = m.unstandardize(y, axis)
        assert back.dtype == dtype
        np.testing.assert_allclose(back, x.astype(dtype), rtol=TOLERANCE[dtype], atol=8 * TOLERANCE[dtype])
        out = y.copy()
        assert m.unstandardize(out, axis, out=out) is out
        assert_same_bits(out, np.ascontiguousarray(back))
        keeping = cbnorm.moments(x, axis, keepdims=True)
        assert keeping.mean.ndim == 3
        assert_same_bits(keeping.unstandardize(y, axis), back)


def test_back_again_loses_no_digit_at_an_offset():
    x = (1e6 + np.random.default_rng(0).standard_normal((1000, 3))).astype(np.float32)
    y, m = cbnorm.standardize(x)
    assert np.abs(m.unstandardize(y).astype(np.float64) - x).max() <= np.spacing(np.float32(1e6))


def test_nanoseconds_are_centred_as_integers():
    times = np.arange(10) * 100 + 1_700_000_000_000_000_000
    y, m = cbnorm.standardize(times)
    np.testing.assert_allclose(y, (np.arange(10) - 4.5) / np.arange(10).std(), rtol=1e-15)
    assert m.var() == 82500
    y, _ = cbnorm.standardize(np.stack([times, np.arange(10)]), axis=1)
    np.testing.assert_allclose(y[0], y[1], rtol=1e-15)


def test_nan_and_infinities_stay_in_their_channel():
    x = numbers((9, 4), np.float32)
    x[2, 1], x[3, 2] = np.nan, -np.inf
    y, _ = cbnorm.standardize(x)
    assert np.isnan(y[:, 1:3]).all()
    assert_same_bits(y[:, ::3].copy(), cbnorm.standardize(x[:, ::3])[0])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1])
def test_takes_no_memory_but_that_of_its_result(order, axis):
    x = np.array(numbers((2000, 1000), np.float32), order=order)
    out = np.empty_like(x)
    tracemalloc.start()
    try:
        for call in (
            lambda: cbnorm.standardize(x, axis, out=out),
            lambda: cbnorm.moments(x, axis).unstandardize(x, axis, out=out),
            lambda: cbnorm.standardize(out, axis, out=out),
            lambda: cbnorm.standardize(x.T[::-1].T, axis, out=out),  # not readable as it is
        ):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            assert tracemalloc.get_traced_memory()[1] - before < 0.1 * x.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": "text"}, TypeError, "x: expected real numbers"),
        ({"axis": 2}, ValueError, "axis: expected -2 to 1"),
        ({"axis": (0, -2)}, ValueError, "axis: expected each axis once"),
        ({"axis": "rows"}, TypeError, "axis: expected"),
        ({"ddof": "1"}, TypeError, "ddof: expected"),
        ({"out": np.empty((4, 2))}, TypeError, "out: expected dtype float32"),
        ({"out": np.empty((4, 3), np.float32)}, ValueError, r"out: expected shape \(4, 2\)"),
        ({"out": np.empty((8, 2), np.float32)[::2]}, ValueError, "out: expected an aligned and writeable array"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words):
    right = {"x": np.ones((4, 2), np.float32)}
    with pytest.raises(error, match=f"^{words}"):
        cbnorm.standardize(**right | arguments)


def test_an_overlapping_out_is_refused():
    memory = np.arange(20, dtype=np.float32)
    with pytest.raises(ValueError, match="out: expected memory of its own or x itself"):
        cbnorm.standardize(memory[:16].reshape(8, 2), out=memory[4:].reshape(8, 2))
    np.testing.assert_array_equal(memory, np.arange(20))


def test_moments_that_do_not_fit_are_refused():
    m = cbnorm.moments(np.ones((4, 3)))
    for function in (m.standardize, m.unstandardize):
        with pytest.raises(ValueError, match=r"expected shape \(3,\) without axis 0, the shape of mean, got \(4, 2\)"):
            function(np.ones((4, 2)))
    with pytest.raises(ValueError, match="count of at least 1"):
        cbnorm.moments(np.ones((0, 3))).standardize(np.ones((1, 3)))
