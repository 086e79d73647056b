"""The reference of batch normalization: its forms against each other, sums, moving averages, and no values at all."""

import math

import numpy as np
import pytest
import reference
from cases import close, random_arrays

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
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)


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


def test_torch_moves_the_statistics_alike():
    torch = pytest.importorskip("torch")
    x, old_mean, old_var = random_arrays((5, 3, 2), 3, 3)
    running_mean, running_var = torch.tensor(old_mean), torch.tensor(old_var)
    torch.nn.functional.batch_norm(torch.tensor(x), running_mean, running_var, training=True, momentum=0.1)
    *_, mean, var = reference.batchnorm_forward(x, None, None, 1e-5, 0.9, old_mean, old_var, ddof=1)
    close(mean, running_mean.numpy())
    close(var, running_var.numpy())


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
