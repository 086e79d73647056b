"""Folding batch normalization at test time into the linear or convolution weights before it.

With s = gamma / sqrt(moving_var + eps) per channel,
s·(W x + b - moving_mean) + beta = (s·W) x + s·(b - moving_mean) + beta.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbnorm._arrays import as_array, check_axis, check_divisor, check_flag, check_shape, shown
from cbnorm._results import float_dtypes
from cbnorm.layers import BatchNorm


def fold_batchnorm(
    weight: ArrayLike,
    bias: ArrayLike | None,
    layer: BatchNorm,
    *,
    channel_axis: int | None = None,
    groups: int | None = None,
    transposed: bool = False,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights and bias that give at once what these and the layer at test time give one after the other.

    Parameters
    ----------
    weight : array_like
        Of the linear or convolution layer before, with `layer.num_channels` output channels.
    bias : array_like or None
        (num_channels,). None is none.
    layer : BatchNorm
        Trained: its moving statistics count, whatever its mode. It is not changed.
    channel_axis : int, optional
        The axis of `weight` that holds the output channels: 0 for convolutions (out, in, height, width) and
        PyTorch's linear layers (out, in), 1 for W (in, out) of ``x @ W``. Not to be given beside `groups` or
        `transposed`, which say it as PyTorch has it.
    groups : int, optional
        Of a convolution, grouped or depthwise: (out, in / groups, height, width).
    transposed : bool
        Whether the convolution is a transposed one, (in, out / groups, height, width): of equal lengths, in and out
        cannot be told apart.

    Returns
    -------
    weight, bias : ndarray
        New arrays, computed in float64. The shape and dtype of `weight`, float64 for integers; (num_channels,) and the
        dtype of `bias`, or of `weight` where that is None.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Notes
    -----
    One sum cannot keep the digits that the layer keeps by subtracting the mean first: in float32, where
    |mean| is R times the standard deviation, the folded network loses log10(R) of its 7 digits.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.BatchNorm(2, eps=0.0, dtype=np.float64)
    >>> layer.moving_mean[:], layer.moving_var[:] = (1, 2), (4, 16)
    >>> W, b = cbnorm.fold_batchnorm(np.eye(2), None, layer, channel_axis=1)
    >>> np.array([[3.0, 6.0]]) @ W + b, layer.eval()([[3.0, 6.0]])
    (array([[1., 1.]]), array([[1., 1.]]))
    """
    if not isinstance(layer, BatchNorm):
        raise TypeError(f"layer: expected a BatchNorm, got {type(layer).__name__}")
    weight = as_array(weight, 1, "weight")
    transposed = check_flag("transposed", transposed)
    if groups is None and not transposed:
        parts, axis = 1, check_axis(channel_axis, weight.ndim, "channel_axis")
    else:
        if channel_axis is not None:
            raise ValueError(f"channel_axis: expected None beside groups or transposed, got {shown(channel_axis)}")
        as_array(weight, 2, "weight")
        parts = check_divisor("groups", 1 if groups is None else groups, layer.num_channels)
        axis = 1 if transposed else 0
        parts = parts if transposed else 1  # the outputs of all groups lie one after the other
    if weight.shape[axis] * parts != layer.num_channels or weight.shape[0] % parts:
        wanted = f"{layer.num_channels}" + (f" / {parts} groups" if parts > 1 else "")
        raise ValueError(f"weight: expected length {wanted} on axis {axis}, got shape {weight.shape}")
    weight_dtype = bias_dtype = float_dtypes(weight)[1]
    if bias is not None:
        bias = check_shape("bias", bias, (layer.num_channels,))
        bias_dtype = float_dtypes(bias)[1]

    state = layer.state_dict()
    # (parts, their inputs, their outputs, ...): one part, but for the groups of a transposed convolution.
    split = weight.reshape(parts, weight.shape[0] // parts, *weight.shape[1:])
    along = [parts, *(-1 if number == axis else 1 for number in range(weight.ndim))]
    with np.errstate(all="ignore"):  # beyond the range of a dtype is infinite, as in all of this package
        std = np.sqrt(state["moving_var"] + layer.eps)
        inv_std = np.divide(1.0, std, out=np.zeros_like(std), where=std != 0)  # as the layer has it
        scale = inv_std * state.get("gamma", 1.0)
        shift = (0.0 if bias is None else bias) - state["moving_mean"]
        folded_weight = (split * scale.reshape(along)).astype(weight_dtype).reshape(weight.shape)
        return folded_weight, (shift * scale + state.get("beta", 0.0)).astype(bias_dtype)
