"""batchnorm_forward and batchnorm_backward against the reference: dtypes, layouts, odd sizes, builds, threads."""

import numpy as np
import pytest
import reference
from cases import assert_gradients, assert_normalized

import cbnorm
from cbnorm import _kernels

SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 1000)
# Each makes a shape and a channel axis of two sizes, values a channel and channels.
LAYOUTS = {
    "rows": lambda count, channels: ((count, channels), 1),
    "planes": lambda count, channels: ((3, channels, count), 1),
    "short planes": lambda count, channels: ((count, channels, 7), 1),
    "images": lambda count, channels: ((2, channels, count, 3), 1),
    "channels last": lambda count, channels: ((count, 2, channels), -1),
    "channels first": lambda count, channels: ((channels, count), 0),
}
# Large enough that eight threads share the work; several chunks, tiles and tails of each walk.
LARGE = {
    "many rows": ((4099, 67), 1),
    "wide rows": ((70, 4097), 1),
    "many wide rows": ((130, 2049), 1),
    "one column": ((300_001, 1), 1),
    "three columns": ((100_003, 3), 1),
    "large planes": ((5, 9, 6_151), 1),
    "long planes": ((3, 2, 70_001), 1),
    "many short planes": ((1_031, 7, 49), 1),
    "large, channels last": ((29, 31, 19, 17), -1),
}


def make_case(shape, axis, dtype, seed=0):
    """Input, output gradient, parameters and moving statistics with means and scales of their own."""
    rng = np.random.default_rng(seed)
    channels = shape[axis]
    along = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    scale, mean = rng.uniform(0.5, 2, channels), rng.normal(size=channels) * 3
    x = (rng.standard_normal(shape) * scale.reshape(along) + mean.reshape(along)).astype(dtype)
    dout = rng.standard_normal(shape).astype(dtype)
    gamma, beta = rng.normal(1, 0.5, channels).astype(dtype), rng.normal(size=channels).astype(dtype)
    return x, dout, gamma, beta, rng.normal(size=channels), rng.uniform(0.5, 2, channels)


def check(shape, axis, dtype, mode, ddof=0):
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, axis, dtype)
    truth = reference.as_float if dtype == np.float32 else lambda values: np.asarray(values, np.longdouble)
    options = {"mode": mode, "axis": axis, "ddof": ddof, "momentum": 0.8}
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        x, gamma, beta, 1e-5, moving_mean=moving_mean, moving_var=moving_var, **options
    )
    want_y, want_cache, want_mean, want_var = reference.batchnorm_forward(
        truth(x), gamma, beta, 1e-5, moving_mean=moving_mean, moving_var=moving_var, **options
    )
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    assert_normalized(y, want_y)
    np.testing.assert_allclose(new_mean, want_mean.astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(new_var, want_var.astype(float), rtol=1e-12, atol=1e-12)

    got = cbnorm.batchnorm_backward(dout, cache)
    want = reference.batchnorm_backward(truth(dout), want_cache)
    assert [part.dtype for part in got] == [dtype] * 3
    assert_gradients(got, want, dout, want_cache, axis)


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matches_the_reference_for_odd_sizes(kernels, dtype, layout, mode):
    for count in SIZES:
        for channels in (1, 17, 33) if count > 33 else (0, 1, 2, 3, 16, 33, 257):
            shape, axis = LAYOUTS[layout](count, channels)
            check(shape, axis, dtype, mode)


@pytest.mark.parametrize("layout", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matches_the_reference_for_large_arrays(kernels, dtype, layout):
    check(*LARGE[layout], dtype, "train", ddof=1)


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("layout", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(kernels, dtype, layout, mode):
    shape, axis = LARGE[layout]
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, axis, dtype)
    results = []
    for number in (1, 2, 3, 8):
        with cbnorm.threads(number):
            y, cache, *moving = cbnorm.batchnorm_forward(
                x, gamma, beta, moving_mean=moving_mean, moving_var=moving_var, mode=mode, axis=axis
            )
            results.append([y, *moving, *cbnorm.batchnorm_backward(dout, cache)])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert first.tobytes() == other.tobytes()


@pytest.mark.parametrize("given", [(False, False), (True, False), (False, True)])
def test_gamma_and_beta_are_optional_one_by_one(given):
    x, dout, gamma, beta, *_ = make_case((17, 3, 5), 1, np.float64)
    gamma, beta = gamma if given[0] else None, beta if given[1] else None
    y, cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta)
    want_y, want_cache, _, _ = reference.batchnorm_forward(x, gamma, beta)
    np.testing.assert_allclose(y, want_y, atol=1e-12)
    for got, want in zip(
        cbnorm.batchnorm_backward(dout, cache), reference.batchnorm_backward(dout, want_cache), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-11)


@pytest.mark.parametrize("tracked", [(False, False), (True, False), (False, True)])
def test_moving_statistics_that_are_none_are_not_tracked(tracked):
    x, *_, moving_mean, moving_var = make_case((17, 3), 1, np.float32)
    given = (moving_mean if tracked[0] else None, moving_var if tracked[1] else None)
    _, _, new_mean, new_var = cbnorm.batchnorm_forward(x, moving_mean=given[0], moving_var=given[1])
    assert (new_mean is None, new_var is None) == (not tracked[0], not tracked[1])


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("shape", [(40, 5), (9, 5, 6), (3, 5, 400)])
@pytest.mark.parametrize("need", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_need_leaves_out_gradients_and_changes_no_bit_of_the_others(need, shape, mode):
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, 1, np.float32)
    _, cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta, moving_mean=moving_mean, moving_var=moving_var, mode=mode)
    everything = cbnorm.batchnorm_backward(dout, cache)
    some = cbnorm.batchnorm_backward(dout, cache, need=tuple(map(bool, need)))
    for wanted, part, whole in zip(need, some, everything, strict=True):
        assert part.tobytes() == whole.tobytes() if wanted else part is None


@pytest.mark.parametrize("shape", [(40, 5), (9, 5, 6), (3, 5, 400), (130, 33, 65), (4099, 67)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_in_place_have_the_same_bits(kernels, dtype, shape):
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, 1, dtype)
    test_mode = {"moving_mean": moving_mean, "moving_var": moving_var, "mode": "test"}
    y, cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta, **test_mode)
    dx = cbnorm.batchnorm_backward(dout, cache)[0]
    _, train_cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta)
    train_dx = cbnorm.batchnorm_backward(dout, train_cache)[0]
    for used, want in ((cache, dx), (train_cache, train_dx)):
        mine = dout.copy()
        assert cbnorm.batchnorm_backward(mine, used, out=mine)[0] is mine
        assert mine.tobytes() == want.tobytes()
    mine = x.copy()
    assert cbnorm.batchnorm_forward(mine, gamma, beta, out=mine, **test_mode)[0] is mine
    assert mine.tobytes() == y.tobytes()


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_the_cache_gives_xhat_mean_and_inv_std(dtype, mode):
    x, *_, moving_mean, moving_var = make_case((9, 4, 5), 1, np.float64)
    x = (8 * x).astype(dtype)
    y, cache, _, _ = cbnorm.batchnorm_forward(x, moving_mean=moving_mean, moving_var=moving_var, mode=mode)
    _, want, _, _ = reference.batchnorm_forward(x, moving_mean=moving_mean, moving_var=moving_var, mode=mode)
    assert cache.xhat.tobytes() == y.tobytes()
    assert cache.x is x
    np.testing.assert_allclose(cache.mean, want.mean, rtol=1e-12)
    np.testing.assert_allclose(cache.inv_std, want.inv_std, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (0, 3, 2), (5, 0), (0, 0)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_an_empty_batch_changes_nothing(shape, ddof):
    channels = shape[1]
    moving_mean, moving_var = np.full(channels, 2.0), np.full(channels, 3.0)
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        np.empty(shape, np.float32), moving_mean=moving_mean, moving_var=moving_var, ddof=ddof
    )
    assert y.shape == shape
    assert cache.xhat.shape == shape
    np.testing.assert_array_equal(new_mean, moving_mean)
    np.testing.assert_array_equal(new_var, moving_var)
    dx, dgamma, dbeta = cbnorm.batchnorm_backward(y, cache)
    assert dx.shape == shape
    np.testing.assert_array_equal(dgamma, np.zeros(channels))
    np.testing.assert_array_equal(dbeta, np.zeros(channels))


def test_gradients_match_numerical_derivatives():
    x, dout, gamma, beta, *_ = make_case((5, 3, 2), 1, np.float64)
    _, cache, _, _ = cbnorm.batchnorm_forward(x, gamma, beta)
    inputs = [x, gamma, beta]
    for position, gradient in enumerate(cbnorm.batchnorm_backward(dout, cache)):
        for index in np.ndindex(gradient.shape):
            losses = []
            for step in (1e-6, -1e-6):
                moved = [values.copy() for values in inputs]
                moved[position][index] += step
                losses.append(np.sum(dout * cbnorm.batchnorm_forward(*moved)[0]))
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("shape", [(64, 17), (6, 5, 7, 7), (4, 3, 400)])
def test_agrees_with_pytorch(shape, mode):
    torch = pytest.importorskip("torch")
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, 1, np.float64)
    tensors = [torch.tensor(values, requires_grad=True) for values in (x, gamma, beta)]
    torch_mean, torch_var = torch.tensor(moving_mean), torch.tensor(moving_var)
    torch_y = torch.nn.functional.batch_norm(
        tensors[0], torch_mean, torch_var, *tensors[1:], training=mode == "train", momentum=0.1
    )
    torch_y.backward(torch.tensor(dout))
    y, cache, new_mean, new_var = cbnorm.batchnorm_forward(
        x, gamma, beta, moving_mean=moving_mean, moving_var=moving_var, mode=mode, ddof=1
    )
    pairs = [(y, torch_y.detach()), (new_mean, torch_mean), (new_var, torch_var)]
    pairs += zip(cbnorm.batchnorm_backward(dout, cache), (tensor.grad for tensor in tensors), strict=True)
    for got, want in pairs:
        np.testing.assert_allclose(got, want.numpy(), atol=1e-10)


def everything(shape, axis, dtype):
    """All results of both modes, also in place and for arrays that are not contiguous."""
    x, dout, gamma, beta, moving_mean, moving_var = make_case(shape, axis, dtype)
    for mode in ("train", "test"):
        options = {"moving_mean": moving_mean, "moving_var": moving_var, "mode": mode, "axis": axis}
        for batch in (x, np.asfortranarray(x)):
            y, cache, *moving = cbnorm.batchnorm_forward(batch, gamma, beta, **options)
            yield from (y, *moving, *cbnorm.batchnorm_backward(dout, cache))
            in_place = dout.copy()
            yield cbnorm.batchnorm_backward(in_place, cache, out=in_place)[0]


@pytest.mark.parametrize("layout", [*LAYOUTS, *LARGE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_size_of_the_cache_changes_no_bit(cache_size, dtype, layout):
    shape, axis = LARGE[layout] if layout in LARGE else LAYOUTS[layout](33, 17)
    results = []
    for cache_bytes in (0, 2**62):  # everything is written past it; everything fits
        _kernels.active.set_cache_bytes(cache_bytes)
        results.append([values.tobytes() for values in everything(shape, axis, dtype)])
    assert all(result == results[0] for result in results)


@pytest.fixture
def two_busy_threads(kernels):
    """Share the work of every call, however little that is."""
    before = _kernels.active.set_grain(1)
    with cbnorm.threads(2):
        yield
    _kernels.active.set_grain(before)


def in_guarded_memory(values, start):
    """A copy that begins `start` numbers after a cache line, and views of the memory before and after it."""
    memory = np.full(values.size + 64, 7, values.dtype)
    first = -memory.ctypes.data % 64 // values.itemsize + start
    before, copy, after = np.split(memory, [first, first + values.size])
    copy[:] = values.ravel()
    return copy.reshape(values.shape), (before, after)


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 31, 32, 33, 255, 1000, 2500])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_past_the_cache_go_where_they_belong(cache_size, two_busy_threads, dtype, channels):
    random = np.random.default_rng(0)
    gamma, beta = random.standard_normal((2, channels)).astype(dtype)
    for rows, start in [(2, 1), (3, 3), (15, 5), (33, 0), (200, 15)]:
        x, dout = random.standard_normal((2, rows, channels)).astype(dtype)
        results = []
        for cache_bytes in (2**62, 0):
            _kernels.active.set_cache_bytes(cache_bytes)
            guarded = [in_guarded_memory(values, start) for values in (x, dout, dout)]
            (y, _), (in_place, _), (dx, _) = guarded
            cache = cbnorm.batchnorm_forward(x, gamma, beta, out=y)[1]
            cbnorm.batchnorm_backward(in_place, cache, out=in_place)
            cbnorm.batchnorm_backward(dout, cache, out=dx)
            assert all((guard == 7).all() for _, guards in guarded for guard in guards)
            results.append([y, in_place, dx])
        for direct, streamed in zip(*results, strict=True):
            np.testing.assert_array_equal(streamed, direct)
        np.testing.assert_array_equal(results[0][1], results[0][2])
