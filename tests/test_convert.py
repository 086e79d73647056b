"""Batch normalization layers from and to PyTorch, Keras and ONNX: the check vector, and round trips to the bit."""

import copy
import inspect
from fractions import Fraction

import numpy as np
import pytest
from cases import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import randomize

import cbnorm
from cbnorm.convert import complement

CHECK = np.array([[1.0, 10.0], [3.0, 14.0]])  # a batch with means 2 and 12, variances 1 and 4 or, unbiased, 2 and 8

TORCH_KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def arrays(dtype=np.float32, seed=0, channels=5):
    """gamma, beta, moving mean and variance."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(1, 0.5, channels).astype(dtype),
        rng.normal(size=channels).astype(dtype),
        rng.normal(0, 3, channels).astype(dtype),
        rng.uniform(0.1, 2, channels).astype(dtype),
    ]


def torch_state(dtype=np.float32):
    return dict(zip(TORCH_KEYS, [*arrays(dtype), np.array(7, np.int64)], strict=True))


def trained_layer(**options):
    """A layer whose moving statistics have more digits than float32."""
    return randomize(cbnorm.BatchNorm(5, **options))


def attributes(layer):
    return layer.eps, layer.momentum, layer.axis, layer.dtype


# --- the check vector


@pytest.mark.parametrize(
    ("layer", "want_var"),
    [
        (cbnorm.BatchNorm(2), [1.0, 1.3]),
        (cbnorm.BatchNorm.from_torch(cbnorm.BatchNorm(2).to_torch()["state_dict"], momentum=0.1, eps=1e-5), [1.1, 1.7]),
        (cbnorm.BatchNorm.from_keras(cbnorm.BatchNorm(2).to_keras()["weights"], momentum=0.9), [1.0, 1.3]),
        (cbnorm.BatchNorm.from_onnx(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2)), [1.0, 1.3]),
    ],
    ids=["cbnorm", "PyTorch", "Keras", "ONNX"],
)
def test_the_check_vector(layer, want_var):
    layer(CHECK)
    np.testing.assert_allclose(layer.moving_mean, [0.2, 1.2], rtol=1e-15)
    np.testing.assert_allclose(layer.moving_var, want_var, rtol=1e-15)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.3, "eps": 1e-2}, {"momentum": None}, {"affine": False}, {"bias": False}]
)
def test_a_module_of_pytorch_and_its_layer_go_the_same_way(options):
    torch = pytest.importorskip("torch")
    if "bias" in options and "bias" not in inspect.signature(torch.nn.BatchNorm1d).parameters:
        pytest.skip("this PyTorch has no batch normalization of a weight alone")
    torch.manual_seed(0)
    module = torch.nn.BatchNorm1d(2, dtype=torch.float64, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    hyper = {name: value for name, value in options.items() if name in ("momentum", "eps")}
    layer = cbnorm.BatchNorm.from_torch(module.state_dict(), **{"eps": 1e-5} | hyper)
    assert repr(layer) == repr(cbnorm.BatchNorm.from_torch(module))
    for x in (CHECK, CHECK[::-1] ** 2, np.vstack([CHECK, -CHECK])):
        tensor = torch.tensor(x.copy(), requires_grad=True)
        dout = np.cos(x)
        y = module(tensor)
        y.backward(torch.from_numpy(dout))
        np.testing.assert_allclose(layer(x), y.detach().numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.backward(dout), tensor.grad.numpy(), rtol=1e-9, atol=1e-12)
        parameters = {"gamma": module.weight, "beta": module.bias}
        assert list(layer.grads) == [name for name, parameter in parameters.items() if parameter is not None]
        for name, gradient in layer.grads.items():
            np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), rtol=1e-12, atol=1e-12)
        module.zero_grad()
    back = layer.to_torch()["state_dict"]
    assert list(back) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(back[name], tensor.numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        layer.eval()(CHECK), module.eval()(torch.from_numpy(CHECK)).detach().numpy(), rtol=1e-12, atol=1e-12
    )
    other = torch.nn.BatchNorm1d(2, **options)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in layer.to_torch()["state_dict"].items()})
    assert other.num_batches_tracked == 3


def test_parameters_of_pytorch_need_not_be_detached():
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3)
    state = {"weight": module.weight, "bias": module.bias} | dict(module.named_buffers())
    layer = cbnorm.BatchNorm.from_torch(state, eps=1e-5)
    layer.gamma[:] = 5
    assert bool((module.weight == 1).all())


# --- round trips


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_state_of_pytorch_comes_back_to_the_bit(dtype):
    state = torch_state(dtype)
    given = {"state_dict": state, "momentum": 0.07, "eps": 1e-3, "axis": -1}
    layer = cbnorm.BatchNorm.from_torch(**given)
    assert layer.ddof == 1
    back = layer.to_torch()
    assert list(back) == list(given)
    assert list(back["state_dict"]) == TORCH_KEYS
    for name, array in state.items():
        assert_same_bits(back["state_dict"][name], array)
        assert not np.shares_memory(back["state_dict"][name], array)
    assert [back[name] for name in ("momentum", "eps", "axis")] == [0.07, 1e-3, -1]


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
def test_weights_of_keras_come_back_to_the_bit(given):
    scale, center = given
    weights = [array for array, present in zip(arrays(), (scale, center, True, True), strict=True) if present]
    layer = cbnorm.BatchNorm.from_keras(weights, momentum=0.95, epsilon=1e-4, axis=2, scale=scale, center=center)
    assert (layer.gamma is not None, layer.beta is not None, layer.ddof) == (scale, center, 0)
    back = layer.to_keras()
    for got, want in zip(back.pop("weights"), weights, strict=True):
        assert_same_bits(got, want)
    assert back == {"momentum": 0.95, "epsilon": 1e-4, "axis": 2, "scale": scale, "center": center}
    x = np.random.default_rng(1).normal(size=(3, 2, 5))
    dx = layer.backward(layer(x))
    assert dx.shape == x.shape
    assert list(layer.grads) == [name for name, present in zip(("gamma", "beta"), given, strict=True) if present]


@pytest.mark.parametrize("lacking", [("bias",), ("weight", "bias")])
def test_state_of_pytorch_without_parameters_comes_back_to_the_bit(lacking):
    state = without(*lacking)
    layer = cbnorm.BatchNorm.from_torch(state, eps=1e-5)
    assert list(layer.parameters()) == ["gamma"][: 2 - len(lacking)]
    back = layer.to_torch()["state_dict"]
    assert list(back) == list(state)
    for name, array in state.items():
        assert_same_bits(back[name], array)


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
@pytest.mark.parametrize("affine", ["gamma", "beta"])
def test_a_layer_with_one_parameter_gives_the_same_results_from_any_library(library, affine):
    layer = trained_layer(affine=affine)
    other = getattr(cbnorm.BatchNorm, f"from_{library}")(**getattr(layer, f"to_{library}")())
    assert_same_bits(other.parameters()[affine], layer.parameters()[affine])
    x = np.random.default_rng(1).normal(size=(7, 5))
    for mode in ("eval", "train"):
        assert_same_bits(getattr(other, mode)()(x), getattr(layer, mode)()(x))
        assert_same_bits(other.backward(x), layer.backward(x))
        assert_same_bits(other.grads[affine], layer.grads[affine])
    held = [name for name in ("gamma", "beta") if name in other.parameters()]
    both = library == "onnx" or (library == "torch" and affine == "beta")  # the others have no way to lack the second
    assert held == (["gamma", "beta"] if both else [affine])


def test_defaults_are_those_of_each_library():
    assert attributes(cbnorm.BatchNorm.from_torch(torch_state(), eps=1e-5)) == (1e-5, 0.9, 1, np.float32)
    assert attributes(cbnorm.BatchNorm.from_keras(arrays())) == (1e-3, 0.99, -1, np.float32)
    assert attributes(cbnorm.BatchNorm.from_onnx(*arrays(np.float64))) == (1e-5, 0.9, 1, np.float64)


def test_inputs_of_onnx_come_back_to_the_bit():
    given = dict(zip(("scale", "B", "input_mean", "input_var"), arrays(), strict=True))
    back = cbnorm.BatchNorm.from_onnx(**given, epsilon=1e-2, momentum=0.8).to_onnx()
    for name, array in given.items():
        assert_same_bits(back.pop(name), array)
    assert back == {"epsilon": 1e-2, "momentum": 0.8, "axis": 1}


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_trained_layer_comes_back_to_the_bit(library, dtype):
    layer = trained_layer(axis=-1, eps=3e-4, momentum=0.85, dtype=dtype)
    given = getattr(layer, f"to_{library}")()
    back = getattr(cbnorm.BatchNorm, f"from_{library}")(**given)
    assert attributes(back) == attributes(layer)
    for name in ("gamma", "beta", "moving_mean", "moving_var"):
        assert_same_bits(getattr(back, name), getattr(layer, name))
        assert not np.shares_memory(getattr(back, name), getattr(layer, name))
    x = CHECK[:, :1] * np.ones(5)
    assert_same_bits(back.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
def test_outputs_at_test_time_do_not_change_from_library_to_library(library):
    layer = cbnorm.BatchNorm.from_torch(torch_state(), eps=1e-4)
    other = getattr(cbnorm.BatchNorm, f"from_{library}")(**getattr(layer, f"to_{library}")())
    x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    assert_same_bits(other.eval()(x), layer.eval()(x))


def test_all_arrays_in_one_dtype_where_that_is_asked_for():
    layer = trained_layer()
    for result in (layer.to_torch(dtype=np.float32)["state_dict"], layer.to_onnx(dtype=np.float32)):
        floats = [value for value in result.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
        assert len(floats) == 4
        assert {array.dtype for array in floats} == {np.dtype(np.float32)}
    *_, mean, var = layer.to_keras(dtype=np.float32)["weights"]
    assert_same_bits(mean, layer.moving_mean.astype(np.float32))
    assert_same_bits(var, layer.moving_var.astype(np.float32))


def test_parameters_that_a_layer_lacks():
    state = {name: array for name, array in torch_state().items() if name not in ("weight", "bias")}
    layer = cbnorm.BatchNorm.from_torch(state, eps=1e-5)
    assert layer.parameters() == {}
    assert list(layer.to_torch()["state_dict"]) == TORCH_KEYS[2:]
    assert_same_bits(layer.to_onnx()["scale"], np.ones(5, np.float32))
    assert_same_bits(layer.to_onnx()["B"], np.zeros(5, np.float32))
    only_beta = cbnorm.BatchNorm.from_keras(arrays()[1:], scale=False)
    assert_same_bits(only_beta.to_torch()["state_dict"]["weight"], np.ones(5, np.float32))


# --- momentum


@given(st.floats(0.0, 1.0))
def test_any_momentum_of_pytorch_comes_back(momentum):
    layer = cbnorm.BatchNorm.from_torch(torch_state(), eps=1e-5, momentum=momentum)
    assert layer.momentum == pytest.approx(1 - momentum, abs=2**-53)
    assert copy.deepcopy(layer).to_torch()["momentum"] == momentum


@given(st.floats(0.5, 1.0))
def test_any_momentum_from_a_half_up_comes_back_from_pytorch(momentum):
    layer = cbnorm.BatchNorm(2, momentum=momentum)
    assert cbnorm.BatchNorm.from_torch(**layer.to_torch()).momentum == momentum


@given(st.integers(0, 10**15))
def test_one_minus_a_decimal_is_the_decimal_that_one_writes(number):
    weight = float(Fraction(number, 10**15))
    assert complement(weight) == float(Fraction(10**15 - number, 10**15))
    assert complement(complement(weight)) == weight


def test_a_momentum_that_was_changed_since_is_the_one_that_goes_out():
    layer = cbnorm.BatchNorm.from_torch(torch_state(), eps=1e-5, momentum=0.1)
    layer.momentum = 0.75
    assert layer.to_torch()["momentum"] == 0.25
    layer.momentum = None
    assert layer.to_torch()["momentum"] is None
    layer.momentum = np.float32(0.5)
    assert layer.to_torch()["momentum"] == 0.5


def test_the_average_of_all_batches_goes_on_where_pytorch_left_it():
    layer = cbnorm.BatchNorm.from_torch(torch_state(np.float64), eps=1e-5, momentum=None)
    assert layer.num_batches == 7
    before = layer.moving_mean
    layer(np.ones((4, 5)))
    np.testing.assert_allclose(layer.moving_mean, (7 * before + 1) / 8, rtol=1e-12)
    assert layer.to_torch()["momentum"] is None
    for export in (layer.to_keras, layer.to_onnx):
        with pytest.raises(ValueError, match="momentum: expected a number, as only PyTorch"):
            export()


# --- what does not fit


def without(*names):
    return {name: array for name, array in torch_state().items() if name not in names}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: cbnorm.BatchNorm.from_torch(without("running_var"), eps=1e-5),
            ValueError,
            "got none for 'running_var'",
        ),
        (lambda: cbnorm.BatchNorm.from_torch(without("weight"), eps=1e-5), ValueError, "got none for 'weight'"),
        (
            lambda: cbnorm.BatchNorm.from_keras(arrays(), scale="no"),
            TypeError,
            "scale: expected True or False, got 'no'",
        ),
        (lambda: cbnorm.BatchNorm.from_keras(arrays(), center=1), TypeError, "center: expected True or False, got 1"),
        (lambda: cbnorm.BatchNorm.from_torch(torch_state() | {"w": 1}, eps=1e-5), ValueError, "got also 'w'"),
        (
            lambda: cbnorm.BatchNorm.from_torch(torch_state() | {"bias": np.ones(4)}, eps=1e-5),
            ValueError,
            r"state_dict\['bias'\]: expected shape \(5,\), got \(4,\)",
        ),
        (
            lambda: cbnorm.BatchNorm.from_torch(torch_state() | {"num_batches_tracked": -1}, eps=1e-5),
            ValueError,
            r"\['num_batches_tracked'\]: expected one integer",
        ),
        (
            lambda: cbnorm.BatchNorm.from_torch(torch_state() | {"num_batches_tracked": True}, eps=1e-5),
            ValueError,
            r"\['num_batches_tracked'\]: expected one integer",
        ),
        (
            lambda: cbnorm.BatchNorm.from_torch(torch_state(), momentum=True),
            TypeError,
            "momentum: expected a number",
        ),
        (
            lambda: cbnorm.BatchNorm.from_torch(arrays()),
            TypeError,
            "state_dict: expected arrays by name, or .*, got list",
        ),
        (lambda: cbnorm.BatchNorm.from_torch(torch_state(), eps=1e-5, momentum=2), ValueError, "momentum: expected"),
        (lambda: cbnorm.BatchNorm.from_keras(arrays()[:3]), ValueError, "weights: expected 4 arrays .*, got 3"),
        (lambda: cbnorm.BatchNorm.from_keras(None), TypeError, "weights: expected a sequence of arrays, got NoneType"),
        (lambda: cbnorm.BatchNorm.from_keras(arrays(), epsilon=-1), ValueError, "epsilon: expected"),
        (lambda: cbnorm.BatchNorm.from_keras(arrays(), momentum=None), ValueError, "momentum: expected a number"),
        (
            lambda: cbnorm.BatchNorm.from_keras([*arrays()[:3], np.ones(4)]),
            ValueError,
            r"weights \(moving_variance\): expected shape",
        ),
        (lambda: cbnorm.BatchNorm.from_onnx(None, *arrays()[1:]), TypeError, "scale: expected real numbers"),
        (
            lambda: cbnorm.BatchNorm.from_onnx(*arrays()[:3], -np.ones(5)),
            ValueError,
            "input_var: expected no negative number, got -1.0",
        ),
        (
            lambda: cbnorm.BatchNorm.from_onnx(*(np.ones((5, 1)) for _ in range(4))),
            ValueError,
            r"input_mean: expected one axis, got shape \(5, 1\)",
        ),
        (lambda: cbnorm.BatchNorm.from_keras([None, *arrays()[1:]]), TypeError, r"weights \(gamma\): expected real"),
        (lambda: cbnorm.BatchNorm(2).to_keras(dtype=int), TypeError, "dtype: expected float16, float32 or float64"),
        (lambda: cbnorm.BatchNorm.from_onnx("a", *arrays()[1:]), TypeError, "scale: expected real numbers"),
    ],
)
def test_errors_name_what_does_not_fit(make, error, words):
    with pytest.raises(error, match=words):
        make()


def network_state(prefix, state):
    """A state_dict of a network that holds a layer."""
    return {f"{prefix}.{name}": value for name, value in state.items()} | {"head.weight": np.ones((2, 2))}


class Module:
    """What is read of a module of PyTorch's, which is not imported: attributes."""

    def __init__(self, **attributes):
        self.__dict__ |= {"training": True, "eps": 1e-3} | attributes

    def state_dict(self):
        raise NotImplementedError


def test_a_module_tells_all_by_its_attributes():
    state = torch_state()
    layer = cbnorm.BatchNorm.from_torch(Module(**state, momentum=0.25, training=False))
    assert (layer.momentum, layer.eps, layer.training, layer.ddof) == (0.75, 1e-3, False, 1)
    np.testing.assert_array_equal(layer.moving_mean, state["running_mean"])
    assert cbnorm.BatchNorm.from_torch(Module(**state, momentum=None)).momentum is None
    alone = cbnorm.BatchNorm.from_torch(Module(**state | {"bias": None}, momentum=0.1))
    assert alone.beta is None
    plain = cbnorm.BatchNorm.from_torch(Module(**state | {"weight": None, "bias": None}, momentum=0.1))
    assert plain.gamma is plain.beta is None


@pytest.mark.parametrize("prefix", ["encoder.norm", "encoder.norm."])
def test_a_prefix_finds_the_layer_in_the_state_of_a_network(prefix):
    state = network_state("encoder.norm", torch_state())
    layer = cbnorm.BatchNorm.from_torch(state, prefix=prefix, eps=1e-5)
    np.testing.assert_array_equal(layer.gamma, torch_state()["weight"])
    with pytest.raises(ValueError, match="prefix: expected that of names in state_dict, got 'decoder'"):
        cbnorm.BatchNorm.from_torch(state, prefix="decoder", eps=1e-5)


def test_a_state_must_be_given_eps():
    for layer, state in ((cbnorm.BatchNorm, torch_state()), (cbnorm.LayerNorm, {"weight": np.ones(3)})):
        with pytest.raises(ValueError, match="eps: expected that of the module"):
            layer.from_torch(state)


WEIGHT, BIAS = np.arange(1.0, 5), np.arange(4.0)
OTHERS = {
    "LayerNorm": (lambda: cbnorm.LayerNorm((2, 3), eps=1e-3), {"normalized_shape": (2, 3)}),
    "RMSNorm": (lambda: cbnorm.RMSNorm(4, dtype=np.float64), {"normalized_shape": (4,)}),
    "GroupNorm": (lambda: cbnorm.GroupNorm(2, 6), {"num_groups": 2, "num_channels": 6}),
    "InstanceNorm": (lambda: cbnorm.InstanceNorm(5, affine=False), {"num_features": 5}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_layers_come_and_go_too(name):
    make, attributes = OTHERS[name]
    layer = make()
    for array in layer.parameters().values():
        array[...] = np.arange(array.size).reshape(array.shape)
    given = layer.to_torch()
    module = Module(
        **{"weight": None, "bias": None} | given["state_dict"] | attributes | {"eps": given["eps"]}, training=False
    )
    for again in (type(layer).from_torch(**given), type(layer).from_torch(module)):
        assert again.eps == layer.eps
        assert again.dtype == (layer.dtype if given["state_dict"] else np.float32)
        assert repr(again.train()) == repr(layer)
        for own, array in layer.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[own], array)
    assert not type(layer).from_torch(module).training


def test_the_other_layers_name_what_does_not_fit():
    with pytest.raises(ValueError, match="num_groups"):
        cbnorm.GroupNorm.from_torch({"weight": np.ones(4), "bias": np.zeros(4)}, eps=1e-5, num_groups=3)
    with pytest.raises(ValueError, match="no running statistics"):
        cbnorm.InstanceNorm.from_torch(torch_state(), eps=1e-5)
    with pytest.raises(ValueError, match="shape: expected it where a state_dict has no parameters"):
        cbnorm.LayerNorm.from_torch({}, eps=1e-5)
    with pytest.raises(ValueError, match=r"state_dict\['bias'\]: expected shape \(3,\), got \(4,\)"):
        cbnorm.LayerNorm.from_torch({"weight": np.ones(3), "bias": np.ones(4)}, eps=1e-5)


def test_modules_of_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    pairs = [
        (torch.nn.BatchNorm1d(6, eps=1e-2, momentum=0.3), cbnorm.BatchNorm),
        (torch.nn.LayerNorm(5, eps=1e-2), cbnorm.LayerNorm),
        (torch.nn.RMSNorm(5), cbnorm.RMSNorm),
        (torch.nn.GroupNorm(3, 6), cbnorm.GroupNorm),
        (torch.nn.InstanceNorm1d(6, affine=True), cbnorm.InstanceNorm),
    ]
    for module, kind in pairs:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += torch.rand_like(parameter)
        network = torch.nn.ModuleDict({"norm": module})
        layers = [kind.from_torch(module), kind.from_torch(module.eval()).train()]
        module.train()
        if kind is not cbnorm.RMSNorm:
            sizes = {"num_groups": 3} if kind is cbnorm.GroupNorm else {}
            layers.append(kind.from_torch(network.state_dict(), prefix="norm", eps=module.eps, **sizes))
        want = module(torch.from_numpy(x)).detach().numpy()
        for layer in layers:
            np.testing.assert_allclose(layer(x), want, atol=2e-6)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (lambda: cbnorm.LayerNorm.from_keras([WEIGHT, BIAS]), "LayerNorm(4, eps=0.001, dtype=float64)"),
        (
            lambda: cbnorm.LayerNorm.from_keras([BIAS], scale=False),
            "LayerNorm(4, eps=0.001, affine='beta', dtype=float64)",
        ),
        (lambda: cbnorm.RMSNorm.from_keras([np.float32(WEIGHT)]), "RMSNorm(4, eps=1e-06)"),
        (
            lambda: cbnorm.GroupNorm.from_keras([WEIGHT, BIAS], groups=2, axis=1, epsilon=1e-5),
            "GroupNorm(2, 4, eps=1e-05, dtype=float64)",
        ),
        (lambda: cbnorm.LayerNorm.from_onnx(WEIGHT), "LayerNorm(4, eps=1e-05, affine='gamma', dtype=float64)"),
        (lambda: cbnorm.LayerNorm.from_onnx(WEIGHT.reshape(2, 2)).shape, "(2, 2)"),
        (lambda: cbnorm.RMSNorm.from_onnx(WEIGHT, epsilon=0.1), "RMSNorm(4, eps=0.1, dtype=float64)"),
        (lambda: cbnorm.InstanceNorm.from_onnx(WEIGHT, BIAS), "InstanceNorm(4, eps=1e-05, dtype=float64)"),
        (lambda: cbnorm.GroupNorm.from_onnx(WEIGHT, BIAS, num_groups=4), "GroupNorm(4, 4, eps=1e-05, dtype=float64)"),
    ],
)
def test_the_other_layers_of_keras_and_onnx(layer, want):
    layer = layer()
    assert repr(layer) == want
    for name, array in getattr(layer, "state_dict", dict)().items():
        np.testing.assert_array_equal(array, {"gamma": WEIGHT, "beta": BIAS}[name])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cbnorm.LayerNorm.from_keras([WEIGHT]), "weights: expected 2 arrays"),
        (lambda: cbnorm.LayerNorm.from_keras([WEIGHT, BIAS], axis=1), "axis: expected -1 of LayerNorm, got 1"),
        (lambda: cbnorm.GroupNorm.from_keras([WEIGHT, BIAS], groups=2, axis=2), "axis: expected 1 or -1 of GroupNorm"),
        (lambda: cbnorm.LayerNorm.from_keras([WEIGHT, BIAS[:3]]), r"weights \(beta\): expected shape \(4,\)"),
        (lambda: cbnorm.RMSNorm.from_onnx(WEIGHT, BIAS), "B: expected None, as RMSNorm has no beta"),
        (lambda: cbnorm.GroupNorm.from_onnx(WEIGHT, BIAS, num_groups=3), "num_groups: expected a divisor of 4"),
    ],
)
def test_what_the_other_layers_cannot_be_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
