"""Layer and RMS normalization over any axes."""

import itertools

import numpy as np
import pytest
from cases import assert_same_bits, sample

import cbnorm


def test_tuples_of_axes_are_rows_of_them():
    x, dout = sample((3, 4, 5, 6)), sample((3, 4, 5, 6), seed=1)
    for size in (1, 2, 3, 4):
        for axes in itertools.permutations(range(4), size):
            check_rows(x, dout, axes)
    with pytest.raises(ValueError, match="axis: expected each axis once"):
        cbnorm.layernorm_forward(x, axis=(1, -3))
    with pytest.raises(ValueError, match="axis: expected at least one axis"):
        cbnorm.rmsnorm_forward(x, axis=())


def check_rows(x, dout, axes):
    rows = tuple(sorted(axes))
    others = tuple(axis for axis in range(4) if axis not in rows)
    order = (*others, *rows)
    back = np.argsort(order)
    gamma = sample([x.shape[axis] for axis in rows], seed=2)
    moved, moved_dout = (np.ascontiguousarray(each.transpose(order)) for each in (x, dout))
    for name, parameters in (("layernorm", (gamma, gamma)), ("rmsnorm", (gamma,))):
        forward, backward = (getattr(cbnorm, f"{name}_{way}") for way in ("forward", "backward"))
        y, cache = forward(x, *parameters, axis=axes)
        want, want_cache = forward(moved, *parameters, axis=len(others))
        assert y.flags.c_contiguous
        assert_same_bits(y, want.transpose(back))
        assert_same_bits(cache.xhat, want_cache.xhat.transpose(back))
        dx, *sums = backward(dout, cache)
        want_dx, *want_sums = backward(moved_dout, want_cache)
        assert_same_bits([dx, *sums], [want_dx.transpose(back), *want_sums])
        same = dout.copy()
        assert backward(same, cache, out=same)[0] is same
        assert_same_bits(same, dx)


def test_layers_over_axes_in_between():
    x = sample((3, 4, 5))
    for layer in (cbnorm.LayerNorm(4, axis=(1,)), cbnorm.RMSNorm((4,), axis=(-2,))):
        y = layer(x)
        assert y.shape == x.shape
        np.testing.assert_allclose((y**2).mean(axis=1), 1, atol=1e-3)
        assert layer.backward(y).shape == x.shape
        assert "axis=" in repr(layer)
        with pytest.raises(ValueError, match="x: expected lengths"):
            layer(np.ones((3, 5, 4)))
    with pytest.raises(ValueError, match="axis: expected None or a tuple of 1 axes"):
        cbnorm.LayerNorm(4, axis=(1, 2))
