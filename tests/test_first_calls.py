"""What a newcomer from NumPy, PyTorch, Keras or scikit-learn calls first: it is right, or it says what to do."""

import io
import pickle

import numpy as np
import pytest

import cbnorm

RNG = np.random.default_rng(0)
X = RNG.normal(5, 3, (8, 4))
NHWC = RNG.normal(5, 3, (2, 6, 5, 3)).astype(np.float32)
NCHW = np.ascontiguousarray(np.moveaxis(NHWC, -1, 1))
FOUR, THREE = np.linspace(1, 2, 4), np.linspace(1, 2, 3)


def standard(x, axes=0, eps=1e-5):
    """The formula, in float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + eps)


def trained():
    layer = cbnorm.BatchNorm(4)
    layer(X)
    return layer


def saved_and_loaded(layer, file):
    layer.save(file)
    file.seek(0)
    other = cbnorm.BatchNorm(4)
    other.load(file)
    return other.moving_mean


def stepped(layer):
    """A step of gradient descent, as a loop has it."""
    layer(X)
    layer.backward(np.ones_like(X))
    for name, array in layer.parameters().items():
        array -= 0.1 * layer.grads[name]
    return layer.beta


def gathered():
    population = cbnorm.PopulationStats()
    for batch in np.array_split(X, 3):
        population.update(batch)
    return np.stack([population.mean, population.std()])


RIGHT = {
    "lists": (lambda: cbnorm.batchnorm_forward(X.tolist())[0], standard(X)),
    "integers": (lambda: cbnorm.batchnorm_forward([[1, 2], [3, 6]])[0], standard([[1, 2], [3, 6]])),
    "half precision": (lambda: cbnorm.layernorm_forward(np.float16([[1, 2, 3]]))[0], standard([[1, 2, 3]], 1)),
    "images, channels first": (lambda: cbnorm.batchnorm_forward(NCHW)[0], standard(NCHW, (0, 2, 3))),
    "images, channels last": (lambda: cbnorm.batchnorm_forward(NHWC, axis=-1)[0], standard(NHWC, (0, 1, 2))),
    "gamma as it broadcasts": (
        lambda: cbnorm.batchnorm_forward(NCHW, THREE.reshape(1, 3, 1, 1))[0],
        standard(NCHW, (0, 2, 3)) * THREE.reshape(1, 3, 1, 1),
    ),
    "by keyword": (lambda: cbnorm.batchnorm_forward(x=X, beta=FOUR)[0], standard(X) + FOUR),
    "one row": (lambda: cbnorm.batchnorm_forward(X[:1], FOUR, FOUR)[0], FOUR[np.newaxis]),
    "no row": (lambda: cbnorm.batchnorm_forward(X[:0])[0], X[:0]),
    "only dx": (lambda: cbnorm.batchnorm_backward(X, trained().cache, need=(True, False, False))[1], None),
    "groups by keyword": (
        lambda: cbnorm.groupnorm_forward(X, num_groups=2)[0],
        standard(X.reshape(8, 2, 2), 2).reshape(8, 4),
    ),
    "a layer": (lambda: cbnorm.BatchNorm(4)(X), standard(X)),
    "train(False) and eval()": (lambda: trained().train(False)(X) - trained().eval()(X), 0 * X),
    "a step": (lambda: stepped(cbnorm.BatchNorm(4)), np.full(4, -0.8)),
    "a file in memory": (lambda: saved_and_loaded(trained(), io.BytesIO()), 0.1 * X.mean(axis=0)),
    "a pickle": (lambda: pickle.loads(pickle.dumps(trained())).moving_mean, 0.1 * X.mean(axis=0)),
    "a table standardized": (lambda: cbnorm.standardize(X)[0], standard(X, eps=0)),
    "images standardized by colour": (lambda: cbnorm.standardize(NHWC, (0, 1, 2))[0], standard(NHWC, (0, 1, 2), 0)),
    "new data": (lambda: cbnorm.standardize(X)[1].standardize(X[:3]), standard(X, eps=0)[:3]),
    "and back": (lambda: (lambda y, m: m.unstandardize(y))(*cbnorm.standardize(X)), X),
    "mean and variance": (lambda: cbnorm.moments(X, axis=1, keepdims=True).mean, X.mean(axis=1, keepdims=True)),
    "a data set": (gathered, np.stack([X.mean(axis=0), X.std(axis=0)])),
    "parts": (lambda: sum(cbnorm.moments(part) for part in np.array_split(X, 3)).var(), X.var(axis=0)),
}

WRONG = {
    "a vector": (lambda: cbnorm.batchnorm_forward(X[0]), ValueError, "x: expected at least 2 dimensions"),
    "text": (lambda: cbnorm.batchnorm_forward("x"), TypeError, "x: expected real numbers"),
    "complex numbers": (lambda: cbnorm.moments(X * 1j), TypeError, "x: expected real numbers"),
    "eval for test": (
        lambda: cbnorm.batchnorm_forward(X, mode="eval"),
        ValueError,
        "mode: .*'train' or 'test'",
    ),
    "channels last unsaid": (
        lambda: cbnorm.batchnorm_forward(NHWC, THREE),
        ValueError,
        r"gamma: expected shape \(6,\), got \(3,\); x has that length on axis 3",
    ),
    "no statistics": (
        lambda: cbnorm.batchnorm_forward(X, mode="test"),
        ValueError,
        "moving_mean: .*test",
    ),
    "y for a cache": (lambda: cbnorm.batchnorm_backward(X, X), TypeError, "cache: expected that of batchnorm_forward"),
    "another's cache": (
        lambda: cbnorm.batchnorm_backward(X, cbnorm.layernorm_forward(X)[1]),
        TypeError,
        "cache: expected that of batchnorm_forward, got layernorm",
    ),
    "PyTorch's order": (lambda: cbnorm.groupnorm_forward(X, 2), TypeError, "num_groups: expected an integer, got None"),
    "groups that do not divide": (
        lambda: cbnorm.groupnorm_forward(X, num_groups=3),
        ValueError,
        "num_groups: expected a divisor of 4 channels, got 3",
    ),
    "backward first": (lambda: cbnorm.LayerNorm(4).backward(X), ValueError, "backward: expected a forward call"),
    "other channels": (lambda: cbnorm.BatchNorm(5)(X), ValueError, "x: expected length 5 on axis 1, got shape"),
    "momentum beyond 1": (
        lambda: cbnorm.BatchNorm(4, momentum=99),
        ValueError,
        "momentum: expected a number from 0 to 1",
    ),
    "out of another dtype": (
        lambda: cbnorm.batchnorm_forward(X, out=np.empty((8, 4), np.float32)),
        TypeError,
        "out: expected dtype float64, got float32",
    ),
    "masked arrays": (lambda: cbnorm.moments(np.ma.masked_array(X, X > 5)), TypeError, "x: expected .*mask"),
    "no threads": (lambda: cbnorm.set_num_threads(0), ValueError, "num_threads: expected 1 to 1024, got 0"),
    "a state without eps": (
        lambda: cbnorm.BatchNorm.from_torch(dict.fromkeys(("running_mean", "running_var"), FOUR)),
        ValueError,
        "eps: expected that of the module",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_is_right(name):
    call, want = RIGHT[name]
    got = call()
    if want is None:
        assert got is None
    else:
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-3 if got.dtype == np.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WRONG)
def test_says_what_to_do(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_there_are_thirty():
    assert len(RIGHT) + len(WRONG) >= 30


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    np.testing.assert_allclose(cbnorm.standardize(frame)[0], standard(X, eps=0), atol=1e-12)


def test_tensors():
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(cbnorm.batchnorm_forward(torch.from_numpy(X))[0], standard(X), atol=1e-12)
    with pytest.raises(TypeError, match=r"x: .*detach"):
        cbnorm.batchnorm_forward(torch.from_numpy(X).requires_grad_())


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (cbnorm.BatchNorm(4, axis=-1), "BatchNorm(4, axis=-1, momentum=0.9, eps=1e-05)"),
        (cbnorm.LayerNorm((2, 3), affine="gamma").eval(), "LayerNorm((2, 3), eps=1e-05, affine='gamma', in test mode)"),
        (cbnorm.GroupNorm(2, 4, dtype=np.float64), "GroupNorm(2, 4, eps=1e-05, dtype=float64)"),
        (cbnorm.moments(np.eye(2)), "Moments(count=2, mean=[0.5, 0.5], m2=[0.5, 0.5], mean_lo=[0., 0.])"),
        (cbnorm.PopulationStats(), "PopulationStats(axis=1, batches=0, count=0)"),
        (
            cbnorm.layernorm_forward(NCHW)[1],
            "<cbnorm.Cache of layernorm_forward: float32 x of shape (2, 3, 6, 5), mode 'train'>",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_printed(thing, text):
    assert repr(thing) == text


def test_help_begins_short():
    assert len(cbnorm.__doc__.splitlines()) < 16
    assert "Union[" not in str(__import__("inspect").signature(cbnorm.batchnorm_forward))
