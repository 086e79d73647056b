"""`batchnorm_forward` and `batchnorm_backward`: what they return besides y, and what may be left out."""

import numpy as np
import pytest
import reference
from cases import MODES, assert_same_bits, batch, make_case, moving_statistics

import cbnorm

BATCH = batch()


@pytest.mark.parametrize("given", [(False, False), (True, False), (False, True)])
def test_gamma_and_beta_are_optional_one_by_one(given):
    x, dout, (gamma, beta) = make_case(BATCH, (17, 3, 5), np.float64)
    gamma, beta = gamma if given[0] else None, beta if given[1] else None
    y, cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta)
    want_y, want_cache, _, _ = reference.batchnorm_forward(x, gamma, beta)
    np.testing.assert_allclose(y, want_y, atol=1e-12)
    for got, want in zip(
        cbnorm.batchnorm_backward(dout, cache), reference.batchnorm_backward(dout, want_cache), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-11)


@pytest.mark.parametrize("tracked", [(False, False), (True, False), (False, True)])
def test_moving_statistics_that_are_none_are_not_tracked(tracked):
    mean, var = (old if kept else None for old, kept in zip(moving_statistics(3), tracked, strict=True))
    _, _, new_mean, new_var = cbnorm.batchnorm_forward(np.ones((17, 3)), moving_mean=mean, moving_var=var)
    assert (new_mean is None, new_var is None) == (not tracked[0], not tracked[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_the_cache_gives_xhat_mean_and_inv_std(dtype, mode):
    norm = batch(mode=mode)
    x = (8 * make_case(norm, (9, 4, 5), np.float64)[0]).astype(dtype)
    y, cache, *_ = norm.forward(x)
    _, want, *_ = norm.want_forward(x)
    assert_same_bits(cache.xhat, y)
    assert cache.x is x
    np.testing.assert_allclose(cache.mean, want.mean, rtol=1e-12)
    np.testing.assert_allclose(cache.inv_std, want.inv_std, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (0, 3, 2), (5, 0), (1, 0), (1, 0, 1), (0, 0)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_an_empty_batch_changes_nothing(shape, ddof):
    channels = shape[1]
    moving_mean, moving_var = np.full(channels, 2.0), np.full(channels, 3.0)
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        np.empty(shape, np.float32), moving_mean=moving_mean, moving_var=moving_var, ddof=ddof
    )
    assert y.shape == shape
    assert cache.xhat.shape == shape
    np.testing.assert_array_equal(new_mean, moving_mean)
    np.testing.assert_array_equal(new_var, moving_var)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(y, cache)
    assert dx.shape == shape
    np.testing.assert_array_equal(dgamma, np.zeros(channels))
    np.testing.assert_array_equal(dbeta, np.zeros(channels))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(64, 17), (6, 5, 7, 7), (4, 3, 400)])
def test_agrees_with_pytorch(shape, mode):
    torch = pytest.importorskip("torch")
    x, dout, (gamma, beta) = make_case(BATCH, shape, np.float64)
    moving_mean, moving_var = moving_statistics(shape[1])
    tensors = [torch.tensor(values, requires_grad=True) for values in (x, gamma, beta)]
    torch_mean, torch_var = torch.tensor(moving_mean), torch.tensor(moving_var)
    torch_y = torch.nn.functional.batch_norm(
        tensors[0], torch_mean, torch_var, *tensors[1:], training=mode == "train", momentum=0.1
    )
    torch_y.backward(torch.tensor(dout))
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        x, gamma, beta, moving_mean=moving_mean, moving_var=moving_var, mode=mode, ddof=1
    )
    pairs = [(y, torch_y.detach()), (new_mean, torch_mean), (new_var, torch_var)]
    pairs += zip(cbnorm.batchnorm_backward(dout, cache), (tensor.grad for tensor in tensors), strict=True)
    for got, want in pairs:
        np.testing.assert_allclose(got, want.numpy(), atol=1e-10)
