"""What batch normalization takes: any form of array of any dtype, which stays as it is and changes no result."""

import array

import numpy as np
import pytest
import reference
from arguments import NAN, SHAPE, arrays_in, bits, make_arguments, make_dout, mapped, read_only, unaligned
from cases import MODES, assert_same_bits

import cbnorm

INTEGERS = [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def strided(values):
    """Every third number of a larger array along each axis."""
    large = np.full([3 * size for size in values.shape], NAN).astype(values.dtype)
    view = large[tuple(slice(1, None, 3) for _ in values.shape)]
    view[...] = values
    return view


def reversed_memory(values):
    backwards = (slice(None, None, -1),) * values.ndim
    return values[backwards].copy()[backwards]


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


@pytest.mark.parametrize("mode", MODES)
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
    assert {type(part) for part in got} == {np.ndarray}
    assert_same_bits(got, want)
    assert [bits(value) for value in (*arrays_in(arguments), dout)] == before
    for statistic, name in zip(moving, ("moving_mean", "moving_var"), strict=True):
        assert not np.shares_memory(statistic, arguments[name])


def test_an_array_that_repeats_its_numbers():
    arguments, dout = make_arguments(), np.broadcast_to(make_dout()[:, :1], SHAPE)
    results = []
    for x in (np.broadcast_to(arguments["x"][0], SHAPE), np.tile(arguments["x"][0], (4, 1))):
        y, cache, *moving = cbnorm.batchnorm_forward(**{**arguments, "x": x})
        results.append([y, *moving, *cbnorm.batchnorm_backward(dout, cache)])
        dout = dout.copy()
    assert_same_bits(*results)


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
        assert_same_bits([y, *moving], [want[i] for i in (0, 2, 3)])
        arguments["x"] = plain["x"]
        assert [repr(value) for value in arguments.values()] == before
        dx, *_ = cbnorm.batchnorm_backward(make_dout().tolist(), cache)
        assert_same_bits(dx, cbnorm.batchnorm_backward(make_dout(), want[1])[0])


@pytest.mark.parametrize("mode", MODES)
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
    got = [y, cache.xhat, new_mean, new_var, dx, dgamma, dbeta]
    assert_same_bits(got, [exact.astype(rounded.dtype) for exact, rounded in zip(want, got, strict=True)])
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
    assert_same_bits([y, *moving], [want[i] for i in (0, 2, 3)])
    dout = make_dout(dtype)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
    assert (dx.dtype, dgamma.dtype, dbeta.dtype) == (np.float32,) * 3
    assert_same_bits(dx, cbnorm.batchnorm_backward(dout.astype(np.float32), cache)[0])


def test_axis_and_eps_as_numpy_numbers():
    arguments = make_arguments()
    want = cbnorm.batchnorm_forward(**arguments)
    for axis, eps in [(np.int64(1), np.float64(1e-3)), (-1, np.float64(1e-3)), (np.int8(-1), 1e-3)]:
        got = cbnorm.batchnorm_forward(**{**arguments, "axis": axis, "eps": eps})
        assert_same_bits(got[0], want[0])
        assert got[1].axis == 1
