"""The bounds that cbnorm promises, for float32 and float64 results against their truth."""

import numpy as np

# |y - truth| <= Y * max(1, |truth|); |dx - truth| <= DX * max |gamma * inv_std * dout|.
Y = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
DX = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-12}


def assert_normalized(y, want):
    """Each number of y within its bound."""
    assert y.shape == want.shape
    error = np.abs(y.astype(want.dtype) - want) / np.maximum(1, np.abs(want))
    assert error.max(initial=0) <= Y[y.dtype]


def assert_gradients(got, want, dout, want_cache, axis):
    """dx within its bound; dgamma and dbeta within that of y times the sum of what they add up."""
    dx, dgamma, dbeta = got
    along = [-1 if i == axis % dx.ndim else 1 for i in range(dx.ndim)]
    others = tuple(i for i in range(dx.ndim) if i != axis % dx.ndim)
    factor = np.asarray(want_cache.gamma * want_cache.inv_std).reshape(along)
    error = np.abs(dx.astype(want[0].dtype) - want[0]).max(axis=others, initial=0)
    assert np.all(error <= DX[dx.dtype] * np.abs(factor * dout).max(axis=others, initial=0))
    for sums, truth, terms in ((dgamma, want[1], dout * want_cache.xhat), (dbeta, want[2], dout)):
        error = np.abs(sums.astype(truth.dtype) - truth)
        assert np.all(error <= Y[dx.dtype] * np.abs(terms).sum(axis=others))
