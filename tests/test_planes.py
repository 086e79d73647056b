"""Batch normalization of planes against the reference: odd sizes and large arrays, dtypes, builds."""

import pytest
from cases import DTYPES, LARGE_PLANES, MODES, SMALL_PLANES, batch, check, make_case, odd_shapes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", SMALL_PLANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_odd_sizes(kernels, dtype, layout, mode):
    axis, make_shape = SMALL_PLANES[layout]
    norm = batch(axis, mode)
    for shape in odd_shapes(make_shape):
        check(norm, *make_case(norm, shape, dtype))


@pytest.mark.parametrize("layout", LARGE_PLANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_large_arrays(kernels, dtype, layout):
    axis, shape = LARGE_PLANES[layout]
    norm = batch(axis, ddof=1)
    check(norm, *make_case(norm, shape, dtype))
