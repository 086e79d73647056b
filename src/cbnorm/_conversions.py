"""Layers that have parameters alone, from and to other libraries; no framework is imported.

What a module of PyTorch's, or its state, tells by attributes and names, `BatchNorm` reads here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from cbnorm._arrays import NOT_OURS, as_numbers, check_eps, check_flag, check_integer, shown
from cbnorm._results import copy_of, float_dtypes

PARAMETERS = ("weight", "bias")


def numbers_of(name, value):
    """An array of what another library holds: a PyTorch parameter gives one only when detached."""
    try:
        value = value.detach() if hasattr(value, "detach") else value
    except NOT_OURS:
        raise
    except Exception as error:
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__}") from error
    return as_numbers(name, value)


class Source:
    """A module, or the part of a `state_dict` under a prefix.

    Attributes
    ----------
    arrays : dict
        What is there under PyTorch's names, each with the name that an error gives it.
    """

    def __init__(self, given, prefix, names):
        self._module = None if isinstance(given, Mapping) else given
        if not isinstance(prefix, str):
            raise TypeError(f"prefix: expected the beginning of the names in a state_dict, got {shown(prefix)}")
        if self._module is None:
            start = prefix if not prefix or prefix.endswith(".") else prefix + "."
            inside = {name[len(start) :]: name for name in given if str(name).startswith(start)}
            if start and not inside:
                raise ValueError(f"prefix: expected that of names in state_dict, got {prefix!r}")
            unknown = [name for key, name in inside.items() if key not in names]
            if unknown:
                raise ValueError(
                    f"state_dict: expected the keys {', '.join(map(repr, names))}, got also {unknown[0]!r}"
                )
            self.arrays = {key: (f"state_dict[{name!r}]", given[name]) for key, name in inside.items()}
            return
        if not all(hasattr(given, name) for name in ("eps", "state_dict")):
            raise TypeError(
                f"state_dict: expected arrays by name, or a module of PyTorch's, got {type(given).__name__}"
            )
        if prefix:
            raise ValueError(f"prefix: expected none with a module, got {prefix!r}")
        found = {name: getattr(given, name, None) for name in names}
        self.arrays = {name: (f"state_dict.{name}", value) for name, value in found.items() if value is not None}

    def attribute(self, name, default):
        """Of the module."""
        return default if self._module is None else getattr(self._module, name, default)

    def eps(self, given):
        """The one given, or the module's."""
        eps = self.attribute("eps", None) if given is None else given
        if eps is None:
            raise ValueError(
                "eps: expected that of the module, as a state_dict has none (PyTorch's default is 1e-5), got None"
            )
        return check_eps(eps)


class ParameterConversions:
    """The conversions of layers that have parameters alone: all but `BatchNorm`."""

    _parameters: tuple[str, ...]
    _torch_size: str  # the attribute of PyTorch's module that `_own_size` is named
    _own_size: str

    @classmethod
    def from_torch(
        cls, state_dict: Mapping[str, Any] | Any, *, prefix: str = "", eps: float | None = None, **sizes: Any
    ) -> Self:
        """Make a layer of PyTorch's module of the same name, or of its state.

        Parameters
        ----------
        state_dict : module or mapping
            The module, whose mode the layer takes over too; or a `state_dict`, of it or of a whole network.
        prefix : str
            Where the layer's names begin in the `state_dict` of a network, such as "encoder.norm1".
        eps : float, optional
            By default the module's. A `state_dict` has none.
        **sizes
            What a `state_dict` does not tell, by the names of the layer's own arguments: `num_groups` of `GroupNorm`,
            and the lengths of a layer that has no parameters.

        Returns
        -------
        Layer
            With copies of the parameters, in their dtype.

        Raises
        ------
        ValueError, TypeError
            If names are missing or unknown, or an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> state = {"norm.weight": np.full(3, 2.0), "norm.bias": np.zeros(3), "head.weight": np.ones((2, 3))}
        >>> layer = cbnorm.LayerNorm.from_torch(state, prefix="norm", eps=1e-5)
        >>> layer.gamma
        array([2., 2., 2.])
        """
        own_names = PARAMETERS[: len(cls._parameters)]
        source = Source(state_dict, prefix, (*own_names, "running_mean", "running_var", "num_batches_tracked"))
        if "running_mean" in source.arrays:
            raise ValueError(
                f"state_dict: expected the state of one that has no running statistics, as {cls.__name__} has none, "
                "got 'running_mean'"
            )
        named = zip(cls._parameters, own_names, strict=True)
        given = {own: source.arrays[name] for own, name in named if name in source.arrays}
        arrays = {own: numbers_of(*each) for own, each in given.items()}
        size = source.attribute(cls._torch_size, None)
        if size is None:
            size = sizes.pop(cls._own_size, next((array.shape for array in arrays.values()), None))
        if size is None:
            raise ValueError(f"{cls._own_size}: expected it where a state_dict has no parameters, got None")
        size = tuple(size) if isinstance(size, tuple | list) else (size,)
        groups = source.attribute("num_groups", None)
        sizes = ({} if groups is None else {"num_groups": groups}) | sizes
        sizes[cls._own_size] = size if cls._own_size == "shape" else size[0]
        if eps is None and source.attribute("eps", 0) is None:  # PyTorch's RMSNorm: that of the dtype
            eps = float(np.finfo(_dtype_of(arrays)).eps)
        layer = cls._of_arrays({own: (given[own][0], array) for own, array in arrays.items()}, source.eps(eps), sizes)
        layer.training = bool(source.attribute("training", True))
        return layer

    @classmethod
    def _of_arrays(cls, given, eps, sizes):
        """A layer of arrays by their own names, each with the name that an error gives it."""
        arrays = {own: numbers_of(*each) for own, each in given.items()}
        dtype, names = _dtype_of(arrays), list(arrays)
        affine = names[0] if len(names) == 1 and len(cls._parameters) > 1 else bool(names)
        layer = cls(**sizes, eps=eps, affine=affine, dtype=dtype)
        for own, array in arrays.items():
            if array.shape != getattr(layer, own).shape:
                raise ValueError(f"{given[own][0]}: expected shape {getattr(layer, own).shape}, got {array.shape}")
            setattr(layer, own, copy_of(array, dtype))
        return layer

    @classmethod
    def from_onnx(
        cls, scale: ArrayLike, B: ArrayLike | None = None, *, epsilon: float = 1e-5, num_groups: int | None = None
    ) -> Self:
        """Make a layer of the inputs and attributes of ONNX's LayerNormalization and its like.

        Parameters
        ----------
        scale, B : array_like
            The inputs of these names (`bias` in GroupNormalization, of one number a channel: opset 21); None is none,
            and RMSNormalization has no B. Their shape is that of the axes normalized, the last ones.
        epsilon : float
            The attribute of this name, with ONNX's default.
        num_groups : int, optional
            Of GroupNormalization.

        Returns
        -------
        Layer
            With copies of the parameters, in their dtype.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> cbnorm.GroupNorm.from_onnx(np.ones(4), np.zeros(4), num_groups=2)
        GroupNorm(2, 4, eps=1e-05, dtype=float64)
        """
        given = {own: named for own, named in zip(cls._parameters, (("scale", scale), ("B", B)), strict=False)}
        if B is not None and len(given) == 1:
            raise ValueError(f"B: expected None, as {cls.__name__} has no beta, got {shown(B)}")
        given = {own: named for own, named in given.items() if own == "gamma" or named[1] is not None}
        return cls._of_arrays(given, check_eps(epsilon, "epsilon"), cls._sizes_of(*given["gamma"], num_groups))

    @classmethod
    def _sizes_of(cls, name, value, num_groups):
        shape = numbers_of(name, value).shape
        sizes = {cls._own_size: shape if cls._own_size == "shape" else math.prod(shape)}
        return sizes if num_groups is None else sizes | {"num_groups": num_groups}

    def to_torch(self) -> dict[str, Any]:
        """Return `state_dict`, `eps` and what else `from_torch` takes; arrays are copies.

        Examples
        --------
        >>> import cbnorm
        >>> cbnorm.GroupNorm(2, 4, affine=False).to_torch()
        {'state_dict': {}, 'eps': 1e-05, 'num_groups': 2, 'num_channels': 4}
        """
        state = self.state_dict()
        names = dict(zip(self._parameters, PARAMETERS, strict=False))
        sizes = {"num_groups": self.num_groups} if hasattr(self, "num_groups") else {}
        sizes[self._own_size] = getattr(self, self._own_size)
        return {"state_dict": {names[own]: array for own, array in state.items()}, "eps": self.eps, **sizes}


class FromKeras:
    """The conversion from the layers that Keras has."""

    _keras_epsilon: float

    @classmethod
    def from_keras(
        cls,
        weights: Sequence[ArrayLike],
        *,
        epsilon: float | None = None,
        axis: int = -1,
        scale: bool = True,
        center: bool = True,
        groups: int | None = None,
    ) -> Self:
        """Make a layer of the weights of Keras's LayerNormalization, RMSNormalization or GroupNormalization.

        Parameters
        ----------
        weights : sequence of array_like
            ``get_weights()``: gamma (if `scale`), beta (if `center`; RMSNormalization has none).
        epsilon : float, optional
            Keras's; by default its own default, 1e-3, or 1e-6 of RMSNormalization.
        axis : int
            Keras's: -1, which normalizes the last axis; of GroupNormalization the channel axis, 1 or -1.
        scale, center, groups
            Keras's.

        Returns
        -------
        Layer
            With copies of the parameters, in their dtype.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.

        Examples
        --------
        >>> import numpy as np, cbnorm
        >>> cbnorm.LayerNorm.from_keras([np.ones(3), np.zeros(3)])
        LayerNorm(3, eps=0.001, dtype=float64)
        """
        if not isinstance(weights, Sequence | np.ndarray):
            raise TypeError(f"weights: expected a sequence of arrays, got {type(weights).__name__}")
        wanted = {"gamma": check_flag("scale", scale), "beta": check_flag("center", center)}
        names = [name for name in cls._parameters if wanted[name]]
        if not names or len(weights) != len(names):
            raise ValueError(
                f"weights: expected {len(names) or 'some'} arrays ({', '.join(names)}), got {len(weights)}"
            )
        of_channels = cls._own_size == "num_channels"
        if check_integer("axis", axis) not in ((1, -1) if of_channels else (-1,)):
            raise ValueError(f"axis: expected {'1 or -1' if of_channels else -1} of {cls.__name__}, got {axis}")
        given = {name: (f"weights ({name})", value) for name, value in zip(names, weights, strict=True)}
        epsilon = check_eps(cls._keras_epsilon if epsilon is None else epsilon, "epsilon")
        layer = cls._of_arrays(given, epsilon, cls._sizes_of(*given[names[0]], groups))
        if of_channels:
            layer.axis = axis
        return layer


def _dtype_of(arrays):
    """The dtype of a layer with these parameters."""
    return np.result_type(*(float_dtypes(array)[1] for array in arrays.values())) if arrays else np.dtype(np.float32)
