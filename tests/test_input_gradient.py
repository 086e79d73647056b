"""All gradients: they are derivatives, and each is the same alone, in place and among the others."""

from itertools import product

import numpy as np
import pytest
from cases import DTYPES, SMALL, SMALL_AND_LARGE, assert_same_bits, make_case


@pytest.mark.parametrize("name", SMALL)
def test_gradients_match_numerical_derivatives(name):
    norm, make_shape = SMALL[name]
    x, dout, parameters = make_case(norm, make_shape(3), np.float64)
    inputs = [x, *parameters]
    _, cache, *_ = norm.forward(*inputs)
    for position, gradient in enumerate(norm.backward(dout, cache)):
        for index in np.ndindex(gradient.shape):
            losses = []
            for step in (1e-6, -1e-6):
                moved = [values.copy() for values in inputs]
                moved[position][index] += step
                losses.append(np.sum(dout * norm.forward(*moved)[0]))
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-6, abs=2e-7)


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
