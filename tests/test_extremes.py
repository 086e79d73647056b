"""The numbers contract where numbers end: weights of 0, infinities, squares that overflow or vanish, far values."""

import numpy as np
import pytest

import cbnorm


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 50)])
def test_a_weight_of_0_does_not_read_the_other_side(kernels, shape, special):
    x = np.random.default_rng(0).standard_normal(shape)
    spoilt = x.copy()
    spoilt[0, 1] = special
    old_mean, old_var = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    _, _, mean, var = cbnorm.batchnorm_forward(spoilt, momentum=1.0, moving_mean=old_mean, moving_var=old_var)
    np.testing.assert_array_equal((mean, var), (old_mean, old_var))
    old = np.full(3, special)
    _, _, mean, var = cbnorm.batchnorm_forward(x, momentum=0.0, moving_mean=old, moving_var=old)
    of_batch = cbnorm.parts.moments(x)
    np.testing.assert_allclose((mean, var), (of_batch.mean, of_batch.var()), rtol=1e-15)


def test_the_first_batch_of_a_layer_that_averages_all_forgets_what_was_there():
    layer = cbnorm.BatchNorm(2, momentum=None)
    layer.moving_mean = np.array([np.nan, 7.0])
    layer.moving_var = np.array([np.inf, 7.0])
    layer(np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_array_equal(layer.moving_mean, [2.0, 4.0])
    np.testing.assert_array_equal(layer.moving_var, [1.0, 4.0])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_an_empty_batch_has_no_weight(momentum):
    old = np.array([1.0, np.inf])
    _, _, mean, var = cbnorm.batchnorm_forward(np.empty((0, 2)), momentum=momentum, moving_mean=old, moving_var=old)
    np.testing.assert_array_equal((mean, var), (old, old))
