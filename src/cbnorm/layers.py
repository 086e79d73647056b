"""Normalization layers: the functions of this package with parameters, moving statistics and modes of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cbnorm._arrays import (
    as_input,
    check_choice,
    check_integer,
    check_length,
    check_lengths,
    check_number,
)
from cbnorm._axes import along_row, check_row_axes
from cbnorm._conversions import FromKeras, ParameterConversions
from cbnorm._state import Flag, Layer, flag
from cbnorm._weights import check_nonfinite, not_finite
from cbnorm.batchnorm import batchnorm_backward, batchnorm_forward
from cbnorm.convert import Conventions
from cbnorm.groupnorm import (
    groupnorm_backward,
    groupnorm_forward,
    instancenorm_backward,
    instancenorm_forward,
)
from cbnorm.layernorm import layernorm_backward, layernorm_forward
from cbnorm.rmsnorm import rmsnorm_backward, rmsnorm_forward

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "Layer", "LayerNorm", "RMSNorm"]


class BatchNorm(Conventions, Layer):
    """Batch normalization with parameters and moving statistics.

    In training, y = gamma·(x - mean) / sqrt(var + eps) + beta with the statistics of the batch, which also enter
    the moving statistics; after `eval`, with the moving statistics. A single value a channel gives beta in training,
    as equal values do.

    Parameters
    ----------
    num_channels : int
        Length of the channel axis.
    axis : int
        The channel axis: 1 for (N, D) and (N, C, H, W), -1 for (N, H, W, C).
    eps : float
        Added to the variance, in the units of x squared; at least 0.
    momentum : float or None
        0 to 1, the weight of the old: ``new = momentum * old + (1 - momentum) * batch``. None is the
        average of all batches since the start, each weighted equally whatever its size.
    ddof : {0, 1}
        Whether the moving variance takes in the biased (0) or the unbiased (1, PyTorch's rule) variance.
    affine : bool or {"gamma", "beta"}
        Whether there are gamma and beta: both, neither, or the one that is named alone.
    frozen : bool
        Use the moving statistics in training too and never change them by `forward`; gradients then take them as
        constants, ``dx = dout * gamma * inv_std``. The attribute may be changed at any time.
    dtype : dtype
        Of gamma and beta: float16, float32 or float64.
    nonfinite : {"propagate", "skip", "raise"}
        What becomes of a batch whose mean or variance is NaN or infinite in some channel: the moving statistics of that
        channel become so too, and stay so; they are left as they were; or it is a ValueError, and nothing has changed.
    reuse_output : bool
        Whether y and dx may lie in memory that the next call of the same thread overwrites; see `Layer`.

    Attributes
    ----------
    gamma, beta : ndarray or None
        (num_channels,), `dtype`.
    moving_mean, moving_var : ndarray
        (num_channels,), float64.
    num_batches : int
        Batches that the moving statistics were gathered from, without the empty ones.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.BatchNorm(2)
    >>> x = np.float32([[1, 10], [3, 14]])
    >>> layer(x).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> dx = layer.backward(np.ones_like(x))
    >>> layer.grads["beta"]
    array([2., 2.], dtype=float32)
    >>> layer.moving_mean, layer.moving_var
    (array([0.2, 1.2]), array([1. , 1.3]))
    >>> y = layer.eval()(x)  # normalized with these
    """

    num_channels: int
    axis: int
    momentum: float | None
    ddof: int
    moving_mean: NDArray[np.float64]
    moving_var: NDArray[np.float64]
    num_batches: int
    nonfinite: str = "propagate"  # of pickles that do not say
    frozen: Flag = flag("frozen", "Whether training uses the moving statistics, and leaves them.")
    _backward = staticmethod(batchnorm_backward)
    _nonnegative = ("moving_var", "num_batches")

    def __init__(
        self,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.9,
        ddof: int = 0,
        affine: bool | str = True,
        frozen: bool = False,
        nonfinite: str = "propagate",
        dtype: DTypeLike = np.float32,
        reuse_output: bool = False,
    ) -> None:
        self.num_channels = check_length("num_channels", num_channels)
        super().__init__((self.num_channels,), eps, affine, dtype, reuse_output)
        self.nonfinite = check_nonfinite(nonfinite)
        self.axis = check_integer("axis", axis)
        self.momentum = None if momentum is None else check_number("momentum", momentum, 0.0, 1.0)
        self.ddof = check_choice("ddof", ddof, (0, 1))
        self.frozen = frozen
        self.moving_mean, self.moving_var = np.zeros(self.num_channels), np.ones(self.num_channels)
        self.num_batches = 0

    def __call__(self, x: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[Any]:
        """Return ``forward(x)``."""
        return self.forward(x, weights=weights)

    def forward(self, x: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[Any]:
        """Normalize a batch and, in training, take its statistics into the moving ones.

        Parameters
        ----------
        x : array_like
            At least two axes, `num_channels` long on the channel axis. `backward` reads it again.
        weights : array_like, optional
            What each place counts in the statistics of x: a mask or numbers from 0 up, the shape of x without its
            channel axis, or (N,); see `batchnorm_forward`.

        Returns
        -------
        ndarray
            y, the shape of x; its dtype, or float64 for integers.

        Raises
        ------
        ValueError, TypeError
            If `x` or `weights` do not fit, x has one value a channel in training with ``ddof=1``, or its statistics are
            not finite and `nonfinite` is "raise"; nothing has changed then.
        """
        x = as_input(x, 2, self.axis, (self.num_channels,))
        inputs = (x, self.gamma, self.beta, self.eps)
        options = {"axis": self.axis, "ddof": self.ddof, "weights": weights, "out": self._room_for_y(x)}
        if self._frozen or not self._training:
            with self._lock:
                moving = {"moving_mean": self.moving_mean, "moving_var": self.moving_var}
            y, cache, *_ = batchnorm_forward(*inputs, **moving, mode="test", **options)
            return self._remember(y, cache)
        with self._lock:  # from reading the old moving statistics to writing the new
            seen = self.num_batches
            momentum = seen / (seen + 1) if self.momentum is None else self.momentum
            y, cache, mean, var = batchnorm_forward(*inputs, momentum, self.moving_mean, self.moving_var, **options)
            counts = x.size > 0 and (weights is None or np.any(weights))
            if self.nonfinite != "propagate":
                counts = self._leave_out(mean, var, cache.mean + cache.inv_std) and counts
            self._replace(mean, var, seen + bool(counts))
        return self._remember(y, cache)

    def _leave_out(self, mean: NDArray[np.float64], var: NDArray[np.float64], batch: NDArray[np.float64]) -> bool:
        """Channels whose statistics are not finite from new moving ones; whether any is left."""
        old = self.moving_mean + self.moving_var
        spoilt = ~np.isfinite(batch) | (~np.isfinite(mean + var) & np.isfinite(old))  # a variance may be too large
        if self.nonfinite == "raise" and spoilt.any():
            raise not_finite(int(spoilt.argmax()))
        mean[spoilt], var[spoilt] = self.moving_mean[spoilt], self.moving_var[spoilt]
        return not spoilt.all()

    def scale_shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What test mode multiplies by and adds, y = x·scale + shift, for code that has nothing else.

        Returns
        -------
        scale, shift : ndarray
            (num_channels,), float64: gamma / sqrt(moving_var + eps), and beta - moving_mean·scale. The layer itself and
            `fold_batchnorm` lose fewer digits where the mean is far from 0.

        Examples
        --------
        >>> import cbnorm
        >>> layer = cbnorm.BatchNorm(1, eps=0.0)
        >>> layer.moving_mean[:], layer.moving_var[:] = 3.0, 4.0
        >>> layer.scale_shift()
        (array([0.5]), array([-1.5]))
        """
        with self._lock:
            mean, var = self.moving_mean, self.moving_var + self.eps
        with np.errstate(all="ignore"):
            scale = np.where(var == 0, 0.0, 1 / np.sqrt(var))
            if self.gamma is not None:
                scale = scale * self.gamma
            shift = -mean * scale
        return scale, shift if self.beta is None else shift + self.beta

    def _described(self) -> list[str]:
        texts = [str(self.num_channels)]
        if self.axis != 1:
            texts.append(f"axis={self.axis}")
        texts.append(f"momentum={self.momentum}")
        if self.ddof:
            texts.append(f"ddof={self.ddof}")
        if self.frozen:
            texts.append("frozen=True")
        if self.nonfinite != "propagate":
            texts.append(f"nonfinite={self.nonfinite!r}")
        return texts + super()._described()

    def _replace(self, moving_mean: NDArray[np.float64], moving_var: NDArray[np.float64], num_batches: int) -> None:
        # No call in between: a child that another thread forks at this moment has the old ones or the new ones.
        self.moving_mean, self.moving_var, self.num_batches = moving_mean, moving_var, num_batches

    def _state(self) -> dict[str, Any]:
        moving = {name: getattr(self, name) for name in ("moving_mean", "moving_var")}
        return self.parameters() | moving | {"num_batches": np.int64(self.num_batches)}


class LayerNorm(FromKeras, ParameterConversions, Layer):
    """Layer normalization: y = gamma·(x - mean) / sqrt(var + eps) + beta over the trailing axes.

    A row of a single number gives beta, as equal numbers do.

    Parameters
    ----------
    shape : int or tuple of int
        Lengths of the normalized axes, the last ones of x.
    axis : tuple of ints, optional
        These axes, where they are not the last ones, in the order of x.
    affine : bool or {"gamma", "beta"}
        Whether there are gamma and beta, of this shape: both, neither, or the one that is named alone.
    eps, dtype, reuse_output
        As in `BatchNorm`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.LayerNorm(2)
    >>> layer(np.float32([[1, 3], [10, 14]])).round(3)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    shape: tuple[int, ...]
    axis: tuple[int, ...] | None = None  # of pickles that do not say
    _backward = staticmethod(layernorm_backward)
    _keras_epsilon = 1e-3
    _torch_size, _own_size = "normalized_shape", "shape"

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: tuple[int, ...] | None = None,
        eps: float = 1e-5,
        affine: bool | str = True,
        dtype: DTypeLike = np.float32,
        reuse_output: bool = False,
    ) -> None:
        self.shape = check_lengths("shape", shape)
        super().__init__(self.shape, eps, affine, dtype, reuse_output)
        self.axis = check_row_axes(axis, self.shape)

    def _described(self) -> list[str]:
        axis = [] if self.axis is None else [f"axis={self.axis}"]
        return [str(self.shape[0] if len(self.shape) == 1 else self.shape), *axis, *super()._described()]

    def forward(self, x: ArrayLike) -> NDArray[Any]:
        """Normalize x, (*, *shape), to a y of the same shape."""
        axis, x = along_row(self.axis, self.shape, x)
        return self._remember(
            *layernorm_forward(x, self.gamma, self.beta, self.eps, axis=axis, out=self._room_for_y(x))
        )


class RMSNorm(FromKeras, ParameterConversions, Layer):
    """RMS normalization: y = gamma·x / sqrt(mean(x²) + eps) over the trailing axes.

    Parameters
    ----------
    shape : int or tuple of int
        Lengths of the normalized axes, the last ones of x.
    axis : tuple of ints, optional
        These axes, where they are not the last ones, in the order of x.
    affine : bool
        Whether there is gamma, of this shape.
    eps, dtype, reuse_output
        As in `BatchNorm`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.RMSNorm(2, eps=0.0)
    >>> layer(np.float32([[1, 7]]))
    array([[0.2, 1.4]], dtype=float32)
    """

    shape: tuple[int, ...]
    axis: tuple[int, ...] | None = None  # of pickles that do not say
    _parameters = ("gamma",)
    _backward = staticmethod(rmsnorm_backward)
    _keras_epsilon = 1e-6
    _torch_size, _own_size = "normalized_shape", "shape"

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: tuple[int, ...] | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: DTypeLike = np.float32,
        reuse_output: bool = False,
    ) -> None:
        self.shape = check_lengths("shape", shape)
        super().__init__(self.shape, eps, affine, dtype, reuse_output)
        self.axis = check_row_axes(axis, self.shape)

    def _described(self) -> list[str]:
        axis = [] if self.axis is None else [f"axis={self.axis}"]
        return [str(self.shape[0] if len(self.shape) == 1 else self.shape), *axis, *super()._described()]

    def forward(self, x: ArrayLike) -> NDArray[Any]:
        """Normalize x, (*, *shape), to a y of the same shape."""
        axis, x = along_row(self.axis, self.shape, x)
        return self._remember(*rmsnorm_forward(x, self.gamma, self.eps, axis=axis, out=self._room_for_y(x)))


class GroupNorm(FromKeras, ParameterConversions, Layer):
    """Group normalization: statistics of each group of neighbouring channels of each sample.

    A group of a single value (one channel, one position) gives beta, as equal values do, and gradients of 0 for x and
    gamma: no error says that nothing is left of x.

    Parameters
    ----------
    num_groups : int
        Divides `num_channels`.
    num_channels : int
        Length of the channel axis of x.
    axis : int
        The channel axis of x: 1 for (N, C, *), -1 for (N, *, C).
    affine : bool or {"gamma", "beta"}
        Whether there are gamma and beta, (num_channels,): both, neither, or the one that is named alone.
    eps, dtype, reuse_output
        As in `BatchNorm`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.GroupNorm(2, 4)
    >>> layer(np.float32([[1, 3, 10, 14]])).round(3)
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    num_groups: int
    num_channels: int
    axis: int = 1  # of pickles that do not say
    _backward = staticmethod(groupnorm_backward)
    _keras_epsilon = 1e-3
    _torch_size, _own_size = "num_channels", "num_channels"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        affine: bool | str = True,
        dtype: DTypeLike = np.float32,
        reuse_output: bool = False,
    ) -> None:
        self.num_groups = check_integer("num_groups", num_groups, low=1)
        self.num_channels = check_length("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(f"num_groups: expected a divisor of {num_channels} channels, got {num_groups}")
        super().__init__((self.num_channels,), eps, affine, dtype, reuse_output)
        self.axis = check_choice("axis", axis, (1, -1))

    def _described(self) -> list[str]:
        axis = ["axis=-1"] if self.axis != 1 else []
        return [f"{self.num_groups}, {self.num_channels}", *axis, *super()._described()]

    def forward(self, x: ArrayLike) -> NDArray[Any]:
        """Normalize x, (N, num_channels, *) or (N, *, num_channels), to a y of the same shape."""
        x = as_input(x, 2, self.axis, (self.num_channels,))
        return self._remember(
            *groupnorm_forward(
                x, self.gamma, self.beta, self.num_groups, self.eps, axis=self.axis, out=self._room_for_y(x)
            )
        )


class InstanceNorm(ParameterConversions, Layer):
    """Instance normalization: statistics of each channel of each sample.

    A channel of one position, as in (N, C), gives beta, as equal values do, and gradients of 0 for x and gamma: no
    error says that nothing is left of x. PyTorch's layer refuses it.

    Parameters
    ----------
    num_channels : int
        Length of the channel axis of x.
    axis : int
        The channel axis of x: 1 for (N, C, *), -1 for (N, *, C).
    affine : bool or {"gamma", "beta"}
        Whether there are gamma and beta, (num_channels,): both, neither, or the one that is named alone.
        PyTorch's layer has neither by default.
    eps, dtype, reuse_output
        As in `BatchNorm`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.InstanceNorm(2)
    >>> layer(np.float32([[[1, 3], [10, 14]]])).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """

    num_channels: int
    axis: int = 1  # of pickles that do not say
    _backward = staticmethod(instancenorm_backward)
    _torch_size, _own_size = "num_features", "num_channels"

    def __init__(
        self,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        affine: bool | str = True,
        dtype: DTypeLike = np.float32,
        reuse_output: bool = False,
    ) -> None:
        self.num_channels = check_length("num_channels", num_channels)
        super().__init__((self.num_channels,), eps, affine, dtype, reuse_output)
        self.axis = check_choice("axis", axis, (1, -1))

    def _described(self) -> list[str]:
        axis = ["axis=-1"] if self.axis != 1 else []
        return [str(self.num_channels), *axis, *super()._described()]

    def forward(self, x: ArrayLike) -> NDArray[Any]:
        """Normalize x, (N, num_channels, *) or (N, *, num_channels), to a y of the same shape."""
        x = as_input(x, 2, self.axis, (self.num_channels,))
        return self._remember(
            *instancenorm_forward(x, self.gamma, self.beta, self.eps, axis=self.axis, out=self._room_for_y(x))
        )
