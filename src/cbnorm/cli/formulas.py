"""Batch normalization as a NumPy user writes it, in the dtype of the array: cbnorm's rival in the demo.

Same names, arguments and results as `cbnorm.batchnorm_forward` and `batchnorm_backward`, for (N, C) arrays.
"""

import numpy as np


def batchnorm_forward(x, gamma, beta, eps=1e-5, momentum=0.9, moving_mean=None, moving_var=None, mode="train"):
    """Normalize each column: y = gamma * (x - mean) / sqrt(var + eps) + beta.

    Parameters
    ----------
    x : ndarray, (N, C)
        The batch.
    gamma, beta : ndarray, (C,)
        Scale and shift.
    eps : float
        Added to the variance.
    momentum : float
        Weight of the old moving averages.
    moving_mean, moving_var : ndarray, (C,), optional
        Moving averages; needed in test mode.
    mode : {"train", "test"}
        Normalize by the batch, or by the moving averages.

    Returns
    -------
    y : ndarray, (N, C)
    cache : tuple
        What `batchnorm_backward` needs.
    moving_mean, moving_var : ndarray, (C,)
        The new moving averages, or None where none came in.
    """
    if mode == "train":
        mean, var = x.mean(axis=0), x.var(axis=0)
        if moving_mean is not None:
            moving_mean = momentum * moving_mean + (1 - momentum) * mean
        if moving_var is not None:
            moving_var = momentum * moving_var + (1 - momentum) * var
    elif mode == "test":
        mean, var = moving_mean.astype(x.dtype), moving_var.astype(x.dtype)
    else:
        raise ValueError(f"mode: expected 'train' or 'test', got {mode!r}")
    inv_std = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * inv_std
    return gamma * xhat + beta, (xhat, gamma, inv_std), moving_mean, moving_var


def batchnorm_backward(dout, cache):
    """Gradients of `batchnorm_forward` in train mode, by the compact form.

    Parameters
    ----------
    dout : ndarray, (N, C)
        Gradient of the loss with respect to y.
    cache : tuple
        From `batchnorm_forward`.

    Returns
    -------
    dx : ndarray, (N, C)
    dgamma, dbeta : ndarray, (C,)
    """
    xhat, gamma, inv_std = cache
    count = len(dout)
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dx = gamma * inv_std / count * (count * dout - xhat * dgamma - dbeta)
    return dx, dgamma, dbeta
