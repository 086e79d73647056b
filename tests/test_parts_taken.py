"""What the steps of batch normalization take and refuse, and the sums that they hand over."""

import copy
import pickle

import numpy as np
import pytest
from cases import assert_same_bits

import cbnorm
from cbnorm import parts
from cbnorm.parts import GradientSums

X = np.arange(6.0).reshape(2, 3)
M, S = cbnorm.Moments(4, [1, 2, 3], [1, 1, 0]), GradientSums(4, [1, 2, 3], [1, 2, 3])
CALLS = {
    "normalize": lambda x=X, moments=M, **options: parts.normalize(x, moments, **options),
    "gradient_sums": lambda x=X, moments=M, dout=X, **options: parts.gradient_sums(dout, x, moments, **options),
    "input_gradient": lambda x=X, moments=M, dout=X, sums=S, **options: parts.input_gradient(
        dout, x, moments, sums, **options
    ),
}
ALL, DIFFERENTIATE, HAVE_OUT = list(CALLS), ["gradient_sums", "input_gradient"], ["normalize", "input_gradient"]
BAD = [
    (ALL, {"x": np.ones(3)}, ValueError, "x: expected at least 2 dimensions, got shape (3,)"),
    (ALL, {"x": X * 1j}, TypeError, "x: expected real numbers"),
    (ALL, {"x": np.ma.ones((2, 3))}, TypeError, "x: expected an array without a mask"),
    (ALL, {"axis": 2}, ValueError, "axis: expected -2 to 1 for 2 dimensions, got 2"),
    (ALL, {"axis": 1.0}, TypeError, "axis: expected an integer, got 1.0"),
    (ALL, {"eps": -1.0}, ValueError, "eps: expected a number from 0 to 1.79769e+308, got -1.0"),
    (ALL, {"moments": [1, 2, 3]}, TypeError, "moments: expected Moments, got list"),
    (ALL, {"moments": None}, TypeError, "moments: expected Moments, got NoneType"),
    (ALL, {"moments": S}, TypeError, "moments: expected Moments, got GradientSums"),
    (ALL, {"moments": cbnorm.Moments(4, 0, 0)}, ValueError, "moments: expected shape (3,), got ()"),
    (ALL, {"axis": 0}, ValueError, "moments: expected shape (2,), got (3,)"),
    (
        ALL,
        {"moments": cbnorm.Moments(0, [0, 0, 0], [0, 0, 0])},
        ValueError,
        "moments: expected a count of at least 1 for x of shape (2, 3), got 0",
    ),
    (DIFFERENTIATE, {"dout": X.T}, ValueError, "dout: expected shape (2, 3), got (3, 2)"),
    (DIFFERENTIATE, {"dout": None}, TypeError, "dout: expected real numbers"),
    (["input_gradient"], {"sums": M}, TypeError, "sums: expected GradientSums, got Moments"),
    (["input_gradient"], {"sums": GradientSums(4, [1], [1])}, ValueError, "sums: expected shape (3,), got (1,)"),
    # What was not merged, or belongs to other values.
    *(
        (
            ["input_gradient"],
            {"x": X[:rows], "dout": X[:rows], "sums": GradientSums(count, *np.zeros((2, 3)))},
            ValueError,
            f"sums: expected the count of moments, 4, got {count}",
        )
        for rows in (0, 2)
        for count in (0, 2, 8)
    ),
    (
        ["input_gradient"],
        {"moments": cbnorm.Moments(2, [1, 2, 3], [1, 1, 0])},
        ValueError,
        "sums: expected the count of moments, 2, got 4",
    ),
    (HAVE_OUT, {"gamma": [1, 2]}, ValueError, "gamma: expected shape (3,), got (2,)"),
    (["normalize"], {"beta": [1, 2]}, ValueError, "beta: expected shape (3,), got (2,)"),
    (HAVE_OUT, {"out": [1]}, TypeError, "out: expected an array without a mask, got list"),
    (HAVE_OUT, {"out": np.empty((3, 2))}, ValueError, "out: expected shape (2, 3), got (3, 2)"),
    (HAVE_OUT, {"out": np.empty((2, 3), np.float32)}, TypeError, "out: expected dtype float64, got float32"),
    (HAVE_OUT, {"out": np.empty((3, 2)).T}, ValueError, "out: expected a C-contiguous"),
]


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [(name, *bad) for names, *bad in BAD for name in names],
)
def test_bad_arguments(name, change, error, words):
    with pytest.raises(error) as failure:
        CALLS[name](**change)
    assert str(failure.value).startswith(words)


@pytest.mark.parametrize(
    ("x", "axis", "error", "words"),
    [
        (np.ones(3), 1, ValueError, "x: expected at least 2 dimensions, got shape (3,)"),
        (None, 1, TypeError, "x: expected real numbers"),
        (X, 2, ValueError, "axis: expected -2 to 1 for 2 dimensions, got 2"),
        (X, None, TypeError, "axis: expected an integer, got None"),
    ],
)
def test_bad_arguments_of_moments(x, axis, error, words):
    with pytest.raises(error) as failure:
        parts.moments(x, axis)
    assert str(failure.value).startswith(words)


def test_results_overlap_no_input_but_one():
    memory = np.arange(12.0)
    x, dout, shifted = memory[:6].reshape(2, 3), np.ones((2, 3)), memory[3:9].reshape(2, 3)
    before = memory.copy()
    for name, change, words in (
        ("normalize", {"x": x, "out": shifted}, "out: expected memory of its own or x itself, got some of x"),
        (
            "normalize",
            {"gamma": memory[:3], "out": x},
            "out: expected memory of its own or x itself, got some of gamma",
        ),
        ("normalize", {"beta": memory[:3], "out": x}, "out: expected memory of its own or x itself, got some of beta"),
        ("input_gradient", {"x": x, "out": x}, "out: expected memory of its own or dout itself, got some of x"),
        (
            "input_gradient",
            {"dout": x, "out": shifted},
            "out: expected memory of its own or dout itself, got some of dout",
        ),
        (
            "input_gradient",
            {"dout": x, "out": x, "gamma": memory[:3]},
            "out: expected memory of its own or dout itself, got some of gamma",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{words}$"):
            CALLS[name](**{"x": X, "dout": dout, **change} if name == "input_gradient" else change)
        np.testing.assert_array_equal(memory, before)


# GradientSums


def test_sums_add_up():
    a, b, c = GradientSums(2, [1, 2], [3, 4]), GradientSums(0, [0, 0], [0, 0]), GradientSums(np.int8(1), [5, 6], [7, 8])
    for total in (a + b + c, sum([a, b, c]), sum([c, b, a])):
        assert type(total.count) is int
        assert (total.count, total.dout.tolist(), total.dout_xhat.tolist()) == (3, [6, 8], [10, 12])
    assert sum([a]) is a
    infinite = GradientSums(1, [np.inf, 1], [-np.inf, 1]) + GradientSums(1, [-np.inf, 1], [np.nan, 1])
    assert np.isnan([infinite.dout[0], infinite.dout_xhat[0]]).all()
    assert (infinite.dout[1], infinite.dout_xhat[1]) == (2, 2)
    with pytest.raises(ValueError, match=r"^other: expected sums of shape \(2,\), got \(1,\)$"):
        a + GradientSums(1, [1], [1])
    for other in (0, 1, None, M, a.dout, np.zeros(2, int)):
        with pytest.raises(TypeError):
            a + other


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, [0.0], [0.0]), ValueError, "count: expected 0 to 9223372036854775807, got -1"),
        ((-0.5, [0.0], [0.0]), ValueError, "count: expected a number from 0 to"),
        ((1, "a", [0.0]), TypeError, "dout: expected real numbers"),
        ((1, [0.0], [0j]), TypeError, "dout_xhat: expected real numbers"),
        ((1, [0.0], [0.0, 1.0]), ValueError, "dout_xhat: expected the shape of dout, (1,), got (2,)"),
    ],
)
def test_bad_sums(arguments, error, words):
    with pytest.raises(error) as failure:
        GradientSums(*arguments)
    assert str(failure.value).startswith(words)


def test_nobody_changes_sums_from_outside():
    given = np.ones((2, 3))
    made = GradientSums(2, *given)
    given[:] = 9
    assert made.dout.tolist() == made.dout_xhat.tolist() == [1, 1, 1]
    with pytest.raises(AttributeError):
        made.count = 5
    for sums in (made, made + made, parts.gradient_sums(X, X, M)):
        for array in (sums.dout, sums.dout_xhat):
            assert array.dtype == np.float64
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 9


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_sums_pickle_and_copy_exactly(protocol):
    made = GradientSums(2, [1 / 3, np.nan], [-0.0, 1e300])
    for twin in (pickle.loads(pickle.dumps(made, protocol)), copy.copy(made), copy.deepcopy(made)):
        assert twin.count == made.count
        assert_same_bits([twin.dout, twin.dout_xhat], [made.dout, made.dout_xhat])
        assert not twin.dout.flags.writeable
