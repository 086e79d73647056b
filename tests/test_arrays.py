"""What the functions refuse, with words about the argument, and nothing changed."""

import numpy as np
import pytest
from arguments import INF, NAN, SHAPE, arrays_in, bits, make_arguments, make_dout, read_only, unaligned
from cases import MODES, assert_same_bits

import cbnorm


def refused(function, arguments, name, error, words):
    """Call `function`: it raises an error about the argument `name`, and no array changes."""
    before = [bits(value) for value in arrays_in(arguments)]
    with pytest.raises(error) as failure:
        function(**arguments)
    assert failure.type is error
    assert str(failure.value).startswith(f"{name}: expected ")
    assert words in str(failure.value)
    assert [bits(value) for value in arrays_in(arguments)] == before


def sharing(name):
    """An `out` of which one number belongs to the argument `name`, which moves there."""

    def place(arguments):
        values, size = arguments[name], np.prod(SHAPE)
        memory = np.zeros(size + values.size - 1)
        arguments[name] = memory[size - 1 :].reshape(values.shape)
        arguments[name][...] = values
        return memory[:size].reshape(SHAPE)

    return place


def sharing_cached(name):
    """An `out` of which one number belongs to x of the forward call."""

    def place(arguments):
        forward = make_arguments()
        out = sharing(name)(forward)
        arguments["cache"] = cbnorm.batchnorm_forward(**forward, mode=arguments["cache"].mode)[1]
        return out

    return place


def not_numbers(name):
    """Rows of a table of bad calls: values of `name` that have the right shape and the wrong type."""
    rows = [
        (name, lambda given: given[name].astype(complex), TypeError, "got dtype complex128"),
        (name, lambda given: given[name].astype(object), TypeError, "got dtype object"),
        (name, lambda given: given[name].astype(str), TypeError, "got dtype <U32"),
        (name, lambda given: given[name].astype(bytes), TypeError, "got dtype |S32"),
        (name, lambda given: given[name].astype("datetime64[s]"), TypeError, "got dtype datetime64[s]"),
        (name, lambda given: given[name].astype("timedelta64[s]"), TypeError, "got dtype timedelta64[s]"),
        (
            name,
            lambda given: given[name].astype([("field", float)]),
            TypeError,
            "got dtype [('field', '<f8')]",
        ),
        (name, lambda given: np.ma.array(given[name], mask=given[name] > 0), TypeError, "got a masked array"),
        (name, [[1.0], [1.0, 2.0]], ValueError, "got list"),
        (name, "numbers", TypeError, "got dtype <U7"),
        (name, {"a": 1.0}, TypeError, "got dtype object"),
    ]
    if np.dtype(np.longdouble).itemsize > 8:
        rows.append((name, lambda given: given[name].astype(np.longdouble), TypeError, "got dtype float128"))
    return rows


def bad_out(partly):
    """Rows for `out`: wrong type, shape, dtype or place; `partly` makes those that share memory."""
    return [
        ("out", [[0.0] * 3] * 4, TypeError, "got list"),
        ("out", np.ma.zeros(SHAPE), TypeError, "got MaskedArray"),
        ("out", np.zeros(3), ValueError, "expected shape (4, 3), got (3,)"),
        ("out", np.zeros((3, 4)), ValueError, "expected shape (4, 3), got (3, 4)"),
        ("out", np.zeros(SHAPE, np.float32), TypeError, "expected dtype float64, got float32"),
        ("out", np.zeros(SHAPE, np.int64), TypeError, "expected dtype float64, got int64"),
        ("out", np.zeros(SHAPE, ">f8"), TypeError, "expected dtype float64, got >f8"),
        ("out", np.zeros(SHAPE, order="F"), ValueError, "got strides (8, 32)"),
        ("out", np.zeros((4, 6))[:, ::2], ValueError, "got strides (48, 16)"),
        ("out", np.zeros(SHAPE)[::-1], ValueError, "got strides (-24, 8)"),
        ("out", unaligned(np.zeros(SHAPE)), ValueError, "aligned False"),
        ("out", read_only(np.zeros(SHAPE)), ValueError, "writeable False"),
        *(("out", place, ValueError, f"got some of {name}") for name, place in partly.items()),
    ]


# Each row: the argument, its value or what makes it of all arguments, the error, words of its message,
# and what other arguments must be.
BAD_FORWARD = [
    *(row for name in ("x", "gamma", "beta", "moving_mean", "moving_var") for row in not_numbers(name)),
    ("x", None, TypeError, "got dtype object"),
    ("x", 1.0, ValueError, "expected at least 2 dimensions, got shape ()"),
    ("x", np.zeros(3), ValueError, "expected at least 2 dimensions, got shape (3,)"),
    ("x", [], ValueError, "got shape (0,)"),
    *(
        (name, np.ones(shape), ValueError, f"expected shape (3,), got {shape}")
        for name in ("gamma", "beta", "moving_mean", "moving_var")
        for shape in [(), (0,), (1,), (2,), (4,), (2, 3), (3, 1), (1, 1, 3), SHAPE]
    ),
    ("gamma", np.ones(3), ValueError, "expected shape (4,), got (3,)", {"axis": 0}),
    ("moving_var", [1.0, -1e-9, 1.0], ValueError, "expected no negative number, got -1e-09"),
    ("moving_var", [1.0, -INF, NAN], ValueError, "expected no negative number"),
    ("moving_mean", None, ValueError, "got None", {"mode": "test"}),
    ("moving_var", None, ValueError, "got None", {"mode": "test"}),
    *(("eps", value, ValueError, f"got {float(value)!r}") for value in (NAN, INF, -1e-9, np.float32(-1))),
    *(("momentum", value, ValueError, f"got {value!r}") for value in (NAN, INF, -0.01, 1.01)),
    *(
        (name, value, TypeError, f"got {value!r}")
        for name in ("eps", "momentum")
        for value in (None, "0.1", 1j, [0.1], np.ones(1))
    ),
    ("eps", 10**400, ValueError, "got inf"),
    ("momentum", -(10**400), ValueError, "got -inf"),
    *(("mode", value, ValueError, f"got {value!r}", {}) for value in ("eval", "Train", "", b"test", None, True, 1)),
    ("mode", ["test"], ValueError, "got ['test']"),
    ("mode", np.array(["train", "test"]), ValueError, "got array("),
    *(("axis", value, TypeError, f"got {value!r}") for value in (1.0, NAN, None, "1", (1,), [1])),
    *(("axis", value, ValueError, f"expected -2 to 1 for 2 dimensions, got {value}") for value in (2, -3, 10**30)),
    *(("ddof", value, ValueError, f"expected 0 or 1, got {value!r}") for value in (2, -1, 0.5, NAN, None, "1", [0])),
    ("ddof", np.arange(2), ValueError, "expected 0 or 1, got array("),
    ("ddof", 1, ValueError, "got 1 with x of shape (1, 3)", {"x": np.zeros((1, 3)), "mode": "train"}),
    ("ddof", 1, ValueError, "got 1 with x of shape (1, 3, 1)", {"x": np.zeros((1, 3, 1)), "mode": "train"}),
    *bad_out({name: sharing(name) for name in ("x", "gamma", "beta", "moving_mean", "moving_var")}),
    ("out", lambda given: given["x"], ValueError, "got some of x", {"mode": "train"}),
    (
        "out",
        np.zeros(SHAPE, np.float32),
        TypeError,
        "expected dtype float16",
        {"x": np.zeros(SHAPE, np.float16)},
    ),
    ("out", np.zeros(SHAPE, np.int64), TypeError, "expected dtype float64", {"x": np.zeros(SHAPE, np.int64)}),
]
BAD_BACKWARD = [
    *not_numbers("dout"),
    ("dout", None, TypeError, "got dtype object"),
    *(
        ("dout", np.ones(shape), ValueError, f"expected shape (4, 3), got {shape}")
        for shape in [(), (3,), (3, 4), (4, 2), (3, 3), (1, 4, 3)]
    ),
    *(
        ("cache", value, TypeError, f"got {type(value).__name__}")
        for value in (None, {}, (1, 2, 3), "cache", np.ones(3), cbnorm.BatchNormCache)
    ),
    *(("need", value, TypeError, f"got {value!r}") for value in (None, True, 3)),
    *(
        ("need", value, ValueError, f"got {value!r}")
        for value in ((), (True,), (True, True), (True,) * 4, (1, 0, 1), "yes", (None, True, True))
    ),
    *bad_out({"dout": sharing("dout"), "x": sharing_cached("x")}),
    ("out", lambda given: given["cache"].x, ValueError, "got some of x"),
    (
        "out",
        lambda given: given["dout"],
        ValueError,
        "got some of x",
        {"dout": lambda given: given["cache"].x},
    ),
    ("out", np.zeros(SHAPE), ValueError, "got an array", {"need": (False, True, True)}),
]


def in_both_modes(table):
    """Every row as a test of training and of test mode, unless it is about one of these."""
    tests = []
    for argument, value, error, words, *also in table:
        others = also[0] if also else {}
        only = others.get("mode", "train" if argument == "mode" else None)
        for mode in MODES:
            if only in (mode, None):
                name = f"{mode} {argument}: {words}"
                tests.append(pytest.param(argument, value, error, words, others, mode, id=name))
    return tests


@pytest.mark.parametrize(("argument", "value", "error", "words", "others", "mode"), in_both_modes(BAD_FORWARD))
def test_bad_input_of_forward(argument, value, error, words, others, mode):
    arguments = {**make_arguments(), "out": np.full(SHAPE, 7.0), "mode": mode, **others}
    arguments[argument] = value(arguments) if callable(value) else value
    refused(cbnorm.batchnorm_forward, arguments, argument, error, words)


@pytest.mark.parametrize(("argument", "value", "error", "words", "others", "mode"), in_both_modes(BAD_BACKWARD))
def test_bad_input_of_backward(argument, value, error, words, others, mode):
    _, cache, _, _ = cbnorm.batchnorm_forward(**make_arguments(), mode=mode)
    arguments = {"dout": make_dout(), "cache": cache, "out": np.full(SHAPE, 7.0)}
    for name, other in {**others, argument: value}.items():
        is_maker = callable(other) and not isinstance(other, type)
        arguments[name] = other(arguments) if is_maker else other
    refused(cbnorm.batchnorm_backward, arguments, argument, error, words)


def test_x_overwritten_by_out():
    arguments = {**make_arguments(), "mode": "test"}
    _, whole_cache, _, _ = cbnorm.batchnorm_forward(**arguments)
    dx, _, dbeta = cbnorm.batchnorm_backward(make_dout(), whole_cache)
    _, cache, _, _ = cbnorm.batchnorm_forward(**arguments, out=arguments["x"])

    for need in [(True, True, True), (False, True, False)]:
        backward = {"dout": make_dout(), "cache": cache, "need": need}
        refused(cbnorm.batchnorm_backward, backward, "cache", ValueError, "overwritten by out=x")
    with pytest.raises(ValueError, match="overwritten by out=x"):
        _ = cache.xhat
    some = cbnorm.batchnorm_backward(make_dout(), cache, need=(True, False, True))
    assert some[1] is None
    assert_same_bits([some[0], some[2]], [dx, dbeta])


X = np.arange(24.0).reshape(2, 4, 3)
BAD_ROWS = {
    "x: complex": (lambda: cbnorm.layernorm_forward(X * 1j), TypeError, "x: expected real"),
    "x: scalar": (lambda: cbnorm.rmsnorm_forward(3.0), ValueError, "x: expected at least 1"),
    "x: no channels": (lambda: cbnorm.groupnorm_forward(X[0, 0], None, None, 1), ValueError, "x: expected at least 2"),
    "axis": (lambda: cbnorm.layernorm_forward(X, axis=3), ValueError, "axis: expected -3 to 2"),
    "gamma": (lambda: cbnorm.layernorm_forward(X, np.ones(4)), ValueError, r"gamma: expected shape \(3,\), got \(4,\)"),
    "gamma of group": (lambda: cbnorm.groupnorm_forward(X, np.ones(2), None, 2), ValueError, r"gamma: expected shape"),
    "beta": (lambda: cbnorm.instancenorm_forward(X, None, np.ones(3)), ValueError, r"beta: expected shape \(4,\)"),
    "groups": (lambda: cbnorm.groupnorm_forward(X, None, None, 3), ValueError, "num_groups: expected a divisor of 4"),
    "no groups": (lambda: cbnorm.groupnorm_forward(X, None, None, 0), ValueError, "num_groups: expected"),
    "half a group": (lambda: cbnorm.groupnorm_forward(X, None, None, 0.5), TypeError, "num_groups: expected an int"),
    "eps": (lambda: cbnorm.rmsnorm_forward(X, eps=-1.0), ValueError, "eps: expected"),
    "out is x": (lambda: cbnorm.layernorm_forward(X, out=X), ValueError, "out: expected memory of its own"),
    "out dtype": (lambda: cbnorm.layernorm_forward(X, out=np.empty(X.shape, "f4")), TypeError, "out: expected dtype"),
    "cache": (lambda: cbnorm.layernorm_backward(X, None), TypeError, "cache: expected that of layernorm_forward"),
    "cache of another": (
        lambda: cbnorm.layernorm_backward(X, cbnorm.rmsnorm_forward(X)[1]),
        TypeError,
        "cache: expected that of layernorm_forward, got rmsnorm",
    ),
    "dout": (
        lambda: cbnorm.rmsnorm_backward(X[0], cbnorm.rmsnorm_forward(X)[1]),
        ValueError,
        r"dout: expected shape \(2, 4, 3\), got \(4, 3\)",
    ),
    "need": (
        lambda: cbnorm.rmsnorm_backward(X, cbnorm.rmsnorm_forward(X)[1], need=(True,) * 3),
        ValueError,
        "need: expected a bool each for dx, dgamma, got",
    ),
    "out not needed": (
        lambda: cbnorm.rmsnorm_backward(X, cbnorm.rmsnorm_forward(X)[1], need=(False, True), out=X.copy()),
        ValueError,
        "out: expected None",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_input_of_rows(name):
    call, error, message = BAD_ROWS[name]
    before = X.copy()
    with pytest.raises(error, match=f"^{message}"):
        call()
    np.testing.assert_array_equal(before, X)
