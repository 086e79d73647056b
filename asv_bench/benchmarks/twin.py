"""Batch normalization as a NumPy user writes it, in the dtype of the array and for any channel axis.

The scale that cbnorm's figures stand on. It is not `cbnorm._cli.formulas`: a scale stays the same for every
commit measured.
"""

import numpy as np


def per_channel(values, x, axis):
    """(channels,) in the dtype of x, shaped to broadcast along the channel axis of x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.astype(x.dtype, copy=False).reshape(shape)


def forward_train(x, gamma, beta, axis, reduced, eps=1e-5):
    mean = x.mean(axis=reduced, keepdims=True)
    var = x.var(axis=reduced, keepdims=True)
    inv_std = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * inv_std
    return per_channel(gamma, x, axis) * xhat + per_channel(beta, x, axis), (xhat, gamma, inv_std)


def forward_test(x, gamma, beta, moving_mean, moving_var, axis, eps=1e-5):
    inv_std = 1 / np.sqrt(per_channel(moving_var, x, axis) + eps)
    xhat = (x - per_channel(moving_mean, x, axis)) * inv_std
    return per_channel(gamma, x, axis) * xhat + per_channel(beta, x, axis), (xhat, gamma, inv_std)


def backward(dout, cache, axis, reduced):
    xhat, gamma, inv_std = cache
    count = dout.size // gamma.size
    dbeta = dout.sum(axis=reduced, keepdims=True)
    dgamma = (dout * xhat).sum(axis=reduced, keepdims=True)
    dx = per_channel(gamma, dout, axis) * inv_std / count * (count * dout - xhat * dgamma - dbeta)
    return dx, dgamma.reshape(-1), dbeta.reshape(-1)


def moments(x, reduced):
    return x.mean(axis=reduced), x.var(axis=reduced)
