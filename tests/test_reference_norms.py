"""All normalizations of the reference: derivatives, plain loops, PyTorch, dtypes."""

import functools
import statistics

import numpy as np
import pytest
import reference
from cases import (
    INSTANCE,
    assert_same_bits,
    batch,
    close,
    derivative,
    group,
    layer,
    moving_statistics,
    random_arrays,
    rms,
)

# Large enough that a misplaced eps shows, and that the gradients of short channels do not vanish.
EPS = 0.1
CASES = {
    "batch (5, 3)": (batch(), (5, 3)),
    "batch (3, 15) axis 0": (batch(0), (3, 15)),
    "batch (2, 3, 3)": (batch(), (2, 3, 3)),
    "batch (2, 3, 1, 4) axis -1": (batch(-1), (2, 3, 1, 4)),
    "batch (2, 2, 3, 2) axis 2": (batch(2), (2, 2, 3, 2)),
    "test (5, 3)": (batch(mode="test"), (5, 3)),
    "test (2, 3, 3) axis -1": (batch(-1, "test"), (2, 3, 3)),
    "layer (3, 17)": (layer(), (3, 17)),
    "layer (2, 3, 3) axis 1": (layer(1), (2, 3, 3)),
    "layer (2, 3, 5) axis -1": (layer(), (2, 3, 5)),
    "layer (3, 5) axis 0": (layer(0), (3, 5)),
    "group (2, 6, 3) by 3": (group(3), (2, 6, 3)),
    "group (3, 4, 1, 2) by 1": (group(1), (3, 4, 1, 2)),
    "group (3, 6) by 2": (group(2), (3, 6)),
    "instance (2, 3, 5)": (INSTANCE, (2, 3, 5)),
    "instance (1, 2, 3, 3)": (INSTANCE, (1, 2, 3, 3)),
    "rms (3, 17)": (rms(), (3, 17)),
    "rms (2, 3, 3) axis 1": (rms(1), (2, 3, 3)),
}
every_case = pytest.mark.parametrize(("norm", "shape"), CASES.values(), ids=CASES.keys())


def arrays_of(norm, shape):
    """x, dout and the parameters."""
    parameters = [norm.parameter_shape(shape)] * (2 if norm.centred else 1)
    x, *parameters, dout = random_arrays(shape, *parameters, shape)
    return x, dout, parameters


def loop_forward(norm, x, gamma, beta=0.0):
    """y, mean and inv_std of each set: a loop over the sets, their statistics from the standard library."""
    y, used = np.empty(x.shape), []
    given = list(zip(*moving_statistics(len(norm.sets(x))), strict=True))
    for number, (values, result) in enumerate(zip(norm.sets(x), norm.sets(y), strict=True)):
        numbers = values.ravel().tolist()
        if norm.given:
            mu, var = given[number]
        elif norm.centred:
            mu, var = statistics.fmean(numbers), statistics.pvariance(numbers)
        else:
            mu, var = 0.0, statistics.fmean(value * value for value in numbers)
        result[...] = (values - mu) / (var + EPS) ** 0.5
        used.append((mu, (var + EPS) ** -0.5))
    along = norm.parameters_along(x.shape)
    return y * gamma.reshape(along) + np.reshape(beta, along if norm.centred else ()), *np.transpose(used)


@pytest.mark.parametrize(("method", "tolerance"), [("central differences", 1e-8), ("complex step", 1e-13)])
@every_case
def test_backward_is_the_derivative(norm, shape, method, tolerance):
    x, dout, parameters = arrays_of(norm, shape)
    actual = norm.want_backward(dout, norm.want_forward(x, *parameters, eps=EPS)[1])
    assert len(actual) == (3 if norm.centred else 2)

    def loss(x, *parameters):
        return (dout * norm.want_forward(x, *parameters, eps=EPS)[0]).sum()

    for gradient, numerical in zip(actual, derivative(loss, [x, *parameters], method), strict=True):
        close(gradient, numerical, tolerance)


@every_case
def test_forward_is_the_plain_loop(norm, shape):
    x, _, parameters = arrays_of(norm, shape)
    y, cache, *_ = norm.want_forward(x, *parameters, eps=EPS)
    for actual, expected in zip((y, cache.mean, cache.inv_std), loop_forward(norm, x, *parameters), strict=True):
        close(actual, expected)


@every_case
def test_torch_agrees(norm, shape):
    torch = pytest.importorskip("torch")
    x, dout, parameters = arrays_of(norm, shape)
    tensors = [torch.tensor(each, requires_grad=True) for each in (x, *parameters)]
    expected = norm.torch_forward(torch.nn.functional, *tensors, *[None] * (not norm.centred), EPS)
    expected.backward(torch.tensor(dout))
    y, cache, *_ = norm.want_forward(x, *parameters, eps=EPS)
    close(y, expected.detach().numpy())
    for gradient, tensor in zip(norm.want_backward(dout, cache), tensors, strict=True):
        close(gradient, tensor.grad.numpy())


@every_case
def test_missing_parameters_are_ones_and_zeros(norm, shape):
    x, dout, parameters = arrays_of(norm, shape)
    defaults = [np.full_like(each, value) for each, value in zip(parameters, (1, 0), strict=False)]
    (y, cache, *_), (expected, expected_cache, *_) = norm.want_forward(x), norm.want_forward(x, *defaults)
    close(y, expected)
    for actual, gradient in zip(norm.want_backward(dout, cache), norm.want_backward(dout, expected_cache), strict=True):
        close(actual, gradient)


@every_case
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "int64", "bool"])
def test_everything_is_computed_in_float64(norm, shape, dtype):
    x, dout, parameters = arrays_of(norm, shape)
    given = [(3 * each).astype(dtype) for each in (x, dout, *parameters)]
    copies = [each.copy() for each in given]
    found = []
    for x, dout, *parameters in given, [each.astype(np.float64) for each in given]:
        y, cache, *_ = norm.want_forward(x, *parameters, eps=EPS)
        found.append([y, cache.xhat, cache.mean, cache.inv_std, *norm.want_backward(dout, cache)])
    assert {(each.dtype, each.dtype.isnative) for each in found[0]} == {(np.dtype(np.float64), True)}
    assert_same_bits(*found)
    assert_same_bits(given, copies)


@every_case
def test_longdouble_is_kept(norm, shape):
    """At a mean of 1e6 longdouble gives what float64 gives near 0, to digits that float64 loses there."""
    if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
        pytest.skip("longdouble is float64 here")
    x, dout, parameters = arrays_of(norm, shape)
    x = np.round(x * 2**20) / 2**20  # so that adding 1e6 is exact
    expected, cache, *_ = norm.want_forward(x, *parameters, eps=EPS)
    expected = [expected, *norm.want_backward(dout, cache)]
    offset = 1e6 if norm.centred and not norm.given else 0
    y, cache, *_ = norm.want_forward(x.astype(np.longdouble) + offset, *parameters, eps=EPS)
    for actual, each in zip([y, *norm.want_backward(dout, cache)], expected, strict=True):
        close(actual, each, 2e-13)
    assert y.dtype == cache.xhat.dtype == np.longdouble


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (reference.layernorm_forward, reference.layernorm_backward),
        (functools.partial(reference.layernorm_forward, axis=1), reference.layernorm_backward),
        (lambda x: reference.groupnorm_forward(x, None, None, 2), reference.groupnorm_backward),
        (reference.instancenorm_forward, reference.instancenorm_backward),
        (reference.rmsnorm_forward, reference.rmsnorm_backward),
    ],
)
def test_empty_rows(forward, backward, shape):
    x = np.empty(shape)
    y, cache = forward(x)
    dx, *parameter_gradients = backward(x, cache)
    assert y.shape == dx.shape == shape
    for gradient in parameter_gradients:
        assert gradient.shape == np.squeeze(cache.gamma).shape
        assert not gradient.any()
