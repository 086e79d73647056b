"""Folding: the weights with the layer in them against the layer after the weights."""

import numpy as np
import pytest
from layer_cases import randomize, same_state
from numpy.lib.stride_tricks import sliding_window_view

import cbnorm


def dense(x, weight, bias):
    """x (N, in), weight (in, out) -> (N, out)."""
    return x @ weight + bias


def torch_linear(x, weight, bias):
    """x (N, in), weight (out, in) -> (N, out)."""
    return x @ weight.T + bias


def convolve(x, weight, bias):
    """x (N, in, H, W), weight (out, in, kh, kw) -> (N, out, H - kh + 1, W - kw + 1)."""
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("nihwkl,oikl->nohw", windows, weight) + bias[:, None, None]


NETWORKS = {
    "dense": (dense, (8, 6), (6, 5), 1),
    "dense, negative axis": (dense, (8, 6), (6, 5), -1),
    "PyTorch's linear": (torch_linear, (8, 6), (5, 6), 0),
    "convolution": (convolve, (3, 2, 9, 7), (5, 2, 3, 2), 0),
}


def trained_layer(dtype=np.float64, **options):
    return randomize(cbnorm.BatchNorm(5, dtype=dtype, **options))


@pytest.mark.parametrize("affine", [False, True, "gamma", "beta"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 5e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_folded_network_gives_what_the_network_gives(network, dtype, error, with_bias, affine):
    apply, x_shape, weight_shape, channel_axis = NETWORKS[network]
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=x_shape).astype(dtype), rng.normal(size=weight_shape).astype(dtype)
    bias = rng.normal(size=5).astype(dtype) if with_bias else None
    layer = trained_layer(dtype, eps=1e-3, affine=affine)
    before = layer.state_dict(), weight.copy()
    folded_weight, folded_bias = cbnorm.fold_batchnorm(weight, bias, layer, channel_axis=channel_axis)
    assert (folded_weight.dtype, folded_bias.dtype) == (dtype, dtype)
    assert (folded_weight.shape, folded_bias.shape) == (weight.shape, (5,))
    want = layer.eval()(apply(x, weight, np.zeros(5, dtype) if bias is None else bias))
    np.testing.assert_allclose(apply(x, folded_weight, folded_bias), want, rtol=error, atol=error)
    assert same_state(layer, before[0])
    np.testing.assert_array_equal(weight, before[1])
    assert not np.shares_memory(folded_weight, weight)


def test_folding_rounds_once():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    layer = trained_layer(np.float32)
    scale = layer.gamma / np.sqrt(layer.moving_var + layer.eps)
    assert scale.dtype == np.float64
    folded_weight, folded_bias = cbnorm.fold_batchnorm(weight, bias, layer, channel_axis=1)
    truth = [weight * scale, (bias - layer.moving_mean) * scale + layer.beta]
    for got, want in zip((folded_weight, folded_bias), truth, strict=True):
        assert np.all(np.abs(got - want) <= 0.51 * np.spacing(np.abs(got)))


def test_each_result_has_the_dtype_of_its_own_input():
    layer = trained_layer()
    for weight_dtype, bias_dtype in ((np.float16, np.float32), (np.float32, np.float64), (np.float64, np.float16)):
        weight, bias = np.ones((5, 2), weight_dtype), np.ones(5, bias_dtype)
        folded = cbnorm.fold_batchnorm(weight, bias, layer, channel_axis=0)
        assert [array.dtype for array in folded] == [weight_dtype, bias_dtype]
    folded = cbnorm.fold_batchnorm(np.ones((5, 2), np.int8), None, layer, channel_axis=0)
    assert [array.dtype for array in folded] == [np.float64, np.float64]


def test_a_channel_without_variance_gives_beta():
    layer = trained_layer(eps=0.0)
    layer.moving_var[2] = 0
    weight, bias = cbnorm.fold_batchnorm(np.ones((2, 5)), None, layer, channel_axis=1)
    x = np.random.default_rng(0).normal(size=(4, 2))
    np.testing.assert_allclose(x @ weight + bias, layer.eval()(x @ np.ones((2, 5))), rtol=1e-12, atol=1e-12)
    assert bias[2] == layer.beta[2]


@pytest.mark.parametrize(
    ("weight", "bias", "channel_axis", "error", "words"),
    [
        (np.ones((6, 5)), None, 0, ValueError, r"weight: expected length 5 on axis 0, got shape \(6, 5\)"),
        (np.ones((6, 5)), np.ones(6), 1, ValueError, r"bias: expected shape \(5,\), got \(6,\)"),
        (np.ones((6, 5)), None, 2, ValueError, "channel_axis: expected -2 to 1 for 2 dimensions, got 2"),
        (np.ones((6, 5)), None, None, TypeError, "channel_axis: expected an integer, got None"),
        (np.ones((6, 5), complex), None, 1, TypeError, "weight: expected real numbers"),
        (np.ones((6, 5)), "bias", 1, TypeError, "bias: expected real numbers"),
    ],
)
def test_errors_name_what_does_not_fit(weight, bias, channel_axis, error, words):
    with pytest.raises(error, match=words):
        cbnorm.fold_batchnorm(weight, bias, trained_layer(), channel_axis=channel_axis)


def test_only_batch_normalization_can_be_folded():
    with pytest.raises(TypeError, match="layer: expected a BatchNorm, got InstanceNorm"):
        cbnorm.fold_batchnorm(np.ones((5, 5)), None, cbnorm.InstanceNorm(5), channel_axis=0)


def test_a_weight_without_axes_is_named():
    with pytest.raises(ValueError, match=r"^weight: expected at least 1 dimension, got shape"):
        cbnorm.fold_batchnorm(1.0, None, cbnorm.BatchNorm(1), channel_axis=0)


def convolved(x, weight, bias, groups, transposed):
    """A convolution of one position, of kernel (1,), group by group: (N, in) to (N, out)."""
    split = np.split(weight[..., 0], groups)  # by output channels; of a transposed one by input channels
    inputs = np.split(x, groups, axis=1)
    parts = [part @ (each if transposed else each.T) for part, each in zip(inputs, split, strict=True)]
    return np.concatenate(parts, axis=1) + bias


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "groups"), [(6, 6, 1), (6, 6, 3), (6, 6, 6), (4, 8, 2), (8, 4, 4)]
)
def test_groups_and_transposed_convolutions(channels_in, channels_out, groups, transposed):
    rng = np.random.default_rng(0)
    layer = cbnorm.BatchNorm(channels_out, dtype=np.float64)
    layer.gamma[:], layer.beta[:], layer.moving_mean = rng.normal(size=(3, channels_out))
    layer.moving_var = rng.uniform(0.5, 2, channels_out)
    shape = (channels_in, channels_out // groups, 1) if transposed else (channels_out, channels_in // groups, 1)
    weight, bias, x = rng.normal(size=shape), rng.normal(size=channels_out), rng.normal(size=(5, channels_in))
    want = layer.eval()(convolved(x, weight, bias, groups, transposed))
    folded = cbnorm.fold_batchnorm(weight, bias, layer, groups=groups, transposed=transposed)
    np.testing.assert_allclose(convolved(x, *folded, groups, transposed), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_convolutions_of_pytorch(groups, transposed):
    torch = pytest.importorskip("torch")
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    convolution, norm = kind(6, 6, 3, groups=groups).double(), torch.nn.BatchNorm2d(6).double()
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        norm(convolution(x))
        want = norm.eval()(convolution(x))
        weight, bias = cbnorm.fold_batchnorm(
            convolution.weight,
            convolution.bias,
            cbnorm.BatchNorm.from_torch(norm),
            groups=groups,
            transposed=transposed,
        )
        convolution.weight[:], convolution.bias[:] = torch.from_numpy(weight), torch.from_numpy(bias)
        assert torch.allclose(convolution(x), want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 4}, "groups: expected a divisor of 6 channels, got 4"),
        ({"groups": 2, "channel_axis": 0}, "channel_axis: expected None beside groups"),
        ({"transposed": True}, r"weight: expected length 6 on axis 1, got shape \(6, 3, 1\)"),
        ({"transposed": True, "groups": 3}, r"weight: expected length 6 / 3 groups on axis 1, got shape \(6, 3, 1\)"),
    ],
)
def test_groups_that_do_not_fit_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        cbnorm.fold_batchnorm(np.ones((6, 3, 1)), None, cbnorm.BatchNorm(6), **options)
