"""All gradients: they are derivatives, and each is the same alone, in place and among the others."""

from itertools import product

import numpy as np
import pytest
from cases import DTYPES, SMALL, SMALL_AND_LARGE, assert_same_bits, close, derivative, make_case


@pytest.mark.parametrize("name", SMALL)
def test_gradients_match_numerical_derivatives(name):
    norm, make_shape = SMALL[name]
    x, dout, parameters = make_case(norm, make_shape(3), np.float64)

    def loss(*inputs):
        return np.sum(dout * norm.forward(*inputs, eps=0.1)[0])

    _, cache, *_ = norm.forward(x, *parameters, eps=0.1)
    for gradient, numerical in zip(
        norm.backward(dout, cache), derivative(loss, [x, *parameters], "central differences"), strict=True
    ):
        close(gradient, numerical, 1e-8)


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_need_and_in_place_change_no_bit(kernels, dtype, name):
    norm, shape = SMALL_AND_LARGE[name]
    x, dout, parameters = make_case(norm, shape, dtype)
    _, cache, *_ = norm.forward(x, *parameters)
    everything = norm.backward(dout, cache)
    for need in product((True, False), repeat=len(everything)):
        for wanted, part, whole in zip(need, norm.backward(dout, cache, need=need), everything, strict=True):
            assert part.tobytes() == whole.tobytes() if wanted else part is None
    mine = dout.copy()
    assert norm.backward(mine, cache, out=mine)[0] is mine
    assert_same_bits(mine, everything[0])
