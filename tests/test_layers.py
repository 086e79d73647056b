"""Layers against the functions they stand for: results, modes, buffers, and statistics of a whole data set."""

import copy

import numpy as np
import pytest
import reference
from cases import assert_same_bits
from layer_cases import numbers, randomize, same_state

import cbnorm


@pytest.mark.parametrize("reuse_output", [False, True])
@pytest.mark.parametrize("affine", [False, True, "gamma", "beta"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_layers_give_the_bits_of_their_functions(layer_case, dtype, affine, reuse_output):
    if affine not in (False, True, *layer_case.names):
        pytest.skip("RMS normalization has no beta")
    layer = randomize(layer_case.make(affine=affine, eps=1e-3, reuse_output=reuse_output))
    x, dout = (10 * numbers(1)).astype(dtype), numbers(2)
    y, cache, *_ = layer_case.norm.forward(x, eps=1e-3, **layer.parameters())
    assert_same_bits(layer(x), y)
    dx, *gradients = layer_case.norm.backward(dout, cache)
    assert_same_bits(layer.backward(dout), dx)
    assert list(layer.parameters()) == list(layer.grads) == layer_case.names_of(affine)
    for name, want in zip(("gamma", "beta"), gradients, strict=False):
        if name in layer.grads:
            assert_same_bits(layer.grads[name], want)
        else:
            assert getattr(layer, name, None) is None


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("ddof", "momentum"), [(0, 0.9), (1, 0.75)])
def test_batch_norm_keeps_moving_statistics_as_the_function_returns_them(dtype, training, frozen, ddof, momentum):
    layer = randomize(cbnorm.BatchNorm(4, momentum=momentum, ddof=ddof, frozen=frozen))
    layer.train() if training else layer.eval()
    mean, var = layer.moving_mean, layer.moving_var
    uses_batch = training and not frozen
    for seed in range(3):
        x, dout = numbers(seed, dtype=dtype), numbers(9)
        y, cache, mean, var = cbnorm.batchnorm_forward(
            x, layer.gamma, layer.beta, momentum=momentum, moving_mean=mean, moving_var=var,
            mode="train" if uses_batch else "test", ddof=ddof,
        )  # fmt: skip
        assert_same_bits(layer.forward(x), y)
        assert_same_bits(layer.moving_mean, mean)
        assert_same_bits(layer.moving_var, var)
        dx, dgamma, dbeta = cbnorm.batchnorm_backward(dout, cache)
        assert_same_bits(layer.backward(dout), dx)
        assert_same_bits(layer.grads["gamma"], dgamma)
        assert_same_bits(layer.grads["beta"], dbeta)
    assert layer.num_batches == 5 + 3 * uses_batch


def test_frozen_statistics_count_as_constants_in_backward():
    layer = randomize(cbnorm.BatchNorm(4, frozen=True, dtype=np.float64))
    before = layer.state_dict()
    x, dout = numbers(1, dtype=np.float64), numbers(2, dtype=np.float64)
    layer(x)
    factor = layer.gamma / np.sqrt(layer.moving_var + layer.eps)
    np.testing.assert_allclose(layer.backward(dout), dout * factor[:, None], rtol=1e-12)
    assert same_state(layer, before)
    layer.frozen = False
    layer(x)
    assert layer.num_batches == 6


def test_momentum_none_averages_batches_equally_whatever_their_size():
    layer = cbnorm.BatchNorm(4, momentum=None, ddof=1)
    batches = [numbers(seed, (3 + 5 * seed, 4), np.float64) for seed in range(5)]
    for x in [*batches[:2], np.empty((0, 4)), *batches[2:]]:
        layer(x)
    assert layer.num_batches == 5
    np.testing.assert_allclose(layer.moving_mean, np.mean([x.mean(axis=0) for x in batches], axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.moving_var, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0), rtol=1e-12)


def test_momentum_none_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(4, momentum=None, dtype=torch.float64)
    layer = cbnorm.BatchNorm.from_torch(module)
    for seed in range(4):
        x = numbers(seed, (3 + seed, 4), np.float64)
        module(torch.from_numpy(x))
        layer(x)
    for name, array in layer.to_torch()["state_dict"].items():
        np.testing.assert_allclose(array, module.state_dict()[name].numpy(), rtol=1e-12)


def test_an_optimizer_updates_parameters_in_place():
    layer = cbnorm.LayerNorm(5)
    x = numbers(1)
    before = layer(x)
    layer.backward(np.ones_like(x))
    for name, parameter in layer.parameters().items():
        parameter -= 0.1 * layer.grads[name]
    np.testing.assert_allclose(layer.beta, -0.1 * 24, rtol=1e-6)
    assert not np.array_equal(layer(x), before)


def test_train_and_eval_return_the_layer():
    layer = cbnorm.BatchNorm(4)
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training


@pytest.mark.parametrize("name", ["training", "reuse_output", "frozen"])
def test_flags_are_true_or_false_whenever_they_are_set(name):
    layer = cbnorm.BatchNorm(4)
    before = getattr(layer, name)
    for other in ("no", 1, None, np.array([True]), []):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got"):
            setattr(layer, name, other)
        assert getattr(layer, name) is before
    for other in (not before, np.bool_(before), np.bool_(not before)):
        setattr(layer, name, other)
        assert getattr(layer, name) is bool(other)
    assert getattr(copy.deepcopy(layer), name) is (not before)


def test_fresh_results_by_default(layer_case):
    layer = layer_case.make()
    x = numbers(1)
    first, second = layer(x), layer(x)
    assert not np.shares_memory(first, second)
    first_dx, second_dx = (layer.backward(x, layer.cache) for _ in range(2))
    assert not np.shares_memory(first_dx, second_dx)


def test_reused_results_are_overwritten_by_the_next_call(layer_case):
    layer = layer_case.make(reuse_output=True)
    first = layer(numbers(1))
    kept = first.copy()
    first_dx = layer.backward(numbers(2))
    second = layer(3 * numbers(3) ** 2)
    assert second is first
    assert not np.array_equal(first, kept)
    assert layer.backward(numbers(4)) is first_dx
    assert not np.shares_memory(first, first_dx)


def test_reused_results_follow_shape_and_dtype():
    layer = cbnorm.BatchNorm(4, reuse_output=True)
    for shape, dtype in [((6, 4), np.float32), ((3, 4), np.float32), ((3, 4), np.float64), ((3, 4, 2), np.float16)]:
        x = numbers(1, shape, dtype)
        assert_same_bits(layer(x), cbnorm.batchnorm_forward(x)[0])
        assert_same_bits(layer.backward(x), cbnorm.batchnorm_backward(x, cbnorm.batchnorm_forward(x)[1])[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_reused_result_may_be_the_next_input(layer_case, mode):
    layers = [getattr(randomize(layer_case.make(reuse_output=reuse)), mode)() for reuse in (True, False)]
    results = []
    for layer in layers:
        once = layer(numbers(1))
        record = layer.cache
        twice = layer(once)
        results.append((twice, layer.backward(layer.backward(numbers(2), layer.cache), record)))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: cbnorm.BatchNorm(0), ValueError, "num_channels: expected at least 1, got 0"),
        (lambda: cbnorm.BatchNorm(2.0), TypeError, "num_channels: expected an integer, got 2.0"),
        (lambda: cbnorm.BatchNorm(2, axis="C"), TypeError, "axis: expected an integer, got 'C'"),
        (lambda: cbnorm.BatchNorm(2, eps=-1), ValueError, "eps: expected"),
        (lambda: cbnorm.BatchNorm(2, momentum=1.5), ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
        (lambda: cbnorm.BatchNorm(2, ddof=2), ValueError, "ddof: expected 0 or 1, got 2"),
        (lambda: cbnorm.BatchNorm(2, dtype=int), TypeError, "dtype: expected float16, float32 or float64, got"),
        (lambda: cbnorm.BatchNorm(2, dtype="f5"), TypeError, "dtype: expected .* got 'f5'"),
        (lambda: cbnorm.LayerNorm(()), ValueError, "shape: expected at least one length"),
        (lambda: cbnorm.LayerNorm((3, 0)), ValueError, "shape: expected at least 1, got 0"),
        (lambda: cbnorm.RMSNorm("5"), TypeError, "shape: expected an integer, got '5'"),
        (lambda: cbnorm.GroupNorm(3, 4), ValueError, "num_groups: expected a divisor of 4 channels, got 3"),
        (lambda: cbnorm.GroupNorm(0, 4), ValueError, "num_groups: expected at least 1, got 0"),
        (lambda: cbnorm.InstanceNorm(-1), ValueError, "num_channels: expected at least 1, got -1"),
        (lambda: cbnorm.BatchNorm(True), TypeError, "num_channels: expected an integer, got True"),
        (lambda: cbnorm.BatchNorm(2, axis=True), TypeError, "axis: expected an integer, got True"),
        (lambda: cbnorm.BatchNorm(2, eps=True), TypeError, "eps: expected a number, got True"),
        (lambda: cbnorm.BatchNorm(2, momentum=False), TypeError, "momentum: expected a number, got False"),
        (lambda: cbnorm.BatchNorm(2, ddof=True), ValueError, "ddof: expected 0 or 1, got True"),
        (lambda: cbnorm.BatchNorm(np.True_), TypeError, "num_channels: expected an integer, got"),
        (lambda: cbnorm.LayerNorm((3, True)), TypeError, "shape: expected an integer, got True"),
        (lambda: cbnorm.RMSNorm(True), TypeError, "shape: expected an integer, got True"),
        (lambda: cbnorm.GroupNorm(True, 4), TypeError, "num_groups: expected an integer, got True"),
        (lambda: cbnorm.InstanceNorm(True), TypeError, "num_channels: expected an integer, got True"),
        (lambda: cbnorm.BatchNorm(2, affine="weight"), ValueError, "affine: expected True, False, 'gamma', 'beta'"),
        (lambda: cbnorm.LayerNorm(2, affine=1), TypeError, "affine: expected True, False, .*, got 1"),
        (lambda: cbnorm.GroupNorm(1, 2, affine=None), TypeError, "affine: expected True, False, .*, got None"),
        (lambda: cbnorm.RMSNorm(2, affine="beta"), ValueError, "affine: expected True, False, 'gamma', got 'beta'"),
        (
            lambda: cbnorm.InstanceNorm(2, reuse_output="no"),
            TypeError,
            "reuse_output: expected True or False, got 'no'",
        ),
        (lambda: cbnorm.BatchNorm(2, frozen="no"), TypeError, "frozen: expected True or False, got 'no'"),
        (lambda: cbnorm.BatchNorm(2, frozen=0), TypeError, "frozen: expected True or False, got 0"),
    ],
)
def test_constructors_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "words"),
    [
        (cbnorm.BatchNorm(3), np.zeros((5, 4)), ValueError, r"x: expected length 3 on axis 1, got shape \(5, 4\)"),
        (cbnorm.BatchNorm(3, axis=-1), np.zeros((3, 4)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.BatchNorm(3, axis=-3), np.zeros((3, 3)), ValueError, "x: expected length 3 on axis -3"),
        (cbnorm.BatchNorm(3), np.zeros(3), ValueError, "x: expected at least 2 dimensions"),
        (cbnorm.BatchNorm(3, ddof=1), np.zeros((1, 3)), ValueError, "ddof: expected 0"),
        (cbnorm.BatchNorm(3), np.zeros((2, 3), complex), TypeError, "x: expected real numbers"),
        (cbnorm.LayerNorm(3, affine=False), np.zeros((2, 4)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.LayerNorm((2, 3)), np.zeros((4, 3)), ValueError, r"x: expected length \(2, 3\) on the axes from -2"),
        (cbnorm.LayerNorm((2, 3)), np.zeros(3), ValueError, r"x: expected length \(2, 3\)"),
        (cbnorm.RMSNorm(3, affine=False), np.zeros((3, 1)), ValueError, "x: expected length 3 on axis -1"),
        (cbnorm.GroupNorm(2, 4, affine=False), np.zeros((2, 6)), ValueError, "x: expected length 4 on axis 1"),
        (cbnorm.InstanceNorm(4, affine=False), np.zeros((2, 3, 4)), ValueError, "x: expected length 4 on axis 1"),
    ],
)
def test_an_input_that_does_not_fit_is_an_error_and_changes_nothing(layer, x, error, words):
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        layer(x)
    assert same_state(layer, before)
    with pytest.raises(ValueError, match="backward: expected a forward call of this thread before it"):
        layer.backward(x)


def test_a_gradient_that_does_not_fit_leaves_the_old_ones(layer_case):
    layer = layer_case.make()
    assert layer.grads == {}
    layer(numbers(1))
    layer.backward(numbers(2))
    before = layer.grads
    with pytest.raises(ValueError, match="dout: expected shape"):
        layer.backward(np.zeros(3))
    assert layer.grads is before


ONE_VALUE = {
    "batch": (lambda **options: cbnorm.BatchNorm(4, **options), (1, 4)),
    "batch, one position": (lambda **options: cbnorm.BatchNorm(4, **options), (1, 4, 1, 1)),
    "layer": (lambda **options: cbnorm.LayerNorm(1, **options), (5, 4, 1)),
    "group": (lambda **options: cbnorm.GroupNorm(4, 4, **options), (3, 4)),
    "instance": (lambda **options: cbnorm.InstanceNorm(4, **options), (3, 4)),
    "instance, one position": (lambda **options: cbnorm.InstanceNorm(4, **options), (3, 4, 1, 1)),
}


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ONE_VALUE)
def test_one_value_gives_beta_and_no_gradient_but_that_of_beta(kind, dtype, eps):
    make, shape = ONE_VALUE[kind]
    layer = randomize(make(eps=eps, dtype=dtype))
    layer.gamma *= 1000
    along = (1, -1, *(1,) * (len(shape) - 2)) if layer.beta.size > 1 else (1,)
    x, dout = numbers(1, shape, dtype), numbers(2, shape, dtype)
    np.testing.assert_array_equal(layer(x), np.broadcast_to(layer.beta.reshape(along), shape))
    np.testing.assert_array_equal(layer.backward(dout), 0)
    np.testing.assert_array_equal(layer.grads["gamma"], 0)
    others = tuple(axis for axis, length in enumerate(along) if length == 1) if layer.beta.size > 1 else None
    np.testing.assert_allclose(layer.grads["beta"], dout.sum(axis=others, dtype=np.float64).reshape(-1), rtol=1e-6)


def test_one_value_of_rms_normalization_is_its_sign():
    layer = cbnorm.RMSNorm(1, eps=0.0)
    np.testing.assert_array_equal(layer(np.float32([[3], [-0.1], [0]])), [[1], [-1], [0]])


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("axis", [1, -1])
def test_recomputed_statistics_are_those_of_the_whole_data_set(axis, ddof):
    shapes = [(5, 4, 3, 4), (0, 4, 3, 4), (1, 4, 2, 4), (9, 4, 1, 4)]
    batches = [100 + numbers(seed, shape) for seed, shape in enumerate(shapes)]
    layer = randomize(cbnorm.BatchNorm(4, axis=axis, ddof=ddof, momentum=None)).eval()
    parameters = [array.copy() for array in layer.parameters().values()]
    cbnorm.recompute_stats(layer, (x for x in batches))
    together = np.concatenate([reference.to_columns(x, axis) for x in batches])
    np.testing.assert_allclose(layer.moving_mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.moving_var, together.var(axis=0, ddof=ddof), rtol=1e-9)
    for array, before in zip(layer.parameters().values(), parameters, strict=True):
        np.testing.assert_array_equal(array, before)
    assert not layer.training
    assert layer.num_batches == 3  # the next batch of training weighs 1/4
    mean = layer.moving_mean
    layer.train()(np.zeros((2, 4, 2, 4)))
    np.testing.assert_allclose(layer.moving_mean, 0.75 * mean, rtol=1e-12)


def failing_batches():
    yield numbers(1)
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ValueError, "batches: expected at least 2 values a channel, got 0"),
        ([np.empty((0, 4))], ValueError, "batches: expected at least 2 values a channel, got 0"),
        ([np.ones((1, 4))], ValueError, "batches: expected at least 2 values a channel, got 1"),
        ([np.ones((3, 5))], ValueError, "batches: expected length 4 on axis 1"),
        ([numbers(1), np.ones((3, 5))], ValueError, "batches: expected length 4 on axis 1"),
        ([numbers(1), "text"], TypeError, "batches: expected"),
        (failing_batches(), RuntimeError, "the disk is gone"),
        (3, TypeError, "batches: expected an iterable of arrays, got int"),
    ],
)
def test_statistics_that_cannot_be_recomputed_stay_as_they_were(batches, error, words):
    layer = randomize(cbnorm.BatchNorm(4, ddof=1))
    before = layer.state_dict()
    with pytest.raises(error, match=words):
        cbnorm.recompute_stats(layer, batches)
    assert same_state(layer, before)


def test_only_batch_normalization_has_statistics_to_recompute():
    with pytest.raises(TypeError, match="layer: expected a BatchNorm, got LayerNorm"):
        cbnorm.recompute_stats(cbnorm.LayerNorm(4), [])
