"""The equations of cbnorm in plain NumPy: the slow, readable twin that the library is tested against.

Statistics of each channel over its M values, and the batch normalized with them:

    mu = mean(x)    var = mean((x - mu)²)    inv_std = 1 / sqrt(var + eps)
    xhat = (x - mu)·inv_std                  y = gamma·xhat + beta

Everything is computed in float64, whatever comes in. longdouble stays longdouble (truth for float64 kernels)
and complex stays complex (derivatives by complex step), so nothing here may use abs, conj or np.var.
"""

import math
from typing import NamedTuple

import numpy as np


def as_float(values):
    """Values as float64 (exact for float16 and float32), or in their own dtype where that is wider."""
    values = np.asarray(values)
    return values.astype(np.result_type(values.dtype, np.float64), copy=False)


def to_columns(x, axis=1):
    """See x, channels along `axis`, as floats (M, channels), contiguous by channel: NumPy sums pairwise."""
    moved = np.ascontiguousarray(np.moveaxis(as_float(x), axis, 0))
    return moved.reshape(moved.shape[0], math.prod(moved.shape[1:])).T


def from_columns(columns, shape, axis=1):
    """Put (M, channels) back into `shape`: the inverse of `to_columns`."""
    others = list(shape)
    channels = others.pop(axis)
    return np.ascontiguousarray(np.moveaxis(columns.T.reshape(channels, *others), 0, axis))


def column_mean(columns):
    """Mean of each column, (M, channels) -> (channels,); 0 where there are no rows."""
    return columns.sum(axis=0) / max(len(columns), 1)


def parameter(values, default, shape):
    """gamma or beta as floats; None stands for `default` everywhere."""
    return np.full(shape, default) if values is None else as_float(values)


def naive_forward(x, gamma, beta, eps, axis=1):
    """Normalize with the mean and variance of the whole array: x -> y of the same shape.

    Its sums run in memory order: at a large mean and a large M it loses digits that `forward_nodes` keeps.
    """
    x = as_float(x)
    along_channels = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    mu = x.mean(axis=others, keepdims=True)
    var = ((x - mu) ** 2).mean(axis=others, keepdims=True)
    xhat = (x - mu) / np.sqrt(var + eps)
    return as_float(gamma).reshape(along_channels) * xhat + as_float(beta).reshape(along_channels)


class Nodes(NamedTuple):
    """Every node of the forward graph, in order; gamma is the input that backward needs again."""

    gamma: np.ndarray  # (channels,) or (M, channels)
    mu: np.ndarray  # (channels,)
    xc: np.ndarray  # (M, channels)
    square: np.ndarray  # (M, channels)
    var: np.ndarray  # (channels,)
    std: np.ndarray  # (channels,)
    inv_std: np.ndarray  # (channels,)
    xhat: np.ndarray  # (M, channels)
    y: np.ndarray  # (M, channels)


def forward_nodes(x, gamma=1.0, beta=0.0, eps=1e-5, mu=None, var=None):
    """Node by node forward: x (M, channels) -> y (M, channels), Nodes.

    gamma and beta are (channels,), or (M, channels) where each value has its own; mu and var (channels,),
    where given, stand in for those of x.
    """
    x, gamma, beta = as_float(x), as_float(gamma), as_float(beta)
    mu = column_mean(x) if mu is None else as_float(mu)
    xc = x - mu
    square = xc**2
    var = column_mean(square) if var is None else as_float(var)
    std = np.sqrt(var + eps)
    inv_std = 1 / std
    xhat = xc * inv_std
    y = gamma * xhat + beta
    return y, Nodes(gamma, mu, xc, square, var, std, inv_std, xhat, y)


def parameter_gradients(dout, xhat, axes=0):
    """dgamma = Σ dout·xhat and dbeta = Σ dout, summed over `axes`."""
    return (dout * xhat).sum(axis=axes), as_float(dout).sum(axis=axes)


def graph_backward(dout, nodes):
    """Back through the graph, one line per node: dout (M, channels) -> dx, dgamma, dbeta."""
    dout, M = as_float(dout), max(len(dout), 1)
    dgamma, dbeta = parameter_gradients(dout, nodes.xhat)
    dxhat = dout * nodes.gamma
    distd = (dxhat * nodes.xc).sum(axis=0)
    dstd = -distd / nodes.std**2
    dvar = dstd / (2 * nodes.std)
    dxc = dxhat * nodes.inv_std + 2 * nodes.xc * dvar / M
    dmu = -dxc.sum(axis=0)
    dx = dxc + dmu / M
    return dx, dgamma, dbeta


def compact_backward(dout, xhat, inv_std, gamma):
    """The graph collapsed into one line, as the kernels have it: dout (M, channels) -> dx, dgamma, dbeta."""
    dout, M = as_float(dout), max(len(dout), 1)
    dgamma, dbeta = parameter_gradients(dout, xhat)
    dx = (gamma * inv_std / M) * (M * dout - xhat * dgamma - dbeta)
    return dx, dgamma, dbeta


def dxhat_backward(dxhat, xhat, inv_std):
    """The same line for a gamma that differs inside a channel: dxhat = dout·gamma (M, channels) -> dx."""
    dxhat, M = as_float(dxhat), max(len(dxhat), 1)
    return (inv_std / M) * (M * dxhat - xhat * (dxhat * xhat).sum(axis=0) - dxhat.sum(axis=0))


def frozen_backward(dout, xhat, inv_std, gamma):
    """Test mode: the statistics do not depend on x. dout (M, channels) -> dx, dgamma, dbeta."""
    dgamma, dbeta = parameter_gradients(dout, xhat)
    return as_float(dout) * gamma * inv_std, dgamma, dbeta


class BatchNormCache(NamedTuple):
    """What `batchnorm_backward` needs; mean and inv_std are those that x was normalized with."""

    xhat: np.ndarray  # the shape of x
    gamma: np.ndarray  # (channels,)
    mean: np.ndarray  # (channels,)
    inv_std: np.ndarray  # (channels,)
    mode: str
    axis: int


def moving_average(old, batch, momentum):
    """momentum·old + (1 - momentum)·batch; None is not tracked."""
    return None if old is None else momentum * as_float(old) + (1 - momentum) * batch


def batchnorm_forward(
    x,
    gamma=None,
    beta=None,
    eps=1e-5,
    momentum=0.9,
    moving_mean=None,
    moving_var=None,
    mode="train",
    *,
    axis=1,
    ddof=0,
):
    """Normalize x, channels along `axis`, with its own statistics ("train") or the moving ones ("test").

    gamma, beta, moving_mean and moving_var are (channels,). The moving variance takes in the batch's with
    `ddof`; x is always normalized with the biased one.

    Returns
    -------
    y : the shape of x
    cache : BatchNormCache
    moving_mean, moving_var : (channels,), new arrays, or None where None came in
    """
    if mode not in ("train", "test"):
        raise ValueError(f"mode: expected 'train' or 'test', got {mode!r}")
    x = as_float(x)
    columns = to_columns(x, axis)
    M, channels = columns.shape
    gamma, beta = parameter(gamma, 1.0, channels), parameter(beta, 0.0, channels)
    if mode == "test" and (moving_mean is None or moving_var is None):
        raise ValueError("moving_mean, moving_var: expected both in test mode, got None")
    if mode == "train" and 0 < M <= ddof:
        raise ValueError(f"ddof: expected more than {ddof} values per channel, got {M}")
    given = (moving_mean, moving_var) if mode == "test" else ()
    y, nodes = forward_nodes(columns, gamma, beta, eps, *given)
    if mode == "test" or M == 0:
        momentum = 1  # the old statistics stand
    moving_mean = moving_average(moving_mean, nodes.mu, momentum)
    moving_var = moving_average(moving_var, nodes.var * M / max(M - ddof, 1), momentum)
    y, xhat = from_columns(y, x.shape, axis), from_columns(nodes.xhat, x.shape, axis)
    cache = BatchNormCache(xhat, gamma, nodes.mu, nodes.inv_std, mode, axis)
    return y, cache, moving_mean, moving_var


def batchnorm_backward(dout, cache):
    """dout (the shape of x) -> dx (the same), dgamma and dbeta (channels,)."""
    backward = {"train": compact_backward, "test": frozen_backward}[cache.mode]
    dout, xhat = to_columns(dout, cache.axis), to_columns(cache.xhat, cache.axis)
    dx, dgamma, dbeta = backward(dout, xhat, cache.inv_std, cache.gamma)
    return from_columns(dx, cache.xhat.shape, cache.axis), dgamma, dbeta


def pooled_statistics(batches, axis=1, ddof=0):
    """Mean and variance (channels,) of all batches as one: by count, the spread between them included."""
    _, nodes = forward_nodes(np.concatenate([to_columns(batch, axis) for batch in batches]))
    return nodes.mu, nodes.square.sum(axis=0) / (len(nodes.square) - ddof)


def batch_average(batches, axis=1):
    """The textbook form: mu = (1/B) Σ mu_i, var = (1/(B-1)) Σ var_i over the B batches that are not empty."""
    every = [forward_nodes(to_columns(batch, axis))[1] for batch in batches if np.size(batch)]
    B = len(every)
    return sum(nodes.mu for nodes in every) / B, sum(nodes.var for nodes in every) / (B - 1)


class RowsCache(NamedTuple):
    """What the backward of layer, group, instance and RMS normalization needs."""

    xhat: np.ndarray  # the shape of x
    gamma: np.ndarray  # broadcasts to the shape of x
    mean: np.ndarray  # (rows,), zeros for RMS
    inv_std: np.ndarray  # (rows,)
    shared_axes: tuple  # axes of x that gamma and beta have not


def rows_to_columns(values, num_rows):
    """See values, in the order of memory, as rows (num_rows, M), and these as columns (M, num_rows)."""
    return values.reshape(num_rows, values.size // max(num_rows, 1)).T


def rows_forward(x, gamma, beta, eps, num_rows, shared_axes):
    """Batch normalization whose channels are the rows of x; gamma and beta broadcast to x -> y, cache."""
    columns = [rows_to_columns(np.broadcast_to(each, x.shape), num_rows) for each in (x, gamma, beta)]
    y, nodes = forward_nodes(*columns, eps)
    xhat = nodes.xhat.T.reshape(x.shape)
    return y.T.reshape(x.shape), RowsCache(xhat, gamma, nodes.mu, nodes.inv_std, shared_axes)


def rows_backward(dout, cache):
    """dout (the shape of x) -> dx (the same), dgamma and dbeta (the shape of the parameters)."""
    dout, num_rows = as_float(dout), len(cache.inv_std)
    dxhat, xhat = (rows_to_columns(each, num_rows) for each in (dout * cache.gamma, cache.xhat))
    dx = dxhat_backward(dxhat, xhat, cache.inv_std).T.reshape(dout.shape)
    return dx, *parameter_gradients(dout, cache.xhat, cache.shared_axes)


def layernorm_forward(x, gamma=None, beta=None, eps=1e-5, *, axis=-1):
    """Normalize over the trailing axes from `axis` on; gamma and beta x.shape[axis:] -> y, cache."""
    x = as_float(x)
    leading, trailing = x.shape[:axis], x.shape[axis:]
    gamma, beta = parameter(gamma, 1.0, trailing), parameter(beta, 0.0, trailing)
    return rows_forward(x, gamma, beta, eps, math.prod(leading), tuple(range(len(leading))))


def groupnorm_forward(x, gamma, beta, num_groups, eps=1e-5):
    """Normalize each sample's channels in `num_groups` groups; x (N, C, *), gamma, beta (C,) -> y, cache."""
    x = as_float(x)
    samples, channels, *spatial = x.shape
    if channels % num_groups:
        raise ValueError(f"num_groups: expected a divisor of {channels} channels, got {num_groups}")
    along_channels = (channels, *(1 for _ in spatial))
    gamma = parameter(gamma, 1.0, channels).reshape(along_channels)
    beta = parameter(beta, 0.0, channels).reshape(along_channels)
    return rows_forward(x, gamma, beta, eps, samples * num_groups, (0, *range(2, x.ndim)))


def instancenorm_forward(x, gamma=None, beta=None, eps=1e-5):
    """Group normalization with one channel a group; x (N, C, *), gamma, beta (C,) -> y, cache."""
    return groupnorm_forward(x, gamma, beta, x.shape[1], eps)


layernorm_backward = groupnorm_backward = instancenorm_backward = rows_backward


def rmsnorm_forward(x, gamma=None, eps=1e-5, *, axis=-1):
    """Divide by the root mean square over the trailing axes; gamma x.shape[axis:] -> y, cache."""
    x = as_float(x)
    gamma, leading = parameter(gamma, 1.0, x.shape[axis:]), x.shape[:axis]
    columns = rows_to_columns(x, math.prod(leading))
    inv_rms = 1 / np.sqrt(column_mean(columns**2) + eps)
    xhat = (columns * inv_rms).T.reshape(x.shape)
    return xhat * gamma, RowsCache(xhat, gamma, 0 * inv_rms, inv_rms, tuple(range(len(leading))))


def rmsnorm_backward(dout, cache):
    """dout (the shape of x) -> dx (the same) and dgamma (the shape of gamma)."""
    dout, num_rows = as_float(dout), len(cache.inv_std)
    dxhat, xhat = (rows_to_columns(each, num_rows) for each in (dout * cache.gamma, cache.xhat))
    dx = cache.inv_std * (dxhat - xhat * column_mean(dxhat * xhat))
    dgamma, _ = parameter_gradients(dout, cache.xhat, cache.shared_axes)
    return dx.T.reshape(dout.shape), dgamma
