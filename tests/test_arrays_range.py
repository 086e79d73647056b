"""Numbers beyond the range of a dtype are infinite in silence: one rule for all dtypes, whatever NumPy was told."""

import numpy as np
import pytest
from arguments import SHAPE, make_arguments
from cases import INSTANCE, MODES, assert_same_bits, batch, group, layer, rms

import cbnorm

INF = np.inf
NORMS = {"batch": batch(), "layer": layer(), "group": group(3), "instance": INSTANCE, "RMS": rms()}
LARGE = {np.float16: np.float32(6e4), np.float32: 1e39, np.float64: 1.7e308}

pytestmark = [pytest.mark.filterwarnings("error")]


@pytest.fixture(autouse=True)
def everything_raises():
    with np.errstate(all="raise"):
        yield


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", NORMS)
def test_results_beyond_their_dtype(name, dtype):
    norm, x = NORMS[name], np.random.default_rng(0).standard_normal((6, 3, 8)).astype(dtype)
    parameters = [np.full(8 if name in ("layer", "RMS") else 3, LARGE[dtype])] * (1 if name == "RMS" else 2)
    y = norm.forward(x, *parameters)[0]
    assert np.isinf(y).any()
    out = np.zeros_like(y)
    y_out, cache, *_ = norm.forward(x, *parameters, out=out)
    assert y_out is out
    assert_same_bits(out, y)
    dout = np.full(x.shape, LARGE[dtype] / 2)
    dout[0] = -dout[0]
    dx, *gradients = norm.backward(dout, cache)
    assert dx.dtype == dtype
    assert not np.isfinite(gradients[-1]).all() or dtype is np.float16  # whose sums are float32
    assert_same_bits(norm.backward(dout, cache, out=out)[0], dx)


@pytest.mark.parametrize("order", ["C", "F", "strided", "swapped"])
def test_parameters_and_dout_beyond_float32(order):
    def placed(values):
        if order == "strided":
            return np.repeat(values, 2, axis=-1)[..., ::2]
        return values.astype(">f8") if order == "swapped" else np.asarray(values, order=order)

    x = np.float32([[1, 2], [3, 4], [5, 6]])
    y, cache = cbnorm.layernorm_forward(x, placed(np.array([1e300, 1.0])), placed(np.array([1e300, 0.0])))
    assert not np.isfinite(y[:, 0]).any()
    assert np.isfinite(y[:, 1]).all()
    dout = placed(np.array([[1e300, 1.0]] * 3))
    assert np.isinf(cbnorm.batchnorm_backward(dout, cbnorm.batchnorm_forward(x)[1])[2][0])
    assert cbnorm.layernorm_backward(dout, cache)[2][0] == INF


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["x", "gamma", "beta", "moving_mean", "moving_var"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_signalling_nan(name, mode, dtype):
    arguments = make_arguments(np.float32)
    values = arguments[name].astype(dtype)
    raw = values.view(f"u{values.dtype.itemsize}")
    raw.flat[0] = np.array(INF, dtype).view(raw.dtype) + 1
    for form in (values, np.repeat(values, 2, axis=-1)[..., ::2]):
        y = cbnorm.batchnorm_forward(**arguments | {name: form}, mode=mode)[0]
        if name in ("x", "gamma", "beta"):
            assert np.isnan(y[0, 0])
        assert np.isfinite(y[:, 1:]).all()


def test_moments_take_any_number():
    for values in (np.float32([INF, -INF]), np.array([0x7F800001], np.uint32).view(np.float32)):
        assert cbnorm.Moments(1, values, np.zeros(values.shape)).mean.shape == values.shape


def test_folded_weights_beyond_their_dtype():
    batchnorm = cbnorm.BatchNorm(2, dtype=np.float64)
    batchnorm.gamma[:] = 1e30
    weight, bias = cbnorm.fold_batchnorm(np.float32([[1e30, 1.0]]), np.float16([1, 1]), batchnorm, channel_axis=1)
    assert weight[0, 0] == INF
    assert bias[0] == INF


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
def test_converted_numbers_beyond_their_dtype(library):
    batchnorm = cbnorm.BatchNorm(2, dtype=np.float64)
    batchnorm.gamma[:] = batchnorm.moving_mean[:] = 1e30
    given = getattr(batchnorm, f"to_{library}")(dtype=np.float16)
    arrays = [*given.values(), *given.get("state_dict", {}).values(), *given.get("weights", [])]
    assert sum(isinstance(array, np.ndarray) and bool(np.isinf(array).any()) for array in arrays) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, np.int64, np.bool_])
@pytest.mark.parametrize("order", ["C", "F"])
def test_conversions_have_the_bits_of_numpy(order, given, dtype):
    values = (np.random.default_rng(0).standard_normal(SHAPE) * 100).astype(given, order=order)
    x = np.ones(SHAPE, dtype)
    y = cbnorm.layernorm_forward(x, None, None)[0]
    assert not y.any()
    computed = np.float64 if dtype is np.float64 else np.float32
    want = values[0].astype(computed)
    assert_same_bits(cbnorm.layernorm_forward(x, values[0])[1].gamma, want)
    assert_same_bits(cbnorm.layernorm_forward(x, None, values[0])[0][0], want.astype(dtype))
