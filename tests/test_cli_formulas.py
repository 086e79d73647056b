"""The command line's NumPy formulas against the reference, in the dtype of the arrays and on any axes."""

import numpy as np
import pytest
import reference

from cbnorm._cli import formulas

EPS = 1e-5
SHAPES = [((60, 7), 1), ((4, 7, 3, 5), 1), ((4, 3, 5, 7), -1), ((3, 7, 4), 1)]  # with the axis of 7 channels
by_channel = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


def draw(shape, axis, dtype=np.float32):
    """x, dout, and gamma, beta, mean and variance broadcast along the channels; the axes of a channel."""
    rng = np.random.default_rng(0)
    x, dout = rng.normal(1, 2, (2, *shape)).astype(dtype)
    parameters = rng.normal(size=(3, 7)).astype(dtype)
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    gamma, beta, mean, var = (np.expand_dims(each, axes) for each in (*parameters, parameters[2] ** 2 + 1))
    return x, dout, gamma, beta, mean, var, axes


@by_channel
def test_forward_by_the_batch(shape, axis):
    x, _, gamma, beta, mean, var, axes = draw(shape, axis)
    moving = (mean.reshape(-1), var.reshape(-1))
    y, _, *moved = formulas.train(x, gamma, beta, *moving, axes=axes, eps=EPS, momentum=0.9)
    want, _, *want_moved = reference.batchnorm_forward(
        x, gamma.reshape(-1), beta.reshape(-1), moving_mean=moving[0], moving_var=moving[1], axis=axis
    )
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved, want_moved, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(formulas.forward(x, gamma, beta, axes=axes, eps=EPS)[0], y)


@by_channel
def test_forward_by_given_statistics(shape, axis):
    x, _, gamma, beta, mean, var, _ = draw(shape, axis)
    y, _ = formulas.normalize(x, mean, var, gamma, beta, eps=EPS)
    moving = {"moving_mean": mean.reshape(-1), "moving_var": var.reshape(-1)}
    want = reference.batchnorm_forward(x, gamma.reshape(-1), beta.reshape(-1), **moving, mode="test", axis=axis)[0]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@by_channel
def test_backward_by_the_batch(shape, axis):
    x, dout, gamma, beta, *_, axes = draw(shape, axis)
    grads = formulas.batch_backward(dout, formulas.forward(x, gamma, beta, axes=axes, eps=EPS)[1], gamma, axes=axes)
    cache = reference.batchnorm_forward(x, gamma.reshape(-1), beta.reshape(-1), axis=axis)[1]
    for grad, want in zip(grads, reference.batchnorm_backward(dout, cache), strict=True):
        assert grad.dtype == np.float32
        np.testing.assert_allclose(grad.reshape(want.shape), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "begin"), [((31, 20), 1), ((5, 6, 20), 2), ((5, 6, 20), 1)], ids=str)
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_rows(kind, shape, begin):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, *shape))
    parameters = rng.standard_normal((1 if kind == "rmsnorm" else 2, *shape[begin:]))
    axes, leading = tuple(range(begin, len(shape))), tuple(range(begin))
    forward, backward = (
        (formulas.rms_forward, formulas.rms_backward)
        if kind == "rmsnorm"
        else (formulas.forward, formulas.rows_backward)
    )
    y, cache = forward(x, *parameters, axes=axes, eps=EPS)
    want_y, want_cache = getattr(reference, f"{kind}_forward")(x, *parameters, axis=begin)
    np.testing.assert_allclose(y, want_y, atol=1e-12)
    want = (reference.rmsnorm_backward if kind == "rmsnorm" else reference.rows_backward)(dout, want_cache)
    grads = backward(dout, cache, parameters[0], axes=axes, parameter_axes=leading)
    for got, each in zip(grads, want, strict=True):
        np.testing.assert_allclose(got, each, atol=1e-12)


@pytest.mark.parametrize("positions", [(), (3, 2)], ids=str)
def test_groups(positions):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 6, 20, *positions))
    gamma, beta = rng.standard_normal((2, 20))
    grouped = (5, 4)
    along = grouped + (1,) * len(positions)
    settings = {"axes": tuple(range(2, 3 + len(positions)))}
    y, cache = formulas.forward(
        x.reshape(6, *grouped, *positions), gamma.reshape(along), beta.reshape(along), **settings, eps=EPS
    )
    want_y, want_cache = reference.groupnorm_forward(x, gamma, beta, 5)
    np.testing.assert_allclose(y.reshape(x.shape), want_y, atol=1e-12)
    settings["parameter_axes"] = (0, *range(3, 3 + len(positions)))
    grads = formulas.rows_backward(dout.reshape(y.shape), cache, gamma.reshape(along), **settings)
    for got, want in zip(grads, reference.rows_backward(dout, want_cache), strict=True):
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-12)
