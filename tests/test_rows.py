"""Layer, group, instance and RMS normalization: everything that has the statistics of rows."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import reference
from cases import DX, Y, assert_normalized

import cbnorm
from cbnorm import _kernels

SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 1000)
DTYPES = [np.float32, np.float64]


@dataclass
class Norm:
    """A function of the family next to its reference, called alike: forward(x, gamma, beta, eps=...)."""

    forward: callable
    backward: callable
    want_forward: callable
    want_backward: callable
    parameter_shape: callable  # of the shape of x
    rows: callable  # x -> (rows, numbers)
    has_beta: bool = True
    channelwise: bool = False  # a parameter for each channel, else for each number of a row

    def parameters(self, shape, dtype, seed=1):
        rng = np.random.default_rng(seed)
        gamma = rng.normal(1, 0.5, self.parameter_shape(shape)).astype(dtype)
        return (gamma, rng.normal(size=gamma.shape).astype(dtype)) if self.has_beta else (gamma,)


def group_rows(groups):
    return lambda x: x.reshape(x.shape[0] * groups, x.size // (x.shape[0] * groups))


def rows_backward(dout, cache):
    return reference.rows_backward(dout, cache)


def layer(axis):
    return Norm(
        partial(cbnorm.layernorm_forward, axis=axis),
        cbnorm.layernorm_backward,
        partial(reference.layernorm_forward, axis=axis),
        rows_backward,
        lambda shape: shape[axis:],
        lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1),
    )


def rms(axis):
    return Norm(
        partial(cbnorm.rmsnorm_forward, axis=axis),
        cbnorm.rmsnorm_backward,
        partial(reference.rmsnorm_forward, axis=axis),
        reference.rmsnorm_backward,
        lambda shape: shape[axis:],
        lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1),
        has_beta=False,
    )


def group(groups):
    return Norm(
        lambda x, gamma=None, beta=None, eps=1e-5, **out: cbnorm.groupnorm_forward(x, gamma, beta, groups, eps, **out),
        cbnorm.groupnorm_backward,
        lambda x, gamma=None, beta=None, eps=1e-5: reference.groupnorm_forward(x, gamma, beta, groups, eps),
        rows_backward,
        lambda shape: shape[1:2],
        group_rows(groups),
        channelwise=True,
    )


INSTANCE = Norm(
    cbnorm.instancenorm_forward,
    cbnorm.instancenorm_backward,
    reference.instancenorm_forward,
    rows_backward,
    lambda shape: shape[1:2],
    lambda x: x.reshape(x.shape[0] * x.shape[1], -1),
    channelwise=True,
)

# Small cases have a shape for every size; large ones share work among eight threads.
SMALL = {
    "layer": (layer(-1), lambda size: (7, size)),
    "layer, few numbers": (layer(-1), lambda size: (size, 5)),
    "layer over two axes": (layer(1), lambda size: (5, 3, size)),
    "layer of a vector": (layer(0), lambda size: (size,)),
    "rms": (rms(-1), lambda size: (3, 4, size)),
    "group": (group(3), lambda size: (2, 6, size)),
    "group without positions": (group(2), lambda size: (5, 2 * size)),
    "group of all channels": (group(1), lambda size: (2, 4, 3, size)),
    "instance": (INSTANCE, lambda size: (3, 4, size)),
    "instance of one value": (INSTANCE, lambda size: (size, 3)),
}
LARGE = {
    "many rows of a layer": (layer(-1), (401, 768)),
    "layer, long rows": (layer(-1), (17, 20_011)),
    "layer, short rows": (layer(-1), (9_001, 33)),
    "many rows, rms": (rms(-1), (401, 768)),
    "large group": (group(4), (9, 12, 57, 59)),
    "many groups without positions": (group(8), (2_011, 160)),
    "large instance": (INSTANCE, (5, 7, 10_007)),
    "instance, short": (INSTANCE, (61, 101, 49)),
}


def truth(values):
    return values.astype(np.float64 if values.dtype == np.float32 else np.longdouble)


def make_case(norm, shape, dtype, offset=2.0):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 1.5 + offset).astype(dtype)
    return x, rng.standard_normal(shape).astype(dtype), norm.parameters(shape, dtype)


def check(norm, x, dout, parameters, eps=1e-5):
    """y and all gradients within the bounds."""
    y, cache = norm.forward(x, *parameters, eps=eps)
    want_y, want_cache = norm.want_forward(truth(x), *parameters, eps=eps)
    assert y.dtype == x.dtype
    assert_normalized(y, want_y)
    dx, *sums = norm.backward(dout, cache)
    want_dx, *want_sums = norm.want_backward(truth(dout), want_cache)
    if not x.size:
        assert dx.shape == x.shape
        assert not any(np.any(total) for total in sums)
        return
    # The bound of a row: max |gamma * inv_std * dout|.
    scale = np.abs(norm.rows(np.broadcast_to(want_cache.gamma, x.shape) * dout)).max(axis=1)
    error = np.abs(norm.rows(dx.astype(want_dx.dtype) - want_dx)).max(axis=1)
    assert np.all(error <= DX[x.dtype] * scale * np.asarray(want_cache.inv_std).ravel())
    terms = np.abs(np.asarray(dout * want_cache.xhat)), np.abs(dout)
    for total, want, added in zip(sums, want_sums, terms, strict=False):
        axes = tuple(i for i in range(x.ndim) if i not in parameter_axes(norm, x.shape))
        assert total.shape == norm.parameter_shape(x.shape)
        assert np.all(np.abs(total.astype(want.dtype) - want) <= Y[x.dtype] * added.sum(axis=axes))


def parameter_axes(norm, shape):
    size = len(norm.parameter_shape(shape))
    return (1,) if norm.channelwise else range(len(shape) - size, len(shape))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_odd_sizes(kernels, dtype, name):
    norm, make_shape = SMALL[name]
    for size in SIZES:
        check(norm, *make_case(norm, make_shape(size), dtype))


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("offset", [2.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_reference_for_large_arrays_at_any_offset(kernels, dtype, offset, name):
    norm, shape = LARGE[name]
    if offset > 2 and not norm.has_beta:
        pytest.skip("RMS normalization subtracts no mean")
    check(norm, *make_case(norm, shape, dtype, offset))


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(kernels, dtype, name):
    norm, shape = LARGE[name]
    x, dout, parameters = make_case(norm, shape, dtype)
    results = []
    for number in (1, 2, 3, 8):
        with cbnorm.threads(number):
            y, cache = norm.forward(x, *parameters)
            results.append([y, *norm.backward(dout, cache)])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert first.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_very_large_and_very_small_numbers(kernels, dtype, name, size):
    norm, shape = LARGE[name]
    x, dout, parameters = make_case(norm, shape, np.float64)
    check(norm, (x * size).astype(dtype), dout.astype(dtype), [p.astype(dtype) for p in parameters], eps=0.0)


@pytest.mark.parametrize("name", LARGE)
def test_subnormal_numbers_survive(kernels, name):
    norm, shape = LARGE[name]
    x = (np.random.default_rng(0).integers(-1000, 1000, shape) * 1e-42).astype(np.float32)
    y, _ = norm.forward(x)
    want, _ = norm.want_forward(x)
    assert np.count_nonzero(y) > 0.9 * y.size
    assert np.abs(y - want).max() <= 3e-6 * np.abs(want).max()


@pytest.mark.parametrize("name", [name for name in LARGE if "rms" not in name])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_constant_row_gives_exactly_beta(kernels, dtype, name, eps):
    norm, shape = LARGE[name]
    rows = norm.rows(np.empty(shape, dtype))
    rows[:] = np.random.default_rng(0).normal(size=(len(rows), 1)) * 1e5
    x = rows.reshape(shape)
    gamma, beta = norm.parameters(shape, dtype)
    for given in (beta, np.zeros_like(beta)):
        y, cache = norm.forward(x, gamma, given, eps)
        axes = parameter_axes(norm, shape)
        want = given.reshape([n if i in axes else 1 for i, n in enumerate(shape)])
        np.testing.assert_array_equal(y, np.broadcast_to(want, shape))
        assert np.isfinite(norm.backward(y, cache)[0]).all()


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_row(kernels, name, special):
    norm, shape = LARGE[name]
    x, dout, parameters = make_case(norm, shape, np.float32)
    spoilt = x.copy()
    norm.rows(spoilt)[1, 2] = special
    clean, dirty = (
        [norm.rows(values) for values in (y, norm.backward(dout, cache)[0])]
        for y, cache in (norm.forward(values, *parameters) for values in (x, spoilt))
    )
    others = np.arange(len(clean[0])) != 1
    for before, after in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(after[others], before[others])
        assert np.isnan(after[1]).any()


@pytest.mark.parametrize("name", SMALL)
def test_gradients_match_numerical_derivatives(name):
    norm, make_shape = SMALL[name]
    x, dout, parameters = make_case(norm, make_shape(3), np.float64)
    inputs = [x, *parameters]
    _, cache = norm.forward(*inputs)
    for position, gradient in enumerate(norm.backward(dout, cache)):
        for index in np.ndindex(gradient.shape):
            losses = []
            for step in (1e-6, -1e-6):
                moved = [values.copy() for values in inputs]
                moved[position][index] += step
                losses.append(np.sum(dout * norm.forward(*moved)[0]))
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=2e-7)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_need_and_in_place_change_no_bit(kernels, dtype, name):
    norm, shape = LARGE[name]
    x, dout, parameters = make_case(norm, shape, dtype)
    y, cache = norm.forward(x, *parameters)
    out = np.empty_like(x)
    assert norm.forward(x, *parameters, out=out)[0] is out
    assert out.tobytes() == y.tobytes()
    everything = norm.backward(dout, cache)
    for wanted in range(2 ** len(everything)):
        need = tuple(bool(wanted >> i & 1) for i in range(len(everything)))
        for want, part, whole in zip(need, norm.backward(dout, cache, need=need), everything, strict=True):
            assert part.tobytes() == whole.tobytes() if want else part is None
    mine = dout.copy()
    assert norm.backward(mine, cache, out=mine)[0] is mine
    assert mine.tobytes() == everything[0].tobytes()


@pytest.mark.parametrize("name", SMALL)
def test_any_array_gives_what_its_contiguous_copy_gives(name):
    norm, make_shape = SMALL[name]
    shape = make_shape(16)
    x, dout, parameters = make_case(norm, shape, np.float32)
    y, cache = norm.forward(x, *parameters)
    dx = norm.backward(dout, cache)[0]
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x.astype(">f4")):
        before = view.copy()
        got, other = norm.forward(view, *parameters)
        assert got.tobytes() == y.tobytes()
        assert norm.backward(np.asfortranarray(dout), other)[0].tobytes() == dx.tobytes()
        np.testing.assert_array_equal(view, before)
    half, cache = norm.forward(x.astype(np.float16), *parameters)
    assert half.dtype == np.float16
    assert [part.dtype for part in norm.backward(dout, cache)[:2]] == [np.float16, np.float32]
    assert norm.forward(x.astype(np.int64), *parameters)[0].dtype == np.float64
    assert cache.xhat.dtype == np.float16


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_optional_and_the_cache_tells_the_statistics(name):
    norm, make_shape = SMALL[name]
    x, dout, parameters = make_case(norm, make_shape(16), np.float64)
    y, cache = norm.forward(x)
    want, want_cache = norm.want_forward(x)
    np.testing.assert_allclose(y, want, atol=1e-12)
    assert cache.xhat.tobytes() == y.tobytes()
    np.testing.assert_allclose(cache.mean.ravel(), np.broadcast_to(want_cache.mean, cache.mean.size), atol=1e-12)
    np.testing.assert_allclose(cache.inv_std.ravel(), np.ravel(want_cache.inv_std), rtol=1e-12)
    for got, want in zip(norm.backward(dout, cache), norm.want_backward(dout, want_cache), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)
    if norm.has_beta:
        y, _ = norm.forward(x, None, parameters[1])
        np.testing.assert_allclose(y, norm.want_forward(x, None, parameters[1])[0], atol=1e-12)


X = np.arange(24.0).reshape(2, 4, 3)
BAD = {
    "x: complex": (lambda: cbnorm.layernorm_forward(X * 1j), TypeError, "x: expected real"),
    "x: scalar": (lambda: cbnorm.rmsnorm_forward(3.0), ValueError, "x: expected at least 1"),
    "x: no channels": (lambda: cbnorm.groupnorm_forward(X[0, 0], None, None, 1), ValueError, "x: expected at least 2"),
    "axis": (lambda: cbnorm.layernorm_forward(X, axis=3), ValueError, "axis: expected -3 to 2"),
    "gamma": (lambda: cbnorm.layernorm_forward(X, np.ones(4)), ValueError, r"gamma: expected shape \(3,\), got \(4,\)"),
    "gamma of group": (lambda: cbnorm.groupnorm_forward(X, np.ones(2), None, 2), ValueError, r"gamma: expected shape"),
    "beta": (lambda: cbnorm.instancenorm_forward(X, None, np.ones(3)), ValueError, r"beta: expected shape \(4,\)"),
    "groups": (lambda: cbnorm.groupnorm_forward(X, None, None, 3), ValueError, "num_groups: expected a divisor of 4"),
    "no groups": (lambda: cbnorm.groupnorm_forward(X, None, None, 0), ValueError, "num_groups: expected"),
    "half a group": (lambda: cbnorm.groupnorm_forward(X, None, None, 0.5), TypeError, "num_groups: expected an int"),
    "eps": (lambda: cbnorm.rmsnorm_forward(X, eps=-1.0), ValueError, "eps: expected"),
    "out is x": (lambda: cbnorm.layernorm_forward(X, out=X), ValueError, "out: expected memory of its own"),
    "out dtype": (lambda: cbnorm.layernorm_forward(X, out=np.empty(X.shape, "f4")), TypeError, "out: expected dtype"),
    "cache": (lambda: cbnorm.layernorm_backward(X, None), TypeError, "cache: expected that of layernorm_forward"),
    "cache of another": (
        lambda: cbnorm.layernorm_backward(X, cbnorm.rmsnorm_forward(X)[1]),
        TypeError,
        "cache: expected that of layernorm_forward, got rmsnorm",
    ),
    "dout": (
        lambda: cbnorm.rmsnorm_backward(X[0], cbnorm.rmsnorm_forward(X)[1]),
        ValueError,
        r"dout: expected shape \(2, 4, 3\), got \(4, 3\)",
    ),
    "need": (
        lambda: cbnorm.rmsnorm_backward(X, cbnorm.rmsnorm_forward(X)[1], need=(True,) * 3),
        ValueError,
        "need: expected a bool each for dx, dgamma, got",
    ),
    "out not needed": (
        lambda: cbnorm.rmsnorm_backward(X, cbnorm.rmsnorm_forward(X)[1], need=(False, True), out=X.copy()),
        ValueError,
        "out: expected None",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    call, error, message = BAD[name]
    before = X.copy()
    with pytest.raises(error, match=f"^{message}"):
        call()
    np.testing.assert_array_equal(before, X)


def test_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 5, 6, 7, 7))
    gamma, beta = rng.standard_normal((2, 6))
    cases = [
        (cbnorm.groupnorm_forward(x, gamma, beta, 3), lambda t, g, b: torch.nn.functional.group_norm(t, 3, g, b)),
        (
            cbnorm.instancenorm_forward(x, gamma, beta),
            lambda t, g, b: torch.nn.functional.instance_norm(t, weight=g, bias=b),
        ),
        (
            cbnorm.layernorm_forward(np.moveaxis(x, 1, -1), gamma, beta),
            lambda t, g, b: torch.nn.functional.layer_norm(t.movedim(1, -1), (6,), g, b),
        ),
        (
            cbnorm.rmsnorm_forward(np.moveaxis(x, 1, -1), gamma),
            lambda t, g, b: torch.nn.functional.rms_norm(t.movedim(1, -1), (6,), g, 1e-5) + 0 * b.sum(),
        ),
    ]
    for (y, cache), function in cases:
        tensors = [torch.tensor(values, requires_grad=True) for values in (x, gamma, beta)]
        result = function(*tensors)
        moved = y.shape != x.shape
        result.backward(torch.tensor(np.moveaxis(dout, 1, -1) if moved else dout))
        np.testing.assert_allclose(y, result.detach().numpy(), atol=1e-12)
        gradients = getattr(cbnorm, f"{cache.kind}_backward")(np.moveaxis(dout, 1, -1) if moved else dout, cache)
        for got, tensor, axis in zip(gradients, tensors, (moved, False, False), strict=False):
            want = np.moveaxis(tensor.grad.numpy(), 1, -1) if axis else tensor.grad.numpy()
            np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_of_the_cache_changes_no_bit(cache_size, dtype, name):
    norm, shape = LARGE.get(name) or (SMALL[name][0], SMALL[name][1](33))
    x, dout, parameters = make_case(norm, shape, dtype)
    results = []
    for cache_bytes in (0, 2**62):
        _kernels.active.set_cache_bytes(cache_bytes)
        for batch in (x, np.asfortranarray(x)):
            y, cache = norm.forward(batch, *parameters)
            in_place = dout.copy()
            norm.backward(in_place, cache, out=in_place)
            results.append([values.tobytes() for values in (y, *norm.backward(dout, cache), in_place)])
    assert all(result == results[0] for result in results)
