"""Every normalization as a NumPy user writes it, in the dtype of the arrays and for any axes.

On (N, C) arrays the same lines as `cbnorm.cli.formulas`. In float64 they are what results are checked
against, and compiled by JAX they are its peer: arrays come first, and nothing here needs them to be NumPy's.
"""


def forward(x, gamma, beta, mean=None, var=None, *, axes, eps):
    """Normalize by the mean and variance over `axes`, or by those given; all else broadcasts to x.

    Returns
    -------
    y : array, the shape of x
    cache : tuple
        xhat and inv_std.
    mean, var : array
        Of x, or those given; with axes of length 1.
    """
    if mean is None:
        mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    inv_std = 1 / (var + eps) ** 0.5
    xhat = (x - mean) * inv_std
    return gamma * xhat + beta, (xhat, inv_std), mean, var


def normalize(*arrays, axes, eps):
    """Y alone."""
    return forward(*arrays, axes=axes, eps=eps)[:1]


def train(x, gamma, beta, moving_mean, moving_var, *, axes, eps, momentum):
    """Y, and the moving averages, (channels,), that take in the mean and variance of x."""
    y, _, mean, var = forward(x, gamma, beta, axes=axes, eps=eps)
    moving_mean = momentum * moving_mean + (1 - momentum) * mean.reshape(-1)
    moving_var = momentum * moving_var + (1 - momentum) * var.reshape(-1)
    return y, moving_mean, moving_var


def batch_backward(dout, cache, gamma, *, axes):
    """Gradients with one gamma for all values that share a mean, by the compact form: dx, dgamma, dbeta."""
    xhat, inv_std = cache
    count = dout.size // inv_std.size
    dbeta = dout.sum(axis=axes, keepdims=True)
    dgamma = (dout * xhat).sum(axis=axes, keepdims=True)
    dx = gamma * inv_std / count * (count * dout - xhat * dgamma - dbeta)
    return dx, dgamma, dbeta


def rows_backward(dout, cache, gamma, *, axes, parameter_axes):
    """Gradients where gamma differs among the values that share a mean: dx, dgamma, dbeta."""
    xhat, inv_std = cache
    count = dout.size // inv_std.size
    dbeta = dout.sum(axis=parameter_axes)
    dgamma = (dout * xhat).sum(axis=parameter_axes)
    dxhat = dout * gamma
    total, along_xhat = dxhat.sum(axis=axes, keepdims=True), (dxhat * xhat).sum(axis=axes, keepdims=True)
    return inv_std / count * (count * dxhat - xhat * along_xhat - total), dgamma, dbeta


def rms_normalize(x, gamma, *, axes, eps):
    """Divide by the root mean square over `axes`."""
    return (x / ((x * x).mean(axis=axes, keepdims=True) + eps) ** 0.5 * gamma,)


def rms_backward(dout, cache, gamma, *, axes, parameter_axes):
    """Gradients of `rms_normalize` from xhat and inv_rms: dx, dgamma."""
    xhat, inv_rms = cache
    dxhat = dout * gamma
    dx = (dxhat - xhat * (dxhat * xhat).mean(axis=axes, keepdims=True)) * inv_rms
    return dx, (dout * xhat).sum(axis=parameter_axes)
