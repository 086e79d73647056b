"""The normalizations as a NumPy user writes them, in the dtype of the arrays and for any axes.

The rival of cbnorm in the demo and in the benchmark, where JAX compiles them too; in float64 they are what the
benchmark checks results against. So arrays come first, and nothing here needs them to be NumPy's.

`axes` are those that share a mean; parameters broadcast to x, as statistics do, which keep these axes with length 1.
"""


def moments(x, *, axes):
    """Mean and variance over `axes`."""
    return x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)


def normalize(x, mean, var, gamma, beta, *, eps):
    """Normalize by any mean and variance, such as moving averages.

    Returns
    -------
    y : array, the shape of x
    cache : tuple
        xhat and inv_std, for the backward pass.
    """
    inv_std = 1 / (var + eps) ** 0.5
    xhat = (x - mean) * inv_std
    return gamma * xhat + beta, (xhat, inv_std)


def forward(x, gamma, beta, *, axes, eps):
    """Normalize by the mean and variance over `axes`: y and the cache."""
    return normalize(x, *moments(x, axes=axes), gamma, beta, eps=eps)


def train(x, gamma, beta, moving_mean, moving_var, *, axes, eps, momentum):
    """As `forward`; returns the moving averages, (channels,), too, with the mean and variance of x taken in."""
    mean, var = moments(x, axes=axes)
    y, cache = normalize(x, mean, var, gamma, beta, eps=eps)
    moving_mean = momentum * moving_mean + (1 - momentum) * mean.reshape(-1)
    moving_var = momentum * moving_var + (1 - momentum) * var.reshape(-1)
    return y, cache, moving_mean, moving_var


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


def rms_forward(x, gamma, *, axes, eps):
    """Divide by the root mean square over `axes`: y, and xhat and inv_rms as the cache."""
    inv_rms = 1 / ((x * x).mean(axis=axes, keepdims=True) + eps) ** 0.5
    xhat = x * inv_rms
    return gamma * xhat, (xhat, inv_rms)


def rms_backward(dout, cache, gamma, *, axes, parameter_axes):
    """Gradients of `rms_forward`: dx, dgamma."""
    xhat, inv_rms = cache
    dxhat = dout * gamma
    dx = (dxhat - xhat * (dxhat * xhat).mean(axis=axes, keepdims=True)) * inv_rms
    return dx, (dout * xhat).sum(axis=parameter_axes)
