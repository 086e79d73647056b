"""Every layer, and the function that it stands for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from cases import INSTANCE, Norm, batch, group, layer, rms

import cbnorm

SHAPE = (6, 4, 5)


class LayerCase(NamedTuple):
    """A way to make a layer, with the normalization that it stands for."""

    make: Callable
    norm: Norm

    @property
    def names(self):
        return ["gamma", "beta"] if self.norm.centred else ["gamma"]

    def names_of(self, affine):
        """The names of the parameters that a layer of this `affine` has."""
        return [affine] if isinstance(affine, str) else self.names if affine else []


LAYERS = {
    "batch": LayerCase(lambda **options: cbnorm.BatchNorm(4, **options), batch()),
    "batch, channels last": LayerCase(lambda **options: cbnorm.BatchNorm(5, axis=-1, **options), batch(-1)),
    "layer": LayerCase(lambda **options: cbnorm.LayerNorm(5, **options), layer()),
    "layer, two axes": LayerCase(lambda **options: cbnorm.LayerNorm((4, 5), **options), layer(1)),
    "group": LayerCase(lambda **options: cbnorm.GroupNorm(2, 4, **options), group(2)),
    "instance": LayerCase(lambda **options: cbnorm.InstanceNorm(4, **options), INSTANCE),
    "rms": LayerCase(lambda **options: cbnorm.RMSNorm((4, 5), **options), rms(1)),
}


def numbers(seed, shape=SHAPE, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + 2).astype(dtype)


def randomize(layer, seed=0):
    """Give a layer parameters and moving statistics unlike those of a new one."""
    rng = np.random.default_rng(seed)
    for array in layer.parameters().values():
        array[...] = rng.normal(1, 0.5, array.shape)
    if isinstance(layer, cbnorm.BatchNorm):
        layer.moving_mean = rng.normal(size=layer.num_channels)
        layer.moving_var = rng.uniform(0.5, 2, layer.num_channels)
        layer.num_batches = 5
    return layer


def same_state(a, b):
    """Whether two layers, or states, hold the same bits."""
    a, b = (each.state_dict() if isinstance(each, cbnorm.layers.Layer) else each for each in (a, b))
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )
