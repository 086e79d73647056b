"""Batch normalization layers from and to the conventions of other libraries: arrays and numbers, no framework.

          new moving average                    its variance   eps    channel axis
cbnorm    momentum·old + (1 - momentum)·batch   ddof           1e-5   1
PyTorch   (1 - momentum)·old + momentum·batch   unbiased       1e-5   1
Keras     momentum·old + (1 - momentum)·batch   biased         1e-3   -1
ONNX      momentum·old + (1 - momentum)·batch   biased         1e-5   1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import EllipsisType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cbnorm._arrays import (
    check_dtype,
    check_eps,
    check_flag,
    check_nonnegative,
    check_number,
    check_shape,
    shown,
)
from cbnorm._conversions import Source, numbers_of
from cbnorm._results import FLOAT64, copy_of, float_dtypes

# The names of one thing in each library.
ARRAYS = ("gamma", "beta", "moving_mean", "moving_var")
TORCH = ("weight", "bias", "running_mean", "running_var")
KERAS = ("gamma", "beta", "moving_mean", "moving_variance")
ONNX = ("scale", "B", "input_mean", "input_var")


class Conventions:
    """The conversions of `BatchNorm`.

    Notes
    -----
    Arrays are copied both ways. ``from_x(**layer.to_x())`` has every number of the layer to the bit, and
    ``from_x(...).to_x()`` every bit of what was given.

    The numbers of the moving variance are never changed: outputs at test time depend on them. What changes with the
    library is the rule for batches to come, `ddof`: 1 in a layer from PyTorch, 0 in the others.

    The `dtype` of the arrays given is by default that of gamma and beta; of the moving statistics too, unless
    they would lose digits in it: then both are float64, as they are after training in cbnorm.
    """

    @classmethod
    def from_torch(
        cls,
        state_dict: Mapping[str, ArrayLike] | Any,
        *,
        prefix: str = "",
        momentum: float | EllipsisType | None = ...,
        eps: float | None = None,
        axis: int = 1,
    ) -> Self:
        """Make a layer of a ``torch.nn.BatchNorm*d``, or of its state.

        Parameters
        ----------
        state_dict : module or mapping
            The module itself, of whose attributes all is read, its mode too; or a `state_dict`, of it or of a whole
            network: `weight` and `bias` (neither for ``affine=False``, no `bias` for ``bias=False``), `running_mean`,
            `running_var`, and `num_batches_tracked` if there: tensors on the CPU or arrays, (channels,).
        prefix : str
            Where the layer's names begin in the `state_dict` of a network, such as "layer1.0.bn1".
        momentum : float or None
            PyTorch's, the weight of the new batch; None is the average of all batches. By default the module's, or 0.1.
        eps : float, optional
            PyTorch's. By default the module's; a `state_dict` has none, and a wrong one shows in small variances.
        axis : int
            The channel axis of x; PyTorch's modules have 1.

        Returns
        -------
        BatchNorm
            With ``ddof=1``, PyTorch's rule.

        Raises
        ------
        ValueError, TypeError
            If a key is missing or unknown, or an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> state = {"weight": np.ones(2), "bias": np.zeros(2), "running_mean": np.zeros(2), "running_var": np.ones(2)}
        >>> layer = cbnorm.BatchNorm.from_torch(state, momentum=0.1, eps=1e-5)
        >>> layer.momentum
        0.9
        >>> y = layer(np.array([[1.0, 10.0], [3.0, 14.0]]))
        >>> layer.to_torch()["state_dict"]["running_var"]  # the unbiased variances of the batch are 2 and 8
        array([1.1, 1.7])
        """
        source = Source(state_dict, prefix, (*TORCH, "num_batches_tracked"))
        # PyTorch has no bias without a weight.
        has = {"weight": "weight" in source.arrays or "bias" in source.arrays, "bias": "bias" in source.arrays}
        wanted = [name for name in TORCH if has.get(name, True)]
        for name in wanted:
            if name not in source.arrays:
                raise ValueError(
                    f"state_dict: expected the keys {', '.join(map(repr, wanted))}, got none for {prefix + name!r}"
                )
        given = {own: source.arrays[name] for own, name in zip(ARRAYS, TORCH, strict=True) if name in wanted}
        if momentum is ...:
            momentum = source.attribute("momentum", 0.1)
        new_weight = None if momentum is None else check_number("momentum", momentum, 0.0, 1.0)
        old_weight = None if momentum is None else complement(new_weight)
        num_batches = _count(*source.arrays.get("num_batches_tracked", ("", 0)))
        layer = cls._holding(given, momentum=old_weight, eps=source.eps(eps), axis=axis, ddof=1)
        layer.num_batches = num_batches
        layer.training = bool(source.attribute("training", True))
        layer._torch_momentum = old_weight, new_weight
        return layer

    def to_torch(self, *, dtype: DTypeLike | None = None) -> dict[str, Any]:
        """Return `state_dict`, `momentum`, `eps` and `axis` as `from_torch` takes them.

        `momentum` is the very number that `from_torch` was given, or 1 minus the layer's momentum. The
        layer's own comes back exactly from 0.5 up, and below wherever it has at most 15 decimals.

        Parameters
        ----------
        dtype : dtype, optional
            Of the arrays. By default that of the layer, for moving statistics as far as it holds them exactly.

        Returns
        -------
        dict
            `state_dict` for ``load_state_dict`` of PyTorch's module, each array by way of ``torch.from_numpy``. A layer
            without beta has no `bias`: it is a module of ``bias=False`` (PyTorch 2.13; to earlier ones add zeros).
            Ones stand for a `weight` that a layer with beta lacks, as PyTorch has no such module.

        Examples
        --------
        >>> import cbnorm
        >>> cbnorm.BatchNorm(2, momentum=0.99).to_torch()["momentum"]
        0.01
        """
        *arrays, num_batches = self._held(dtype, fill=() if self.beta is None else ("gamma",))
        state = {name: array for name, array in zip(TORCH, arrays, strict=True) if array is not None}
        old_weight, new_weight = getattr(self, "_torch_momentum", (None, None))
        if self.momentum is None:
            new_weight = None
        elif self.momentum != old_weight:
            new_weight = complement(self.momentum)
        return {
            "state_dict": state | {"num_batches_tracked": num_batches},
            "momentum": new_weight,
            "eps": self.eps,
            "axis": self.axis,
        }

    @classmethod
    def from_keras(
        cls,
        weights: Sequence[ArrayLike],
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        axis: int = -1,
        scale: bool = True,
        center: bool = True,
    ) -> Self:
        """Make a layer of the weights of a ``keras.layers.BatchNormalization``.

        Parameters
        ----------
        weights : sequence of array_like
            ``get_weights()``: gamma (if `scale`), beta (if `center`), moving mean, moving variance.
        momentum, epsilon, axis, scale, center
            Keras's, with its defaults.

        Returns
        -------
        BatchNorm
            With ``ddof=0``, Keras's rule.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> layer = cbnorm.BatchNorm.from_keras([np.ones(2), np.zeros(2), np.zeros(2), np.ones(2)])
        >>> layer.momentum, layer.eps, layer.axis
        (0.99, 0.001, -1)
        """
        if not isinstance(weights, Sequence | np.ndarray):
            raise TypeError(f"weights: expected a sequence of arrays, got {type(weights).__name__}")
        has = {"gamma": check_flag("scale", scale), "beta": check_flag("center", center)}
        present = [name for name in KERAS if has.get(name, True)]
        if len(weights) != len(present):
            raise ValueError(f"weights: expected {len(present)} arrays ({', '.join(present)}), got {len(weights)}")
        given = {
            ARRAYS[KERAS.index(name)]: (f"weights ({name})", value)
            for name, value in zip(present, weights, strict=True)
        }
        return cls._holding(given, momentum=_numeric(momentum), eps=check_eps(epsilon, "epsilon"), axis=axis)

    def to_keras(self, *, dtype: DTypeLike | None = None) -> dict[str, Any]:
        """Return `weights` and the attributes as `from_keras` takes them.

        Parameters
        ----------
        dtype : dtype, optional
            As in `to_torch`.

        Returns
        -------
        dict
            `weights` for ``set_weights``; `momentum`, `epsilon`, `axis`, `scale` and `center` for the layer's
            constructor.

        Raises
        ------
        ValueError
            If the layer has ``momentum=None``, which Keras has not.

        Examples
        --------
        >>> import cbnorm
        >>> attributes = cbnorm.BatchNorm(2, axis=-1).to_keras()
        >>> weights = attributes.pop("weights")
        >>> attributes
        {'momentum': 0.9, 'epsilon': 1e-05, 'axis': -1, 'scale': True, 'center': True}
        """
        *arrays, _ = self._held(dtype)
        return {
            "weights": [array for array in arrays if array is not None],
            "momentum": _numeric(self.momentum),
            "epsilon": self.eps,
            "axis": self.axis,
            "scale": self.gamma is not None,
            "center": self.beta is not None,
        }

    @classmethod
    def from_onnx(
        cls,
        scale: ArrayLike,
        B: ArrayLike,
        input_mean: ArrayLike,
        input_var: ArrayLike,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        axis: int = 1,
    ) -> Self:
        """Make a layer of the inputs and attributes of ONNX's BatchNormalization.

        Parameters
        ----------
        scale, B, input_mean, input_var : array_like
            (channels,), the inputs of these names.
        epsilon, momentum : float
            The attributes of these names, with ONNX's defaults.
        axis : int
            The channel axis of x; ONNX's operator has 1.

        Returns
        -------
        BatchNorm
            With ``ddof=0``, ONNX's rule.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> layer = cbnorm.BatchNorm.from_onnx(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2), epsilon=1e-3)
        >>> layer.momentum, layer.eps
        (0.9, 0.001)
        """
        given = dict(zip(ARRAYS, zip(ONNX, (scale, B, input_mean, input_var), strict=True), strict=True))
        return cls._holding(given, momentum=_numeric(momentum), eps=check_eps(epsilon, "epsilon"), axis=axis)

    def to_onnx(self, *, dtype: DTypeLike | None = None) -> dict[str, Any]:
        """Return the four inputs and the attributes as `from_onnx` takes them.

        Parameters
        ----------
        dtype : dtype, optional
            As in `to_torch`. ONNX Runtime wants one dtype for all.

        Returns
        -------
        dict
            `scale`, `B`, `input_mean`, `input_var`; `epsilon`, `momentum`; `axis`, which the operator itself has not.
            Ones or zeros stand for a gamma or beta that the layer lacks.

        Raises
        ------
        ValueError
            If the layer has ``momentum=None``, which ONNX has not.

        Examples
        --------
        >>> import cbnorm
        >>> cbnorm.BatchNorm(2, affine=False).to_onnx()["scale"]
        array([1., 1.], dtype=float32)
        """
        *arrays, _ = self._held(dtype, fill=("gamma", "beta"))
        inputs = dict(zip(ONNX, arrays, strict=True))
        return inputs | {"epsilon": self.eps, "momentum": _numeric(self.momentum), "axis": self.axis}

    @classmethod
    def _holding(cls, given: dict[str, tuple[str, Any]], **options):
        """Make a layer of arrays that are each given by its own name: its name for errors, and itself."""
        arrays = {own: numbers_of(*named) for own, named in given.items()}
        shape = arrays["moving_mean"].shape
        if len(shape) != 1:
            raise ValueError(f"{given['moving_mean'][0]}: expected one axis, got shape {shape}")
        for own, array in arrays.items():
            check_shape(given[own][0], array, shape)
        check_nonnegative(given["moving_var"][0], arrays["moving_var"])
        parameters = [own for own in ARRAYS[:2] if own in arrays]
        dtype = np.result_type(*(float_dtypes(arrays[own])[1] for own in parameters or ["moving_mean"]))
        affine = parameters[0] if len(parameters) == 1 else bool(parameters)
        layer = cls(*shape, affine=affine, dtype=dtype, **options)
        for own, array in arrays.items():
            setattr(layer, own, copy_of(array, dtype if own in parameters else FLOAT64))
        return layer

    def _held(self, dtype, fill=()) -> list[NDArray[Any] | None]:
        """Gamma, beta, moving mean and variance in that dtype, and the number of batches: new arrays.

        Ones and zeros stand for what the layer lacks of those named in `fill`.
        """
        state = self.state_dict()
        moving = np.stack([state["moving_mean"], state["moving_var"]])
        for name, start in (("gamma", np.ones), ("beta", np.zeros)):
            if name in fill and name not in state:
                state[name] = start(self.num_channels, self.dtype)
        parameters = [state.get("gamma"), state.get("beta")]
        if dtype is None:
            narrow = copy_of(moving, self.dtype)
            arrays = [*parameters, *(narrow if np.array_equal(narrow, moving, equal_nan=True) else moving)]
        else:
            dtype = check_dtype(dtype)
            arrays = [None if array is None else copy_of(array, dtype) for array in (*parameters, *moving)]
        return [*arrays, state["num_batches"]]


def complement(weight: float) -> float:
    """1 - weight as one would write it, 0.9 for 0.1: of the decimals that Python shows for the two numbers.

    Taken twice it gives the weight back from 0.5 up, and below for every number of at most 15 decimals.
    """
    return float(1 - Fraction(repr(float(weight))))


def _count(name, value):
    array = numbers_of(name, value)
    if array.size != 1 or array.dtype.kind not in "iu" or array.item() < 0:
        raise ValueError(f"{name}: expected one integer of at least 0, got {shown(value)}")
    return array.item()


def _numeric(momentum):
    if momentum is None:
        raise ValueError("momentum: expected a number, as only PyTorch has the average of all batches, got None")
    return momentum
