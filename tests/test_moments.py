"""`moments` over any axes, and merging, against NumPy in longdouble and the reference."""

import copy
import copyreg
import itertools
import math
import pickle

import numpy as np
import pytest
from cases import sample
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cbnorm

SHAPES = [(7,), (5, 3), (4, 3, 5), (3, 4, 2, 5), (2, 300, 3), (130, 70)]
AXES = [
    (shape, axes)
    for shape in SHAPES
    for count in range(len(shape) + 1)
    for axes in itertools.combinations(range(len(shape)), count)
]
DTYPES = [np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64]


def bits(statistics):
    """Everything that a Moments says."""
    arrays = statistics.mean, statistics.m2, statistics.mean_lo
    return statistics.count, *((array.shape, array.tobytes()) for array in arrays)


def assert_moments(got, x, axes=None, tolerance=1e-14):
    """Count, mean and m2 of x over `axes`: both to `tolerance`, the mean counted in standard deviations."""
    x = np.asarray(x, np.longdouble)
    axes = tuple(range(x.ndim)) if axes is None else axes
    if not axes:  # each number is a set of its own
        x, axes = x[np.newaxis], (0,)
    pivot = x[tuple(slice(-1, None) if axis in axes else slice(None) for axis in range(x.ndim))]
    x = x - pivot  # longdouble too loses the digits of a deviation at 1e8
    mean = x.mean(axis=axes, keepdims=True)
    m2 = np.square(x - mean).sum(axis=axes)
    mean, pivot = mean.squeeze(axes), pivot.squeeze(axes)
    assert type(got.count) is int
    assert got.count == math.prod(x.shape[axis] for axis in axes)
    for part in (got.mean, got.m2, got.mean_lo):
        assert part.dtype == np.float64
        assert part.shape == mean.shape
        assert not part.flags.writeable
    deviation = np.sqrt(m2 / max(got.count, 1))
    assert np.all(np.abs(((got.mean - pivot) - mean) + got.mean_lo) <= tolerance * deviation)
    assert np.all(np.abs(got.mean_lo) <= np.spacing(np.abs(got.mean)))
    assert np.all(np.abs(got.m2 - m2) <= tolerance * m2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axes"), AXES)
def test_every_subset_of_axes(shape, axes, dtype):
    x = sample(shape, dtype, offset=3)
    got = cbnorm.moments(x, axes)
    assert_moments(got, x, axes)
    same = [tuple(reversed(axes)), tuple(axis - len(shape) for axis in axes)]
    same += [axes[0], np.int64(axes[0] - len(shape))] if len(axes) == 1 else []
    same += [None] if len(axes) == len(shape) else []
    for axis in same:
        assert bits(cbnorm.moments(x, axis)) == bits(got)


@pytest.mark.parametrize("form", ["Fortran order", "strides", "negative strides", "byte order", "list"])
@pytest.mark.parametrize("axes", [0, 1, (0, 2), (1, 2), None])
def test_any_form_of_array(axes, form):
    x = sample((4, 3, 5))
    forms = {
        "Fortran order": np.asfortranarray(x),
        "strides": np.repeat(x, 2, axis=1)[:, ::2],
        "negative strides": x[::-1].copy()[::-1],
        "byte order": x.astype(x.dtype.newbyteorder()),
        "list": x.tolist(),
    }
    got = cbnorm.moments(forms[form], axes)
    if form == "Fortran order":  # read in the order of memory
        assert_moments(got, x, (axes,) if isinstance(axes, int) else axes)
    else:
        assert bits(got) == bits(cbnorm.moments(x, axes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_every_dtype(axes, dtype):
    x = sample((40, 30), dtype)
    before = x.tobytes()
    assert_moments(cbnorm.moments(x, axes), x, axes)
    assert x.tobytes() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_no_digit_is_lost_at_an_offset(offset, axes, dtype):
    x = sample((1000, 33), dtype, offset)
    assert_moments(cbnorm.moments(x, axes), x, axes, tolerance=1e-12)


@pytest.mark.parametrize(
    ("shape", "axes"), [((9001, 3), (0,)), ((3, 4096), (1,)), ((3, 20_000), (1,)), ((40, 3, 100), (0, 2))]
)
@pytest.mark.parametrize("far", [1e4, 1e8])
def test_a_first_number_far_from_the_rest_is_no_pivot_for_long(far, shape, axes):
    """Centred on it, a run of thousands would lose twelve bits of the sum of squares; a tile loses seven."""
    x = sample(shape)
    x[tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))] += far
    assert_moments(cbnorm.moments(x, axes), x, axes, tolerance=4e-13)


def test_numpy_axis_0_is_the_default():
    x = sample((5, 3))
    assert bits(cbnorm.moments(x)) == bits(cbnorm.moments(x, 0))


@pytest.mark.parametrize(
    ("shape", "axes", "count", "remaining"),
    [
        ((0, 3), 0, 0, (3,)),
        ((3, 0), 0, 3, (0,)),
        ((3, 0), 1, 0, (3,)),
        ((2, 0, 4), (0, 1), 0, (4,)),
        ((0,), None, 0, ()),
    ],
)
def test_no_values(shape, axes, count, remaining):
    got = cbnorm.moments(np.empty(shape), axes)
    assert got.count == count
    assert got.mean.shape == got.m2.shape == got.var().shape == remaining
    assert np.isnan(got.mean).all()
    assert (got.m2 == 0).all()
    assert (got.mean_lo == 0).all()
    assert np.isnan(got.var()).all()
    assert np.isnan(got.std()).all()


def test_a_single_number():
    got = cbnorm.moments(5.0, axis=None)
    assert (got.count, got.mean.shape, got.mean.item(), got.m2.item()) == (1, (), 5.0, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axes", [0, 1])
def test_nan_and_inf_stay_in_their_channel(axes, value):
    x = sample((70, 40))
    clean = cbnorm.moments(x, axes)
    x[5, 5] = value
    got = cbnorm.moments(x, axes)
    assert not np.isfinite(got.mean[5])
    assert np.isnan(got.m2[5])
    others = np.arange(got.mean.size) != 5
    assert got.mean[others].tobytes() == clean.mean[others].tobytes()
    assert got.m2[others].tobytes() == clean.m2[others].tobytes()


@pytest.mark.parametrize(
    ("x", "axis", "error", "words"),
    [
        (np.ones((2, 3), complex), 0, TypeError, "x: expected real numbers"),
        (["a"], 0, TypeError, "x: expected real numbers"),
        ([[1.0], [1.0, 2.0]], 0, ValueError, "x: expected an array of numbers, got list"),
        (np.ma.ones((2, 3)), 0, TypeError, "x: expected an array without a mask"),
        (5.0, 0, ValueError, "axis: expected "),
        *((np.ones((2, 3)), axis, ValueError, "axis: expected -2 to 1") for axis in (2, -3, (0, 2))),
        *((np.ones((2, 3)), axis, ValueError, "axis: expected each axis once") for axis in ((0, 0), (1, -1))),
        *((np.ones((2, 3)), axis, TypeError, "axis: expected an integer") for axis in (1.0, "0", [0], (0, None))),
    ],
)
def test_bad_input_of_moments(x, axis, error, words):
    with pytest.raises(error) as failure:
        cbnorm.moments(x, axis)
    assert str(failure.value).startswith(words)


def test_var_and_std():
    x = sample((9, 3))
    got = cbnorm.moments(x)
    for ddof in (0, 1, 2.5):
        np.testing.assert_allclose(got.var(ddof), np.var(x, axis=0, ddof=ddof), rtol=1e-14)
        np.testing.assert_allclose(got.std(ddof), np.std(x, axis=0, ddof=ddof), rtol=1e-14)
    assert got.var().tobytes() == got.var(ddof=0).tobytes()
    for ddof in (9, 10):
        assert np.isnan(got.var(ddof)).all()
        assert got.std(ddof).shape == (3,)


@pytest.mark.parametrize("ddof", [None, "1", math.nan, np.array([0, 1])])
def test_bad_ddof(ddof):
    got, gathered = cbnorm.moments(sample((9, 3))), cbnorm.PopulationStats()
    gathered.update(sample((9, 3)))
    for read in (got.var, got.std, gathered.var):
        with pytest.raises((TypeError, ValueError), match=r"^ddof: expected a number"):
            read(ddof)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
def test_merging_is_associative_within_rounding(offset):
    x = sample((60, 4), offset=offset)
    a, b, c = (cbnorm.moments(part) for part in np.split(x, [7, 40]))
    for got in ((a + b) + c, a + (b + c), (c + a) + b, sum([b, c, a])):
        assert_moments(got, x, (0,))


@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_rows_one_by_one_lose_nothing(offset):
    x = sample((20_000, 2), offset=offset)
    assert_moments(sum(cbnorm.Moments(1, row, [0, 0]) for row in x), x, (0,), tolerance=1e-13)


def test_a_million_rows_merged_two_by_two_lose_nothing():
    x = sample(2**20, offset=1e6)
    merged = cbnorm.Moments(1, x, np.zeros(x.shape))  # all at once
    while merged.mean.size > 1:
        merged = sum(
            cbnorm.Moments(merged.count, *halves)
            for halves in zip(*(np.split(part, 2) for part in (merged.mean, merged.m2, merged.mean_lo)), strict=True)
        )
    assert_moments(merged, x[:, np.newaxis], (0,))


@pytest.mark.parametrize("far", [1e6, 1e12])
@pytest.mark.parametrize("swapped", [False, True])
def test_one_far_row_costs_no_digit_of_a_large_part(far, swapped):
    x = np.concatenate([np.full((1, 3), far), sample((100_000, 3))])
    row, rest = cbnorm.moments(x[:1]), cbnorm.moments(x[1:])
    assert_moments(rest + row if swapped else row + rest, x, (0,), tolerance=1e-15)


def test_what_is_merged_normalizes_as_the_whole():
    x = sample((3000, 4), offset=1e6)
    both = sum(cbnorm.moments(part) for part in np.split(x, [1, 7, 7, 2000]))
    y = ((x - both.mean) - both.mean_lo) / both.std()
    exact = x.astype(np.longdouble) - x[0]
    exact -= exact.mean(axis=0)
    exact /= np.sqrt(np.square(exact).mean(axis=0))
    assert np.all(np.abs(y - exact) <= 1e-12 * np.maximum(1, np.abs(exact)))


def test_merging_with_nothing_changes_no_bit():
    something, nothing = cbnorm.moments(sample((60, 4))), cbnorm.moments(np.empty((0, 4)))
    before = bits(something)
    assert bits(sum([something])) == bits(sum([nothing, something, nothing])) == before
    assert bits(something + nothing) == bits(nothing + something) == bits(something) == before
    assert bits(nothing + nothing) == bits(nothing)


@settings(deadline=None, max_examples=60, database=None, derandomize=True)
@given(data=st.data(), offset=st.sampled_from([0.0, 1e6]), dtype=st.sampled_from([np.float32, np.float64]))
def test_merging_any_split_gives_the_moments_of_the_whole(data, offset, dtype):
    numbers = st.floats(-1024, 1024, width=32)
    x = data.draw(arrays(dtype, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=numbers))
    x = (x + offset).astype(dtype)
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=5).map(sorted))
    parts = [cbnorm.moments(part) for part in np.split(x, cuts)]
    while len(parts) > 1:
        first = data.draw(st.integers(0, len(parts) - 2))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]

    assert_moments(parts[0], x, (0,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_moments_pickle_and_copy_exactly(protocol):
    x = sample((60, 4), offset=1e6)
    x[0, 1], x[:, 2] = np.nan, -0.0
    got = cbnorm.moments(x)
    for twin in (pickle.loads(pickle.dumps(got, protocol)), copy.copy(got), copy.deepcopy(got)):
        assert bits(twin) == bits(got)
        assert bits(twin + got) == bits(got + got)
        assert not any(part.flags.writeable for part in (twin.mean, twin.m2, twin.mean_lo))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_version_0_1_load(protocol):
    state = [2, np.array([2.0, 3.5]), np.array([2.0, 4.5])]

    class Pickled:
        def __reduce__(self):  # what a frozen dataclass with slots wrote by itself
            return copyreg._reconstructor, (cbnorm.Moments, object, None), state

    got, want = pickle.loads(pickle.dumps(Pickled(), protocol)), cbnorm.Moments(*state)
    assert bits(got) == bits(want)
    assert bits(got + got) == bits(want + want)
    assert not any(part.flags.writeable for part in (got.mean, got.m2, got.mean_lo))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, [0.0], [0.0]), ValueError, "count: expected 0 to 9223372036854775807, got -1"),
        *(((count, [0.0], [0.0]), TypeError, "count: expected an integer") for count in (True, None, "1")),
        ((-0.5, [0.0], [0.0]), ValueError, "count: expected a number from 0 to"),
        (([1, -1], [0.0, 0.0], [0.0, 0.0]), ValueError, "count: expected no negative number, got -1"),
        (([1, 2], [0.0], [0.0]), ValueError, "count: expected the shape of mean, (1,), got (2,)"),
        ((1, "a", [0.0]), TypeError, "mean: expected real numbers"),
        ((1, [0.0], [0j]), TypeError, "m2: expected real numbers"),
        ((1, [0.0], 0.0), ValueError, "m2: expected the shape of mean, (1,), got ()"),
        ((1, [[0.0]], [0.0]), ValueError, "m2: expected the shape of mean, (1, 1), got (1,)"),
        ((1, [0.0, 0.0], [1.0, -1.0]), ValueError, "m2: expected no negative number, got -1.0"),
        ((1, [0.0], [0.0], [0.0, 0.0]), ValueError, "mean_lo: expected the shape of mean, (1,), got (2,)"),
        ((1, [0.0], [0.0], "a"), TypeError, "mean_lo: expected real numbers"),
    ],
)
def test_bad_moments(arguments, error, words):
    with pytest.raises(error) as failure:
        cbnorm.Moments(*arguments)
    assert str(failure.value).startswith(words)


def test_moments_do_not_merge_with_anything_else():
    three = cbnorm.moments(sample((5, 3)))
    with pytest.raises(ValueError, match=r"^other: expected moments of shape \(3,\), got \(4,\)$"):
        three + cbnorm.moments(sample((5, 4)))
    for other in (0, 1, 0.0, False, np.int64(0), np.zeros(3, int), np.zeros(3, object), three.mean, None):
        with pytest.raises(TypeError):
            three + other
        if type(other) is not int or other:
            with pytest.raises(TypeError):
                other + three


def test_moments_made_by_hand():
    made = cbnorm.Moments(np.int32(4), [1, 2], np.float32([3, 4]))
    assert type(made.count) is int
    assert (made.mean.dtype, made.m2.dtype) == (np.float64, np.float64)
    assert made.var().tolist() == [0.75, 1.0]
    assert made.mean_lo.tolist() == [0, 0]
    assert repr(made) == "Moments(count=4, mean=[1., 2.], m2=[3., 4.], mean_lo=[0., 0.])"
    assert cbnorm.Moments(4, [1, 2], [3, 4], [1e-17, 0]).mean_lo.tolist() == [1e-17, 0]
    with pytest.raises(AttributeError):
        made.count = 5


def test_nobody_changes_moments_from_outside():
    given = np.array([[1.0, 2.0], [3.0, 4.0], [1e-20, 0.0]])
    made = cbnorm.Moments(4, *given)
    before = bits(made)
    given[:] = 9
    assert bits(made) == before
    scalar = cbnorm.moments(sample(5), None)
    for statistics in (made, made + made, cbnorm.moments(sample((5, 3))), cbnorm.moments(np.empty((0, 3))), scalar,
                       scalar + scalar):  # fmt: skip
        for part in (statistics.mean, statistics.m2, statistics.mean_lo):
            assert type(part) is np.ndarray
            with pytest.raises(ValueError, match="read-only"):
                part[...] = 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_merging_keeps_nan_and_inf_in_their_channel_and_in_silence(value):
    x = sample((70, 4))
    a, b = x[:30].copy(), x[30:]
    a[5, 1] = value
    clean = cbnorm.moments(x[:30]) + cbnorm.moments(b)
    for got in (cbnorm.moments(a) + cbnorm.moments(b), cbnorm.moments(b) + cbnorm.moments(a)):
        assert np.isnan(got.var()[1])
        assert not np.isfinite(got.mean[1])
        np.testing.assert_allclose(np.delete(got.mean, 1), np.delete(clean.mean, 1), rtol=1e-15)
        np.testing.assert_allclose(np.delete(got.m2, 1), np.delete(clean.m2, 1), rtol=1e-14)
    assert not np.isfinite((cbnorm.moments(a) + cbnorm.moments(a)).mean[1])
