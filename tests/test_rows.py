"""Layer, group, instance and RMS normalization: everything that has the statistics of rows."""

import numpy as np
import pytest
from cases import DTYPES, LARGE_ROWS, SIZES, SMALL_ROWS, assert_same_bits, check, make_case, results


@pytest.mark.parametrize("name", SMALL_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_odd_sizes(kernels, dtype, name):
    norm, make_shape = SMALL_ROWS[name]
    for size in SIZES:
        check(norm, *make_case(norm, make_shape(size), dtype))


@pytest.mark.parametrize("name", LARGE_ROWS)
@pytest.mark.parametrize("offset", [2.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_large_arrays_at_any_offset(kernels, dtype, offset, name):
    norm, shape = LARGE_ROWS[name]
    check(norm, *make_case(norm, shape, dtype, offset))


@pytest.mark.parametrize("name", SMALL_ROWS)
def test_any_array_gives_what_its_contiguous_copy_gives(name):
    norm, make_shape = SMALL_ROWS[name]
    shape = make_shape(16)
    x, dout, parameters = make_case(norm, shape, np.float32)
    y, dx, *_ = results(norm, x, dout, parameters)
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x.astype(">f4")):
        before = view.copy()
        got, other = norm.forward(view, *parameters)
        assert_same_bits([got, norm.backward(np.asfortranarray(dout), other)[0]], [y, dx])
        np.testing.assert_array_equal(view, before)
    half, cache = norm.forward(x.astype(np.float16), *parameters)
    assert half.dtype == np.float16
    assert [part.dtype for part in norm.backward(dout, cache)[:2]] == [np.float16, np.float32]
    assert norm.forward(x.astype(np.int64), *parameters)[0].dtype == np.float64
    assert cache.xhat.dtype == np.float16


@pytest.mark.parametrize("name", SMALL_ROWS)
def test_parameters_are_optional_and_the_cache_tells_the_statistics(name):
    norm, make_shape = SMALL_ROWS[name]
    x, dout, parameters = make_case(norm, make_shape(16), np.float64)
    y, cache = norm.forward(x)
    want, want_cache = norm.want_forward(x)
    np.testing.assert_allclose(y, want, atol=1e-12)
    assert_same_bits(np.ascontiguousarray(np.moveaxis(cache.xhat, -1, 1)) if "channels last" in name else cache.xhat, y)
    np.testing.assert_allclose(cache.mean.ravel(), np.broadcast_to(want_cache.mean, cache.mean.size), atol=1e-12)
    np.testing.assert_allclose(cache.inv_std.ravel(), np.ravel(want_cache.inv_std), rtol=1e-12)
    for got, want in zip(norm.backward(dout, cache), norm.want_backward(dout, want_cache), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)
    if norm.centred:
        y, _ = norm.forward(x, None, parameters[1])
        np.testing.assert_allclose(y, norm.want_forward(x, None, parameters[1])[0], atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SMALL_ROWS if name != "instance of one value"])
def test_agrees_with_pytorch(name):
    torch = pytest.importorskip("torch")
    norm, make_shape = SMALL_ROWS[name]
    x, dout, parameters = make_case(norm, make_shape(16), np.float64)
    tensors = [torch.tensor(values, requires_grad=True) for values in (x, *parameters)]
    want = norm.torch_forward(torch.nn.functional, *tensors, *[None] * (not norm.centred), 1e-5)
    want.backward(torch.tensor(dout))
    y, cache = norm.forward(x, *parameters)
    np.testing.assert_allclose(y, want.detach().numpy(), atol=1e-12)
    for got, tensor in zip(norm.backward(dout, cache), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad.numpy(), atol=1e-10)
