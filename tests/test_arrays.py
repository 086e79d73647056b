"""What batch normalization takes and refuses: bad input changes nothing, and no form changes the result."""

import array

import numpy as np
import pytest
import reference

import cbnorm

SHAPE = (4, 3)
NAN, INF = float("nan"), float("inf")
INTEGERS = [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def make_arguments(dtype=np.float64, shape=SHAPE):
    """Every argument of a forward call but `mode`, all arrays in one dtype."""
    random = np.random.default_rng(0)
    channels = shape[1]
    return {
        "x": (random.standard_normal(shape) * 3 + 20).astype(dtype),
        "gamma": np.linspace(-1, 2, channels).astype(dtype),
        "beta": np.linspace(3, 4, channels).astype(dtype),
        "eps": 1e-3,
        "momentum": 0.75,
        "moving_mean": np.linspace(18, 21, channels).astype(dtype),
        "moving_var": np.linspace(4, 8, channels).astype(dtype),
        "axis": 1,
        "ddof": 0,
    }


def make_dout(dtype=np.float64, shape=SHAPE):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def bits(value):
    """The bytes of an array, and of the array that it is a view of."""
    owner = value.base if isinstance(value.base, np.ndarray) else value
    return np.asarray(value).tobytes(), np.asarray(owner).tobytes()


def arrays_in(arguments):
    """The arrays among the arguments, those of a cache too."""
    cache = arguments.get("cache")
    inside = [cache.x, cache.gamma, cache.mean, cache.inv_std] if hasattr(cache, "inv_std") else []
    return [value for value in [*arguments.values(), *inside] if isinstance(value, np.ndarray)]


def refused(function, arguments, name, error, words):
    """Call `function`: it raises an error about the argument `name`, and no array changes."""
    before = [bits(value) for value in arrays_in(arguments)]
    with pytest.raises(error) as failure:
        function(**arguments)
    assert failure.type is error
    assert str(failure.value).startswith(f"{name}: expected ")
    assert words in str(failure.value)
    assert [bits(value) for value in arrays_in(arguments)] == before


def read_only(values):
    values.flags.writeable = False
    return values


def unaligned(values):
    """The same values one byte off."""
    memory = np.empty(values.nbytes + 1, np.uint8)
    moved = memory[1:].view(values.dtype).reshape(values.shape)
    moved[...] = values
    return moved


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
    """An `out` of which one number belongs to x or gamma of the forward call."""

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
        for shape in [(), (0,), (1,), (2,), (4,), (1, 3), (3, 1), SHAPE]
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
    *bad_out({"dout": sharing("dout"), "x": sharing_cached("x"), "gamma": sharing_cached("gamma")}),
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
        for mode in ("train", "test"):
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
    assert (some[0].tobytes(), some[1], some[2].tobytes()) == (dx.tobytes(), None, dbeta.tobytes())


def strided(values):
    """Every third number of a larger array along each axis."""
    large = np.full([3 * size for size in values.shape], NAN).astype(values.dtype)
    view = large[tuple(slice(1, None, 3) for _ in values.shape)]
    view[...] = values
    return view


def reversed_memory(values):
    backwards = (slice(None, None, -1),) * values.ndim
    return values[backwards].copy()[backwards]


def mapped(values, folder, mode="r+"):
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    values.tofile(path)
    return np.memmap(path, values.dtype, mode, shape=values.shape)


FORMS = {
    "Fortran order": lambda values, folder: np.asfortranarray(values),
    "strides": lambda values, folder: strided(values),
    "negative strides": lambda values, folder: reversed_memory(values),
    "other byte order": lambda values, folder: values.astype(values.dtype.newbyteorder()),
    "unaligned": lambda values, folder: unaligned(values),
    "read-only": lambda values, folder: read_only(values.copy()),
    "memmap": mapped,
    "read-only memmap": lambda values, folder: mapped(values, folder, "r"),
    "matrix": lambda values, folder: values.view(np.matrix) if values.ndim == 2 else values,
}


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_any_form_of_array_has_the_same_result_and_stays_as_it_is(form, dtype, mode, tmp_path):
    plain, plain_dout = make_arguments(dtype, (5, 3)), make_dout(dtype, (5, 3))
    y, cache, *moving = cbnorm.batchnorm_forward(**plain, mode=mode)
    want = [y, *moving, *cbnorm.batchnorm_backward(plain_dout, cache)]

    arguments = {
        name: FORMS[form](value, tmp_path) if isinstance(value, np.ndarray) else value for name, value in plain.items()
    }
    dout = FORMS[form](plain_dout, tmp_path)
    before = [bits(value) for value in (*arrays_in(arguments), dout)]
    y, cache, *moving = cbnorm.batchnorm_forward(**arguments, mode=mode)
    got = [y, *moving, *cbnorm.batchnorm_backward(dout, cache)]
    for got_one, want_one in zip(got, want, strict=True):
        assert type(got_one) is np.ndarray
        assert got_one.dtype == want_one.dtype
        assert got_one.tobytes() == want_one.tobytes()
    assert [bits(value) for value in (*arrays_in(arguments), dout)] == before
    for statistic, name in zip(moving, ("moving_mean", "moving_var"), strict=True):
        assert not np.shares_memory(statistic, arguments[name])


def test_lists_and_buffers():
    plain = make_arguments()
    want = cbnorm.batchnorm_forward(**plain)
    for convert in (np.ndarray.tolist, lambda values: array.array("d", values.ravel())):
        arguments = {
            name: convert(value) if isinstance(value, np.ndarray) and name != "x" else value
            for name, value in plain.items()
        }
        before = [repr(value) for value in arguments.values()]
        arguments["x"] = plain["x"].tolist()
        y, cache, *moving = cbnorm.batchnorm_forward(**arguments)
        assert [part.tobytes() for part in (y, *moving)] == [want[i].tobytes() for i in (0, 2, 3)]
        arguments["x"] = plain["x"]
        assert [repr(value) for value in arguments.values()] == before
        dx, *_ = cbnorm.batchnorm_backward(make_dout().tolist(), cache)
        assert dx.tobytes() == cbnorm.batchnorm_backward(make_dout(), want[1])[0].tobytes()


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize(
    ("given", "computed", "returned"),
    [
        (np.float16, np.float32, np.float16),
        (np.float32, np.float32, np.float32),
        (np.float64, np.float64, np.float64),
        *((integer, np.float64, np.float64) for integer in INTEGERS),
    ],
)
def test_dtypes_of_the_results(given, computed, returned, mode):
    rest = make_arguments(np.float64)
    x = (np.arange(12).reshape(SHAPE) % 5 * 20).astype(given)
    del rest["x"]
    dout = make_dout(returned)
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(x, **rest, mode=mode)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    assert (y.dtype, dx.dtype, cache.xhat.dtype) == (returned,) * 3
    assert (dgamma.dtype, dbeta.dtype) == (computed,) * 2
    assert (new_mean.dtype, new_var.dtype, cache.mean.dtype, cache.inv_std.dtype) == (np.float64,) * 4

    want_y, want_cache, *want_moving = cbnorm.batchnorm_forward(x.astype(computed), **rest, mode=mode)
    want = [
        want_y,
        want_cache.xhat,
        *want_moving,
        *cbnorm.batchnorm_backward(dout.astype(computed), want_cache),
    ]
    for got_one, want_one in zip([y, cache.xhat, new_mean, new_var, dx, dgamma, dbeta], want, strict=True):
        assert got_one.tobytes() == want_one.astype(got_one.dtype).tobytes()
    exact = reference.batchnorm_forward(x, **rest, mode=mode)[0]
    tolerance = 1e-3 if returned == np.float16 else 1e-5 if returned == np.float32 else 1e-12
    np.testing.assert_allclose(y, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_parameters_of_any_dtype_are_converted_and_x_is_not(dtype):
    x = make_arguments(np.float32)["x"]
    parameters = {name: np.array([1, 2, 3], dtype) for name in ("gamma", "beta", "moving_mean", "moving_var")}
    y, cache, *moving = cbnorm.batchnorm_forward(x, **parameters)
    single = {name: value.astype(np.float32) for name, value in parameters.items()}
    want = cbnorm.batchnorm_forward(x, **single)
    assert y.dtype == np.float32
    assert [part.tobytes() for part in (y, *moving)] == [want[i].tobytes() for i in (0, 2, 3)]
    dout = make_dout(dtype)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    assert (dx.dtype, dgamma.dtype, dbeta.dtype) == (np.float32,) * 3
    assert dx.tobytes() == cbnorm.batchnorm_backward(dout.astype(np.float32), cache)[0].tobytes()


@pytest.mark.parametrize("momentum", [0, 0.75, 1])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_moving_statistics_are_new_arrays(mode, momentum):
    arguments = {**make_arguments(), "momentum": momentum}
    _, _, *moving = cbnorm.batchnorm_forward(**arguments, mode=mode)
    for statistic, name in zip(moving, ("moving_mean", "moving_var"), strict=True):
        assert not np.shares_memory(statistic, arguments[name])
        statistic[:] = NAN
        assert np.isfinite(arguments[name]).all()


def test_the_cache_refers_to_x_and_gamma():
    arguments = make_arguments()
    _, cache, _, _ = cbnorm.batchnorm_forward(**arguments)
    assert cache.x is arguments["x"]
    assert cache.gamma is arguments["gamma"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("form", ["array", "memmap", "view", "Fortran input"])
def test_out_is_filled_and_returned(form, mode, dtype, tmp_path):
    arguments, dout = make_arguments(), make_dout()
    arguments["x"] = arguments["x"].astype(dtype, order="F" if form == "Fortran input" else "C")
    y, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode)
    dx, _, _ = cbnorm.batchnorm_backward(dout, cache)
    result = np.full(SHAPE, NAN, y.dtype)
    if form == "memmap":
        result = mapped(result, tmp_path)
    elif form == "view":
        result = np.full((6, 3), NAN, y.dtype)[1:5]
    got, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode, out=result)
    assert got is result
    assert result.tobytes() == y.tobytes()
    got, _, _ = cbnorm.batchnorm_backward(dout, cache, out=result)
    assert got is result
    assert result.tobytes() == dx.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 3), (5, 3, 7), (3, 3, 400), (30_001, 3)])
def test_out_may_be_x_in_test_mode_and_dout_in_backward(dtype, shape):
    arguments, dout = make_arguments(dtype, shape), make_dout(dtype, shape)
    caches = []
    for mode in ("train", "test"):
        y, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode=mode)
        caches.append(cache)
        fresh, *sums = cbnorm.batchnorm_backward(dout, cache)
        for dx in (dout.copy(), dout.copy()[:]):
            got, *got_sums = cbnorm.batchnorm_backward(dx, cache, out=dx)
            assert got is dx
            assert dx.tobytes() == fresh.tobytes()
            assert [part.tobytes() for part in got_sums] == [part.tobytes() for part in sums]
    x = arguments["x"] = arguments["x"].copy()
    # Another view of the same numbers is x itself, too.
    got, cache, _, _ = cbnorm.batchnorm_forward(**arguments, mode="test", out=x[:])
    assert cache.x is None
    assert x.tobytes() == y.tobytes() == got.tobytes()


def test_neighbours_in_one_memory_do_not_overlap():
    arguments = make_arguments()
    memory = np.zeros(27)
    x, out, gamma = memory[:12].reshape(SHAPE), memory[12:24].reshape(SHAPE), memory[24:]
    x[...], gamma[...] = arguments["x"], arguments["gamma"]
    want = cbnorm.batchnorm_forward(**arguments)[0]
    got = cbnorm.batchnorm_forward(**{**arguments, "x": x, "gamma": gamma}, out=out)[0]
    assert got.tobytes() == want.tobytes()
    assert x.tobytes() == arguments["x"].tobytes()


def test_axis_and_eps_as_numpy_numbers():
    arguments = make_arguments()
    want = cbnorm.batchnorm_forward(**arguments)
    for axis, eps in [(np.int64(1), np.float64(1e-3)), (-1, np.float64(1e-3)), (np.int8(-1), 1e-3)]:
        got = cbnorm.batchnorm_forward(**{**arguments, "axis": axis, "eps": eps})
        assert got[0].tobytes() == want[0].tobytes()
        assert got[1].axis == 1
