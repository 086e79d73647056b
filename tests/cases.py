"""What the tests share: the truth and the bounds, the same bits, the grid of cases: every normalization and walk."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import reference

import cbnorm

DTYPES = [np.float32, np.float64]
MODES = ["train", "test"]

# The bounds: |y - truth| <= Y * max(1, |truth|); |dx - truth| <= DX * max |gamma * inv_std * dout|.
Y = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
DX = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-12}


def truth(values):
    """Exact enough to judge the dtype: float64 for float32, extended precision for float64."""
    return values.astype(np.float64 if values.dtype == np.float32 else np.longdouble)


def along(axis, ndim):
    """The shape in which a number a channel broadcasts to an array with channels on `axis`."""
    return [-1 if i == axis % ndim else 1 for i in range(ndim)]


def assert_same_bits(got, want):
    """The same dtype, shape and bytes: of two arrays, or of each in two sequences of them."""
    if isinstance(want, list | tuple):
        for one, other in zip(got, want, strict=True):
            assert_same_bits(one, other)
    else:
        got, want = np.asarray(got), np.asarray(want)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.tobytes() == want.tobytes()


def close(actual, expected, tolerance=1e-12):
    """Same shape, and equal to `tolerance` of the largest value expected (of 1, if that is larger)."""
    assert np.shape(actual) == np.shape(expected)
    scale = max(1.0, np.max(np.abs(expected), initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_normalized(y, want):
    """Each number of y within its bound."""
    assert y.shape == want.shape
    error = np.abs(y.astype(want.dtype) - want) / np.maximum(1, np.abs(want))
    assert error.max(initial=0) <= Y[y.dtype]


def assert_gradients(norm, got, want, dout, want_cache):
    """dx within its bound, set by set; dgamma and dbeta within that of y times the sum of what they add up."""

    def largest(values):
        sets = norm.sets(np.ascontiguousarray(np.abs(values)))
        return sets.max(axis=tuple(range(1, sets.ndim)), initial=0)

    dx, *sums = got
    want_dx, *want_sums = want
    assert [part.dtype for part in got] == [dx.dtype] * len(want)
    assert [part.shape for part in got] == [part.shape for part in want]
    gamma = np.reshape(want_cache.gamma, norm.parameters_along(dx.shape))
    scale = largest(gamma * dout) * np.ravel(want_cache.inv_std)
    assert np.all(largest(dx.astype(want_dx.dtype) - want_dx) <= DX[dx.dtype] * scale)
    others = tuple(set(range(dx.ndim)) - set(norm.parameter_axes(dx.ndim)))
    for total, exact, terms in zip(sums, want_sums, (dout * want_cache.xhat, dout), strict=False):
        assert np.all(np.abs(total.astype(exact.dtype) - exact) <= Y[dx.dtype] * np.abs(terms).sum(axis=others))


@dataclass(frozen=True)
class Norm:
    """A normalization and its reference, called alike: forward(x, gamma, beta, eps=...) -> y, cache, moving statistics.

    A set is what has statistics of its own: a channel of a batch, a row of a layer, a group.
    """

    forward: Callable
    backward: Callable
    want_forward: Callable
    want_backward: Callable
    parameter_axes: Callable  # of the number of dimensions of x: the axes of gamma and beta
    sets: Callable  # x -> a view whose first axis counts the sets
    torch_forward: Callable  # torch.nn.functional, x, gamma, beta, eps -> y
    centred: bool = True  # else there is no mean, and no beta
    given: bool = False  # the statistics are those of moving_statistics()

    def parameter_shape(self, shape):
        return tuple(shape[axis] for axis in self.parameter_axes(len(shape)))

    def parameters_along(self, shape):
        """The shape in which gamma and beta broadcast to x."""
        axes = self.parameter_axes(len(shape))
        return tuple(size if axis in axes else 1 for axis, size in enumerate(shape))


def moving_statistics(channels):
    return np.linspace(-1, 2, channels), np.linspace(0.5, 3, channels)


def batch(axis=1, mode="train", momentum=0.8, ddof=0):
    def called(function):
        def forward(x, gamma=None, beta=None, eps=1e-5, **out):
            mean, var = moving_statistics(x.shape[axis])
            return function(x, gamma, beta, eps, momentum, mean, var, mode, axis=axis, ddof=ddof, **out)

        return forward

    def torch_forward(functional, x, gamma, beta, eps):
        running = [x.new_tensor(each) for each in moving_statistics(x.shape[axis])]
        y = functional.batch_norm(x.movedim(axis, 1), *running, gamma, beta, mode == "train", 1 - momentum, eps)
        return y.movedim(1, axis)

    return Norm(
        called(cbnorm.batchnorm_forward),
        cbnorm.batchnorm_backward,
        called(reference.batchnorm_forward),
        reference.batchnorm_backward,
        lambda ndim: (axis % ndim,),
        lambda x: np.moveaxis(x, axis, 0),
        torch_forward,
        given=mode == "test",
    )


def layer(axis=-1, name="layernorm"):
    """Layer or RMS normalization over the axes from `axis` on."""
    return Norm(
        partial(getattr(cbnorm, f"{name}_forward"), axis=axis),
        getattr(cbnorm, f"{name}_backward"),
        partial(getattr(reference, f"{name}_forward"), axis=axis),
        getattr(reference, f"{name}_backward"),
        lambda ndim: tuple(range(axis % ndim, ndim)),
        lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),
        lambda functional, x, gamma, beta, eps: functional.layer_norm(x, x.shape[axis:], gamma, beta, eps),
    )


def rms(axis=-1):
    def torch_forward(functional, x, gamma, beta, eps):
        return functional.rms_norm(x, x.shape[axis:], gamma, eps)

    return replace(layer(axis, "rmsnorm"), torch_forward=torch_forward, centred=False)


def group(groups):
    """Group normalization, or instance normalization where there is no number of groups."""

    def called(function):
        return lambda x, gamma=None, beta=None, eps=1e-5, **more: function(x, gamma, beta, groups, eps, **more)

    def sets(x):
        count = groups or x.shape[1]
        return x.reshape(x.shape[0] * count, x.shape[1] // max(count, 1) * math.prod(x.shape[2:]))

    def torch_forward(functional, x, gamma, beta, eps):
        if groups:
            return functional.group_norm(x, groups, gamma, beta, eps)
        return functional.instance_norm(x, weight=gamma, bias=beta, eps=eps)

    name = "groupnorm" if groups else "instancenorm"
    forward, want_forward = (getattr(library, f"{name}_forward") for library in (cbnorm, reference))
    return Norm(
        called(forward) if groups else forward,
        getattr(cbnorm, f"{name}_backward"),
        called(want_forward) if groups else want_forward,
        getattr(reference, f"{name}_backward"),
        lambda ndim: (1,),
        sets,
        torch_forward,
    )


def channels_last(norm):
    """The same of an array whose channels come last, seen as one whose channels come second."""

    def moved(x, source=1, destination=-1):
        return np.ascontiguousarray(np.moveaxis(x, source, destination))

    def into(out, values):
        if out is None:
            return values
        out[...] = values
        return out

    def forward(x, *parameters, out=None, **options):
        y, cache = norm.forward(moved(x), *parameters, axis=-1, **options)
        return into(out, moved(y, -1, 1)), cache

    def backward(dout, cache, out=None, **options):
        given = moved(dout)
        dx, *sums = norm.backward(given, cache, out=given if out is dout else None, **options)
        return dx if dx is None else into(out, moved(dx, -1, 1)), *sums

    return replace(norm, forward=forward, backward=backward)


INSTANCE = group(None)

# Small cases make a shape of a size; those of a batch also of a number of channels.
SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 1000)
SMALL_COLUMNS = {
    "rows": (1, lambda size, channels=17: (size, channels)),
    "channels last": (-1, lambda size, channels=17: (size, 2, channels)),
}
SMALL_PLANES = {
    "planes": (1, lambda size, channels=17: (3, channels, size)),
    "short planes": (1, lambda size, channels=17: (size, channels, 7)),
    "images": (1, lambda size, channels=17: (2, channels, size, 3)),
    "channels first": (0, lambda size, channels=17: (channels, size)),
}
SMALL_ROWS = {
    "layer": (layer(), lambda size: (7, size)),
    "layer, few numbers": (layer(), lambda size: (size, 5)),
    "layer over two axes": (layer(1), lambda size: (5, 3, size)),
    "layer of a vector": (layer(0), lambda size: (size,)),
    "rms": (rms(), lambda size: (3, 4, size)),
    "group": (group(3), lambda size: (2, 6, size)),
    "group without positions": (group(2), lambda size: (5, 2 * size)),
    "group of all channels": (group(1), lambda size: (2, 4, 3, size)),
    "instance": (INSTANCE, lambda size: (3, 4, size)),
    "instance of one value": (INSTANCE, lambda size: (size, 3)),
    "group, channels last": (channels_last(group(3)), lambda size: (2, 6, size)),
    "group of all channels, channels last": (channels_last(group(1)), lambda size: (2, 4, 3, size)),
    "instance, channels last": (channels_last(INSTANCE), lambda size: (3, 4, size)),
    "samples, channels last": (channels_last(group(2)), lambda size: (size, 4, 5)),
}
# Large enough that eight threads share the work; several chunks, tiles and tails of each walk.
LARGE_COLUMNS = {
    "many rows": (1, (4099, 67)),
    "wide rows": (1, (70, 4097)),
    "many wide rows": (1, (130, 2049)),
    "one column": (1, (300_001, 1)),
    "three columns": (1, (100_003, 3)),
    "large, channels last": (-1, (29, 31, 19, 17)),
}
LARGE_PLANES = {
    "large planes": (1, (5, 9, 6_151)),
    "long planes": (1, (3, 2, 70_001)),
    "many short planes": (1, (1_031, 7, 49)),
}
LARGE_ROWS = {
    "many rows of a layer": (layer(), (401, 768)),
    "layer, long rows": (layer(), (17, 20_011)),
    "layer, short rows": (layer(), (9_001, 33)),
    "many rows, rms": (rms(), (401, 768)),
    "large group": (group(4), (9, 12, 57, 59)),
    "many groups without positions": (group(8), (2_011, 160)),
    "large instance": (INSTANCE, (5, 7, 10_007)),
    "instance, short": (INSTANCE, (61, 101, 49)),
    "large group, channels last": (channels_last(group(4)), (9, 12, 57, 59)),
    "one sample, channels last": (channels_last(group(32)), (1, 320, 31, 33)),
    "instance, three channels last": (channels_last(INSTANCE), (5, 3, 10_007)),
    "many samples, channels last": (channels_last(group(8)), (70, 64, 49)),
}


def odd_shapes(make_shape):
    """The shapes of a small case of a batch."""
    for size in SIZES:
        for channels in (1, 17, 33) if size > 33 else (0, 1, 2, 3, 16, 33, 257):
            yield make_shape(size, channels)


def in_both_modes(table):
    """The cases of a batch as normalizations that train and that use moving statistics."""
    return {f"{name}, {mode}": (batch(axis, mode), shape) for name, (axis, shape) in table.items() for mode in MODES}


SMALL = {**in_both_modes(SMALL_COLUMNS | SMALL_PLANES), **SMALL_ROWS}
LARGE = {**in_both_modes(LARGE_COLUMNS | LARGE_PLANES), **LARGE_ROWS}
SMALL_AND_LARGE = {**{name: (norm, make_shape(33)) for name, (norm, make_shape) in SMALL.items()}, **LARGE}


def random_arrays(*shapes, seed=0):
    """Arrays whose mean and scale are neither 0 nor 1."""
    random = np.random.default_rng(seed)
    return [1.5 * random.standard_normal(shape) + 0.7 for shape in shapes]


def sample(shape, dtype=np.float64, offset=0.0, seed=0):
    """Normal values of deviation 1 around `offset`."""
    values = np.random.default_rng(seed).standard_normal(shape) + offset
    if np.dtype(dtype).kind in "biu":
        values = np.abs(values * 20) % 2 if dtype is np.bool_ else np.abs(values * 20) % 127
    return values.astype(dtype)


@cache
def normal_numbers(seed):
    """Enough for x and dout of the largest case: drawn once, as drawing takes longer than most calls."""
    return np.random.default_rng(seed).standard_normal(1_000_000)


def make_case(norm, shape, dtype, offset=0.0, seed=0):
    """x, dout and the parameters; every set has a mean, around `offset`, and a scale of its own."""
    random = np.random.default_rng(seed)
    numbers, size = normal_numbers(seed), math.prod(shape)
    x, dout = numbers[:size].reshape(shape).copy(), numbers[len(numbers) - size :].reshape(shape)
    sets = norm.sets(x)
    each = (len(sets), *[1] * (sets.ndim - 1))
    sets *= random.uniform(0.5, 2, each)
    sets += random.normal(offset, 3, each)
    gamma = random.normal(1, 0.5, norm.parameter_shape(shape))
    parameters = [gamma, random.normal(size=gamma.shape)] if norm.centred else [gamma]
    return x.astype(dtype), dout.astype(dtype), [values.astype(dtype) for values in parameters]


def check(norm, x, dout, parameters, eps=1e-5):
    """All results of a forward and a backward call within the bounds."""
    y, cache, *moving = norm.forward(x, *parameters, eps=eps)
    want_y, want_cache, *want_moving = norm.want_forward(truth(x), *parameters, eps=eps)
    assert y.dtype == x.dtype
    assert y.flags.c_contiguous
    assert_normalized(y, want_y)
    if moving:
        (mean, var), (want_mean, want_var) = moving, want_moving
        assert np.all(np.abs(mean - want_mean) <= 1e-14 * np.abs(want_mean) + 1e-12 * np.sqrt(want_var))
        assert np.all(np.abs(var - want_var) <= 1e-12 * want_var)
    want = norm.want_backward(truth(dout), want_cache)
    assert_gradients(norm, norm.backward(dout, cache), want, dout, want_cache)


def results(norm, x, dout, parameters, **options):
    """All that a forward and a backward call return."""
    y, cache, *moving = norm.forward(x, *parameters, **options)
    return [y, *moving, *norm.backward(dout, cache)]


def derivative(loss, arrays, method):
    """d loss / d each value of `arrays` (changed in turn), by central differences or by complex step."""
    gradients = []
    for position, array in enumerate(arrays):
        gradient = np.empty(array.shape)
        for index in np.ndindex(array.shape):

            def shifted(by, position=position, index=index):
                changed = [each + 0 * by for each in arrays]
                changed[position][index] += by
                return loss(*changed)

            if method == "complex step":
                gradient[index] = shifted(1e-30j).imag / 1e-30
            else:
                gradient[index] = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        gradients.append(gradient)
    return gradients
