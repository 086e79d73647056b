"""The normalizations as a NumPy user writes them, in the dtype of the array: cbnorm's rival in the demo.

Same names, arguments and results as cbnorm's own functions, for (N, C) arrays.
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


def layernorm_forward(x, gamma, beta, eps=1e-5):
    """Normalize each row; x may be (N, G, C) too. Returns y and the cache."""
    xc = x - x.mean(axis=-1, keepdims=True)
    inv_std = 1 / np.sqrt((xc * xc).mean(axis=-1, keepdims=True) + eps)
    xhat = xc * inv_std
    return gamma * xhat + beta, (xhat, gamma, inv_std)


def layernorm_backward(dout, cache):
    """Return dx, dgamma and dbeta of `layernorm_forward`."""
    xhat, gamma, inv_std = cache
    dxhat = dout * gamma
    along = dxhat.mean(axis=-1, keepdims=True) + xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)
    return (dxhat - along) * inv_std, (dout * xhat).sum(axis=0), dout.sum(axis=0)


def groupnorm_forward(x, gamma, beta, num_groups, eps=1e-5):
    """Normalize each group of columns of each row: the rows of (N, groups, C / groups)."""
    grouped = (num_groups, -1)
    y, cache = layernorm_forward(x.reshape(len(x), *grouped), gamma.reshape(grouped), beta.reshape(grouped), eps)
    return y.reshape(x.shape), cache


def groupnorm_backward(dout, cache):
    """Return dx, dgamma and dbeta of `groupnorm_forward`."""
    dx, dgamma, dbeta = layernorm_backward(dout.reshape(cache[0].shape), cache)
    return dx.reshape(dout.shape), dgamma.ravel(), dbeta.ravel()


def rmsnorm_forward(x, gamma, eps=1e-5):
    """Divide each row by its root mean square. Returns y and the cache."""
    inv_rms = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    xhat = x * inv_rms
    return gamma * xhat, (xhat, gamma, inv_rms)


def rmsnorm_backward(dout, cache):
    """Return dx and dgamma of `rmsnorm_forward`."""
    xhat, gamma, inv_rms = cache
    dxhat = dout * gamma
    return (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True)) * inv_rms, (dout * xhat).sum(axis=0)
