"""A multilayer perceptron in NumPy, float32: hidden layers of tanh(norm(x W + b)), softmax, plain SGD.

A normalization is any object with `params` and `grads` (lists of arrays), `forward(x, training)` and
`backward(dout)`; `NORMS` names them. One whose test-time statistics can be set has `use_population` too.
"""

from functools import partial
from itertools import pairwise
from time import perf_counter
from types import MappingProxyType

import numpy as np

import cbnorm


class NoNorm:
    """Passes everything through: the network without normalization."""

    params = grads = ()

    def __init__(self, num_features, library):
        pass

    def forward(self, x, training):
        """Return x itself."""
        return x

    def backward(self, dout):
        """Return dout itself."""
        return dout


class BatchNorm:
    """Batch normalization by the two functions of `library`: cbnorm, or the formulas in its place."""

    def __init__(self, num_features, library):
        self.library = library
        self.params = [np.ones(num_features, np.float32), np.zeros(num_features, np.float32)]
        self.grads = []
        self.test_mean, self.test_var = np.zeros(num_features), np.ones(num_features)

    def forward(self, x, training):
        """Normalize x, (N, C): by the batch in training, else by the moving averages."""
        gamma, beta = self.params
        y, self.cache, self.test_mean, self.test_var = self.library.batchnorm_forward(
            x,
            gamma,
            beta,
            moving_mean=self.test_mean,
            moving_var=self.test_var,
            mode="train" if training else "test",
        )
        return y

    def backward(self, dout):
        """Gradient with respect to x; those of gamma and beta go to `grads`."""
        dx, dgamma, dbeta = self.library.batchnorm_backward(dout, self.cache)
        self.grads = [dgamma, dbeta]
        return dx

    def use_population(self, batches):
        """Replace the moving averages by the statistics of all `batches` together."""
        population = cbnorm.PopulationStats()
        for x in batches:
            population.update(x)
        self.test_mean, self.test_var = population.mean, population.var()


class RowNorm:
    """A normalization of each row by itself, which knows no moving averages and no test mode."""

    kind = None  # the functions' name in the library
    num_params = 2  # gamma and beta
    options = MappingProxyType({})

    def __init__(self, num_features, library):
        self.call = partial(getattr(library, f"{self.kind}_forward"), **self.options)
        self.differentiate = getattr(library, f"{self.kind}_backward")
        starts = (np.ones, np.zeros)[: self.num_params]
        self.params = [start(num_features, np.float32) for start in starts]
        self.grads = []

    def forward(self, x, training):
        """Normalize each row of x, (N, C)."""
        y, self.cache = self.call(x, *self.params)
        return y

    def backward(self, dout):
        """Gradient with respect to x; those of the parameters go to `grads`."""
        dx, *self.grads = self.differentiate(dout, self.cache)
        return dx


class LayerNorm(RowNorm):
    """Layer normalization."""

    kind = "layernorm"


class GroupNorm(RowNorm):
    """Group normalization in ten groups."""

    kind = "groupnorm"
    options = MappingProxyType({"num_groups": 10})


class RMSNorm(RowNorm):
    """RMS normalization, which has no beta."""

    kind = "rmsnorm"
    num_params = 1


NORMS = {"none": NoNorm, "batch": BatchNorm, "layer": LayerNorm, "group": GroupNorm, "rms": RMSNorm}


class Dense:
    """x W + b, with weights from a Gaussian of standard deviation `init_std` and b = 0."""

    def __init__(self, num_inputs, num_outputs, init_std, rng):
        weight = rng.normal(0, init_std, (num_inputs, num_outputs)).astype(np.float32)
        self.params = [weight, np.zeros(num_outputs, np.float32)]

    def forward(self, x):
        """(N, inputs) -> (N, outputs)."""
        self.x = x
        weight, bias = self.params
        return x @ weight + bias

    def backward(self, dout):
        """Gradient with respect to x; those of W and b go to `grads`."""
        self.grads = [self.x.T @ dout, dout.sum(axis=0)]
        return dout @ self.params[0].T


class Network:
    """Hidden layers of one width, each normalized before its tanh, and a linear layer for the classes.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden layers, classes.
    norm : str
        A name of `NORMS`.
    init_std : float
        Standard deviation of the initial weights, the same for all layers.
    rng : numpy.random.Generator
        Draws the weights.
    library : module
        Where the normalization functions come from.

    Attributes
    ----------
    norm_seconds : float
        Time spent in normalization so far, forward and backward.
    """

    def __init__(self, sizes, norm, init_std, rng, library=cbnorm):
        self.denses = [Dense(*shape, init_std, rng) for shape in pairwise(sizes)]
        self.norms = [NORMS[norm](width, library) for width in sizes[1:-1]]
        self.norm_seconds = 0.0

    def forward(self, x, training):
        """Scores of the classes, (N, classes); the activations of the hidden layers stay in `hidden`."""
        self.hidden = []
        for dense, norm in zip(self.denses[:-1], self.norms, strict=True):
            x = dense.forward(x)
            start = perf_counter()
            x = norm.forward(x, training)
            self.norm_seconds += perf_counter() - start
            x = np.tanh(x)
            self.hidden.append(x)
        return self.denses[-1].forward(x)

    def backward(self, dout):
        """Fill `grads` of every layer from the gradient of the loss with respect to the scores."""
        dout = self.denses[-1].backward(dout)
        for dense, norm, y in zip(self.denses[-2::-1], self.norms[::-1], self.hidden[::-1], strict=True):
            dout = dout * (1 - y * y)
            start = perf_counter()
            dout = norm.backward(dout)
            self.norm_seconds += perf_counter() - start
            dout = dense.backward(dout)

    def train_step(self, x, labels, learning_rate):
        """One step of gradient descent on a batch; returns its loss (mean cross-entropy) before the step."""
        scores = self.forward(x, training=True)
        rows = np.arange(len(x))
        scores = scores - scores.max(axis=1, keepdims=True)
        log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        loss = -log_probabilities[rows, labels].mean()

        dscores = np.exp(log_probabilities)
        dscores[rows, labels] -= 1
        self.backward(dscores / np.float32(len(x)))
        for layer in (*self.denses, *self.norms):
            for param, grad in zip(layer.params, layer.grads, strict=True):
                param -= np.float32(learning_rate) * grad
        return float(loss)

    def accuracy(self, x, labels):
        """Share of rows classified right, in test mode."""
        return float((self.forward(x, training=False).argmax(axis=1) == labels).mean())

    def spread(self, x):
        """Standard deviation of the activations over the rows of x, averaged over each hidden layer."""
        self.forward(x, training=False)
        return [float(y.std(axis=0).mean()) for y in self.hidden]

    def use_population(self, batches):
        """Give the normalizations the statistics of the whole training set for test time.

        Layer after layer, so that each one measures what it will be given at test time.
        """
        for dense, norm in zip(self.denses[:-1], self.norms, strict=True):
            batches = [dense.forward(x) for x in batches]
            if hasattr(norm, "use_population"):
                norm.use_population(batches)
            batches = [np.tanh(norm.forward(x, training=False)) for x in batches]
