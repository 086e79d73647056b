"""Tests of the reference itself: its forms against each other, derivatives, plain loops and PyTorch."""

import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import reference

# Large enough that a misplaced eps shows, and that the gradients of short channels do not vanish.
EPS = 0.1

SHAPES_AND_AXES = [
    ((1, 3), 1),
    ((2, 1), 1),
    ((3, 2), -1),
    ((15, 3), 1),
    ((16, 17), 0),
    ((33, 16), 1),
    ((2, 3, 5), 1),
    ((3, 2, 15), -1),
    ((2, 3, 3, 1), 1),
    ((17, 2, 1, 3), -1),
    ((2, 3, 2, 2, 2), 2),
]


def random_arrays(*shapes, seed=0):
    """Arrays whose mean and scale are neither 0 nor 1."""
    random = np.random.default_rng(seed)
    return [1.5 * random.standard_normal(shape) + 0.7 for shape in shapes]


def close(actual, expected, tolerance=1e-12):
    """Same shape, and equal to `tolerance` of the largest value expected (of 1, if that is larger)."""
    assert np.shape(actual) == np.shape(expected)
    scale = max(1.0, np.max(np.abs(expected), initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


class Case(NamedTuple):
    """A normalization as seen by the tests that hold for all of them."""

    shape: tuple
    parameter_shape: tuple
    forward: Callable  # x, gamma, beta -> y, cache
    backward: Callable  # dout, cache -> dx, dgamma, dbeta
    along: tuple  # the shape in which gamma and beta broadcast to x
    segments: list  # an index of each part of x that has its own statistics
    torch_forward: Callable  # torch.nn.functional, x, gamma, beta -> y
    centred: bool = True
    given: tuple = ()  # (mu, var) of each segment where x's own are not used


def batch_case(shape, axis, mode="train"):
    channels = shape[axis]
    moving_mean, moving_var = np.linspace(-1, 2, channels), np.linspace(0.5, 3, channels)
    moving = {"moving_mean": moving_mean, "moving_var": moving_var, "mode": mode} if mode == "test" else {}
    leading = (slice(None),) * (axis % len(shape))

    def forward(x, gamma, beta):
        return reference.batchnorm_forward(x, gamma, beta, EPS, axis=axis, **moving)[:2]

    def torch_forward(functional, x, gamma, beta):
        running = [x.new_tensor(each) for each in (moving_mean, moving_var)] if moving else (None, None)
        y = functional.batch_norm(x.movedim(axis, 1), *running, gamma, beta, mode == "train", 0.1, EPS)
        return y.movedim(1, axis)

    return Case(
        shape,
        (channels,),
        forward,
        reference.batchnorm_backward,
        (channels,) + (1,) * (len(shape) - 1 - axis % len(shape)),
        [(*leading, channel) for channel in range(channels)],
        torch_forward,
        given=tuple(zip(moving_mean, moving_var, strict=True)) if moving else (),
    )


def layer_case(shape, axis):
    return Case(
        shape,
        shape[axis:],
        lambda x, gamma, beta: reference.layernorm_forward(x, gamma, beta, EPS, axis=axis),
        reference.layernorm_backward,
        shape[axis:],
        list(np.ndindex(shape[:axis])),
        lambda functional, x, gamma, beta: functional.layer_norm(x, shape[axis:], gamma, beta, EPS),
    )


def rms_case(shape, axis):
    return layer_case(shape, axis)._replace(
        forward=lambda x, gamma, beta: reference.rmsnorm_forward(x, gamma, EPS, axis=axis),
        backward=reference.rmsnorm_backward,
        centred=False,
        torch_forward=lambda functional, x, gamma, beta: functional.rms_norm(x, shape[axis:], gamma, EPS),
    )


def group_case(shape, num_groups):
    size = shape[1] // num_groups
    return Case(
        shape,
        (shape[1],),
        lambda x, gamma, beta: reference.groupnorm_forward(x, gamma, beta, num_groups, EPS),
        reference.groupnorm_backward,
        (shape[1],) + (1,) * (len(shape) - 2),
        [(n, slice(g * size, (g + 1) * size)) for n in range(shape[0]) for g in range(num_groups)],
        lambda functional, x, gamma, beta: functional.group_norm(x, num_groups, gamma, beta, EPS),
    )


def instance_case(shape):
    return group_case(shape, shape[1])._replace(
        forward=lambda x, gamma, beta: reference.instancenorm_forward(x, gamma, beta, EPS),
        backward=reference.instancenorm_backward,
        segments=list(np.ndindex(shape[:2])),
        torch_forward=lambda functional, x, gamma, beta: functional.instance_norm(x, weight=gamma, bias=beta, eps=EPS),
    )


CASES = {
    "batch (5, 3)": batch_case((5, 3), 1),
    "batch (3, 15) axis 0": batch_case((3, 15), 0),
    "batch (2, 3, 3)": batch_case((2, 3, 3), 1),
    "batch (2, 3, 1, 4) axis -1": batch_case((2, 3, 1, 4), -1),
    "batch (2, 2, 3, 2) axis 2": batch_case((2, 2, 3, 2), 2),
    "test (5, 3)": batch_case((5, 3), 1, "test"),
    "test (2, 3, 3) axis -1": batch_case((2, 3, 3), -1, "test"),
    "layer (3, 17)": layer_case((3, 17), -1),
    "layer (2, 3, 3) axis 1": layer_case((2, 3, 3), 1),
    "layer (2, 3, 5) axis -1": layer_case((2, 3, 5), -1),
    "layer (3, 5) axis 0": layer_case((3, 5), 0),
    "group (2, 6, 3) by 3": group_case((2, 6, 3), 3),
    "group (3, 4, 1, 2) by 1": group_case((3, 4, 1, 2), 1),
    "group (3, 6) by 2": group_case((3, 6), 2),
    "instance (2, 3, 5)": instance_case((2, 3, 5)),
    "instance (1, 2, 3, 3)": instance_case((1, 2, 3, 3)),
    "rms (3, 17)": rms_case((3, 17), -1),
    "rms (2, 3, 3) axis 1": rms_case((2, 3, 3), 1),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)


def loop_forward(case, x, gamma, beta):
    """y, mean and inv_std of one case: a loop over the parts, their statistics from the standard library."""
    y, used = np.empty(x.shape), []
    for position, index in enumerate(case.segments):
        values = x[index].ravel().tolist()
        if case.given:
            mu, var = case.given[position]
        elif case.centred:
            mu, var = statistics.fmean(values), statistics.pvariance(values)
        else:
            mu, var = 0.0, statistics.fmean(value * value for value in values)
        y[index] = (x[index] - mu) / (var + EPS) ** 0.5
        used.append((mu, (var + EPS) ** -0.5))
    y = y * gamma.reshape(case.along) + (beta.reshape(case.along) if case.centred else 0.0)
    return y, *np.transpose(used)


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


@every_shape
def test_columns_are_the_channels(shape, axis):
    (x,) = random_arrays(shape)
    columns = reference.to_columns(x, axis)
    assert columns.shape == (x.size // shape[axis], shape[axis])
    for channel in range(shape[axis]):
        np.testing.assert_array_equal(columns[:, channel], x.take(channel, axis).ravel())
    back = reference.from_columns(columns, shape, axis)
    np.testing.assert_array_equal(back, x)
    assert back.flags.c_contiguous


@every_shape
def test_forward_forms_agree(shape, axis):
    x, gamma, beta = random_arrays(shape, shape[axis], shape[axis])
    naive = reference.naive_forward(x, gamma, beta, EPS, axis)
    y, nodes = reference.forward_nodes(reference.to_columns(x, axis), gamma, beta, EPS)
    close(reference.from_columns(y, shape, axis), naive)
    y, cache, *_ = reference.batchnorm_forward(x, gamma, beta, EPS, axis=axis)
    close(y, naive)
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    for mean, std in [(nodes.mu, nodes.std), (cache.mean, 1 / cache.inv_std)]:
        close(mean, x.mean(axis=others))
        close(std, np.sqrt(x.var(axis=others) + EPS))
    close(cache.xhat, reference.naive_forward(x, np.ones_like(gamma), np.zeros_like(beta), EPS, axis))


@every_shape
def test_backward_forms_agree(shape, axis):
    x, dout, gamma, beta = random_arrays(shape, shape, shape[axis], shape[axis])
    dout_columns = reference.to_columns(dout, axis)
    _, nodes = reference.forward_nodes(reference.to_columns(x, axis), gamma, beta, EPS)
    graph = reference.graph_backward(dout_columns, nodes)
    compact = reference.compact_backward(dout_columns, nodes.xhat, nodes.inv_std, gamma)
    for from_graph, from_compact in zip(graph, compact, strict=True):
        close(from_compact, from_graph)
    close(reference.dxhat_backward(dout_columns * gamma, nodes.xhat, nodes.inv_std), graph[0])
    _, cache, *_ = reference.batchnorm_forward(x, gamma, beta, EPS, axis=axis)
    dx, dgamma, dbeta = reference.batchnorm_backward(dout, cache)
    close(dx, reference.from_columns(graph[0], shape, axis))
    close(dgamma, graph[1])
    close(dbeta, graph[2])


@pytest.mark.parametrize(("method", "tolerance"), [("central differences", 1e-8), ("complex step", 1e-13)])
@every_case
def test_backward_is_the_derivative(case, method, tolerance):
    x, dout, gamma, beta = random_arrays(case.shape, case.shape, case.parameter_shape, case.parameter_shape)
    actual = case.backward(dout, case.forward(x, gamma, beta)[1])
    assert len(actual) == (3 if case.centred else 2)

    def loss(x, gamma, beta=None):
        return (dout * case.forward(x, gamma, beta)[0]).sum()

    expected = derivative(loss, [x, gamma, beta][: len(actual)], method)
    for gradient, numerical in zip(actual, expected, strict=True):
        close(gradient, numerical, tolerance)


@every_case
def test_forward_is_the_plain_loop(case):
    x, gamma, beta = random_arrays(case.shape, case.parameter_shape, case.parameter_shape)
    y, cache = case.forward(x, gamma, beta)
    for actual, expected in zip((y, cache.mean, cache.inv_std), loop_forward(case, x, gamma, beta), strict=True):
        close(actual, expected)


@every_case
def test_torch_agrees(case):
    torch = pytest.importorskip("torch")
    arrays = random_arrays(case.shape, case.parameter_shape, case.parameter_shape, case.shape)
    x, gamma, beta, dout = arrays
    tensors = [torch.tensor(each, requires_grad=True) for each in arrays[:3]]
    expected = case.torch_forward(torch.nn.functional, *tensors)
    expected.backward(torch.tensor(dout))
    y, cache = case.forward(x, gamma, beta)
    close(y, expected.detach().numpy())
    for gradient, tensor in zip(case.backward(dout, cache), tensors, strict=case.centred):
        close(gradient, tensor.grad.numpy())


def test_torch_moves_the_statistics_alike():
    torch = pytest.importorskip("torch")
    x, old_mean, old_var = random_arrays((5, 3, 2), 3, 3)
    running_mean, running_var = torch.tensor(old_mean), torch.tensor(old_var)
    torch.nn.functional.batch_norm(torch.tensor(x), running_mean, running_var, training=True, momentum=0.1)
    *_, mean, var = reference.batchnorm_forward(x, None, None, 1e-5, 0.9, old_mean, old_var, ddof=1)
    close(mean, running_mean.numpy())
    close(var, running_var.numpy())


@every_case
def test_missing_parameters_are_ones_and_zeros(case):
    x, dout = random_arrays(case.shape, case.shape)
    ones, zeros = np.ones(case.parameter_shape), np.zeros(case.parameter_shape)
    (y, cache), (expected, expected_cache) = case.forward(x, None, None), case.forward(x, ones, zeros)
    close(y, expected)
    gradients = zip(case.backward(dout, cache), case.backward(dout, expected_cache), strict=True)
    for actual, gradient in gradients:
        close(actual, gradient)


@every_case
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "int64", "bool"])
def test_everything_is_computed_in_float64(case, dtype):
    arrays = random_arrays(case.shape, case.parameter_shape, case.parameter_shape, case.shape)
    arrays = [(3 * each).astype(dtype) for each in arrays]
    copies = [each.copy() for each in arrays]
    results = []
    for x, gamma, beta, dout in arrays, [each.astype(np.float64) for each in arrays]:
        y, cache = case.forward(x, gamma, beta)
        results.append([y, cache.xhat, cache.mean, cache.inv_std, *case.backward(dout, cache)])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype == np.float64
        assert actual.dtype.isnative
        np.testing.assert_array_equal(actual, expected)
    for each, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(each, copy)


@pytest.mark.parametrize("form", ["graph", "compact", "dxhat", "frozen"])
def test_float32_dout_is_reduced_in_float64(form):
    x, dout, gamma = random_arrays((33, 3), (33, 3), 3)
    _, nodes = reference.forward_nodes(x, gamma)
    backward = {
        "graph": lambda dout: reference.graph_backward(dout, nodes),
        "compact": lambda dout: reference.compact_backward(dout, nodes.xhat, nodes.inv_std, gamma),
        "dxhat": lambda dout: [reference.dxhat_backward(dout, nodes.xhat, nodes.inv_std)],
        "frozen": lambda dout: reference.frozen_backward(dout, nodes.xhat, nodes.inv_std, gamma),
    }[form]
    single = dout.astype(np.float32)
    for actual, expected in zip(backward(single), backward(single.astype(np.float64)), strict=True):
        np.testing.assert_array_equal(actual, expected)


@every_case
def test_longdouble_is_kept(case):
    """At a mean of 1e6 longdouble gives what float64 gives near 0, to digits that float64 loses there."""
    if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
        pytest.skip("longdouble is float64 here")
    x, gamma, beta, dout = random_arrays(case.shape, case.parameter_shape, case.parameter_shape, case.shape)
    x = np.round(x * 2**20) / 2**20  # so that adding 1e6 is exact
    expected, cache = case.forward(x, gamma, beta)
    expected = [expected, *case.backward(dout, cache)]
    offset = 1e6 if case.centred and not case.given else 0
    y, cache = case.forward(x.astype(np.longdouble) + offset, gamma, beta)
    for actual, each in zip([y, *case.backward(dout, cache)], expected, strict=True):
        close(actual, each, 2e-13)
    assert y.dtype == cache.xhat.dtype == np.longdouble


def test_float64_survives_a_large_offset():
    """Channels are summed pairwise: row after row the mean would be out by 6e-9, and so would y."""
    x = np.random.default_rng(0).standard_normal((2**16, 2)) + 1e6
    _, nodes = reference.forward_nodes(reference.to_columns(x))
    exact = [math.fsum(column) / len(x) for column in x.T]
    np.testing.assert_allclose(nodes.mu, exact, rtol=0, atol=5e-10)


@pytest.mark.parametrize(("ddof", "expected_var"), [(0, [1.0, 1.3]), (1, [1.1, 1.7])])
def test_moving_averages(ddof, expected_var):
    x, old_mean, old_var = np.array([[1.0, 10.0], [3.0, 14.0]]), np.zeros(2), np.ones(2)
    moving = {"moving_mean": old_mean, "moving_var": old_var}
    y, _, mean, var = reference.batchnorm_forward(x, momentum=0.9, ddof=ddof, **moving)
    close(mean, [0.2, 1.2], 1e-15)
    close(var, expected_var, 1e-15)
    close(y, reference.naive_forward(x, np.ones(2), np.zeros(2), 1e-5))  # never normalized with ddof=1
    np.testing.assert_array_equal([old_mean, old_var], [[0, 0], [1, 1]])


@pytest.mark.parametrize("tracked", ["moving_mean", "moving_var", None])
def test_none_is_not_tracked(tracked):
    x, old = random_arrays((3, 2), 2)
    given = {tracked: old} if tracked else {}
    *_, mean, var = reference.batchnorm_forward(x, **given)
    assert (mean is not None, var is not None) == (tracked == "moving_mean", tracked == "moving_var")


@pytest.mark.parametrize("ddof", [0, 1])
def test_test_mode_leaves_the_statistics(ddof):
    x, old_mean, old_var = random_arrays((1, 3), 3, 3)
    old_var = old_var**2
    _, cache, mean, var = reference.batchnorm_forward(
        x, moving_mean=old_mean, moving_var=old_var, mode="test", ddof=ddof
    )
    for new, old in [(mean, old_mean), (var, old_var)]:
        np.testing.assert_array_equal(new, old)
        assert not np.shares_memory(new, old)
    np.testing.assert_array_equal(cache.mean, old_mean)
    close(cache.inv_std, (old_var + 1e-5) ** -0.5)


def test_one_value_per_channel_gives_beta():
    x, beta = random_arrays((1, 3), 3)
    np.testing.assert_array_equal(reference.batchnorm_forward(x, beta=beta)[0], [beta])


@pytest.mark.parametrize(
    ("options", "named"),
    [({"mode": "eval"}, "mode"), ({"mode": "test"}, "moving_mean"), ({"ddof": 1}, "ddof")],
)
def test_bad_arguments_are_named(options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        reference.batchnorm_forward(np.ones((1, 3)), **options)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"^num_groups"):
        reference.groupnorm_forward(np.ones((2, 6, 2)), None, None, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 1), ((2, 3, 0), 1), ((0, 2, 3), -1), ((4, 0), 1)])
def test_empty_batch(shape, axis, ddof, mode):
    old_mean, old_var = np.square(random_arrays(shape[axis], shape[axis]))
    moving = {"moving_mean": old_mean, "moving_var": old_var, "mode": mode, "ddof": ddof}
    x = np.empty(shape, np.float32)
    y, cache, mean, var = reference.batchnorm_forward(x, axis=axis, **moving)
    dx, dgamma, dbeta = reference.batchnorm_backward(x, cache)
    assert y.shape == dx.shape == cache.xhat.shape == shape
    for new, old in [(mean, old_mean), (var, old_var)]:
        np.testing.assert_array_equal(new, old)
        assert not np.shares_memory(new, old)
    for gradient in dgamma, dbeta:
        np.testing.assert_array_equal(gradient, np.zeros(shape[axis]))
    _, nodes = reference.forward_nodes(reference.to_columns(x, axis))
    for gradient in reference.graph_backward(reference.to_columns(x, axis), nodes):
        assert not gradient.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        (reference.layernorm_forward, reference.layernorm_backward),
        (functools.partial(reference.layernorm_forward, axis=1), reference.layernorm_backward),
        (lambda x: reference.groupnorm_forward(x, None, None, 2), reference.groupnorm_backward),
        (reference.instancenorm_forward, reference.instancenorm_backward),
        (reference.rmsnorm_forward, reference.rmsnorm_backward),
    ],
)
def test_empty_rows(forward, backward, shape):
    x = np.empty(shape)
    y, cache = forward(x)
    dx, *parameter_gradients = backward(x, cache)
    assert y.shape == dx.shape == shape
    for gradient in parameter_gradients:
        assert gradient.shape == np.squeeze(cache.gamma).shape
        assert not gradient.any()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ddof", [0, 1])
def test_pooled_statistics(axis, ddof):
    batches = [np.moveaxis(each, 1, axis) for each in random_arrays((2, 3, 5), (7, 3, 5), (0, 3, 5), (1, 3, 5))]
    batches[1] += 100  # the spread between the batches counts
    whole = np.concatenate([np.moveaxis(batch, axis, -1).reshape(-1, 3) for batch in batches])
    mean, var = reference.pooled_statistics(batches, axis, ddof)
    close(mean, whole.mean(axis=0))
    close(var, whole.var(axis=0, ddof=ddof))


def test_pooled_statistics_by_hand():
    mean, var = reference.pooled_statistics([[[1.0, 10.0], [3.0, 14.0]], [[8.0, 12.0]]])
    close(mean, [4.0, 12.0], 1e-15)
    close(var, [26 / 3, 8 / 3], 1e-15)


def test_batch_average():
    batches = [
        np.array([[1.0, 10.0], [3.0, 14.0]]),
        np.array([[5.0, 1.0]] * 3),
        np.array([[0.0, 1.0], [6.0, 1.0]]),
    ]
    mean, var = reference.batch_average([*batches, np.empty((0, 2))])
    close(mean, [10 / 3, 14 / 3], 1e-15)  # of [2, 12], [5, 1] and [3, 1]
    close(var, [5.0, 2.0], 1e-15)  # [1, 4] + [0, 0] + [9, 0], over 3 - 1
