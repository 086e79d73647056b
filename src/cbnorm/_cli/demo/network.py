"""A multilayer perceptron in NumPy, float32: hidden layers of tanh(norm(x W + b)), softmax, plain SGD.

Its normalizations are cbnorm's layers, or others that are called like them; `NORMS` names them.
"""

from itertools import pairwise
from time import perf_counter

import numpy as np

import cbnorm


class NoNorm:
    """Passes everything through: the network without normalization."""

    def parameters(self):
        """None."""
        return {}

    def train(self):
        """Nothing changes."""

    eval = train

    def forward(self, x):
        """Return x itself."""
        return x

    def backward(self, dout):
        """Return dout itself."""
        return dout


# Each makes a layer of so many channels; `layers` is where the classes come from.
NORMS = {
    "none": lambda layers, width: NoNorm(),
    "batch": lambda layers, width: layers.BatchNorm(width),
    "layer": lambda layers, width: layers.LayerNorm(width),
    "group": lambda layers, width: layers.GroupNorm(10, width),
    "rms": lambda layers, width: layers.RMSNorm(width),
}


class Dense:
    """x W + b, with weights from a Gaussian of standard deviation `init_std` and b = 0."""

    def __init__(self, num_inputs, num_outputs, init_std, rng):
        weight = rng.normal(0, init_std, (num_inputs, num_outputs)).astype(np.float32)
        self.weight, self.bias = weight, np.zeros(num_outputs, np.float32)

    def parameters(self):
        """W and b by name, as cbnorm's layers give theirs."""
        return {"weight": self.weight, "bias": self.bias}

    def forward(self, x):
        """(N, inputs) -> (N, outputs)."""
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, dout):
        """Gradient with respect to x; those of W and b go to `grads`."""
        self.grads = {"weight": self.x.T @ dout, "bias": dout.sum(axis=0)}
        return dout @ self.weight.T


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
    layers : module
        Where the classes of the normalizations come from.

    Attributes
    ----------
    norm_seconds : float
        Time spent in normalization so far, forward and backward.
    """

    def __init__(self, sizes, norm, init_std, rng, layers=cbnorm):
        self.denses = [Dense(*shape, init_std, rng) for shape in pairwise(sizes)]
        self.norms = [NORMS[norm](layers, width) for width in sizes[1:-1]]
        self.norm_seconds = 0.0

    def train(self):
        """Normalize by the batch from now on."""
        for norm in self.norms:
            norm.train()

    def eval(self):
        """Normalize by the statistics for test time from now on."""
        for norm in self.norms:
            norm.eval()

    def forward(self, x):
        """Scores of the classes, (N, classes); the activations of the hidden layers stay in `hidden`."""
        self.hidden = []
        for dense, norm in zip(self.denses[:-1], self.norms, strict=True):
            x = dense.forward(x)
            start = perf_counter()
            x = norm.forward(x)
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
        self.train()
        scores = self.forward(x)
        rows = np.arange(len(x))
        scores = scores - scores.max(axis=1, keepdims=True)
        log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        loss = -log_probabilities[rows, labels].mean()

        dscores = np.exp(log_probabilities)
        dscores[rows, labels] -= 1
        self.backward(dscores / np.float32(len(x)))
        for layer in (*self.denses, *self.norms):
            for name, parameter in layer.parameters().items():
                parameter -= np.float32(learning_rate) * layer.grads[name]
        return float(loss)

    def accuracy(self, x, labels):
        """Share of rows classified right, in test mode."""
        self.eval()
        return float((self.forward(x).argmax(axis=1) == labels).mean())

    def spread(self, x):
        """Standard deviation of the activations over the rows of x, averaged over each hidden layer."""
        self.eval()
        self.forward(x)
        return [float(y.std(axis=0).mean()) for y in self.hidden]

    @property
    def has_statistics(self):
        """Whether there are statistics for test time."""
        return any(isinstance(norm, cbnorm.BatchNorm) for norm in self.norms)

    def use_population(self, batches):
        """Give the normalizations the statistics of the whole training set for test time.

        Layer after layer, so that each one measures what it will be given at test time.
        """
        self.eval()
        for dense, norm in zip(self.denses[:-1], self.norms, strict=True):
            batches = [dense.forward(x) for x in batches]
            if isinstance(norm, cbnorm.BatchNorm):
                cbnorm.recompute_stats(norm, batches)
            batches = [np.tanh(norm.forward(x)) for x in batches]
