"""Data-parallel training on scikit-learn's digits: any number of ranks takes the same steps as one process.

    mpiexec -n 4 python -m mpi4py examples/mpi_digits.py [EPOCHS]

The network of `cbnorm demo`: four hidden layers of tanh(batch normalization(x W)), a linear layer, plain SGD. Each rank
has a share of every batch, as even as it comes. What ranks tell each other: `cbnorm.mpi.BatchNorm` its statistics and
sums, this script the gradients of the weights and the loss. Prints the loss after each epoch, and of the last step.
"""

import sys
from itertools import pairwise

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import cbnorm.mpi

Array = NDArray[np.float64]
SIZES = (64, 100, 100, 100, 100, 10)
BATCH_SIZE, LEARNING_RATE, SEED = 60, 0.3, 0
comm = MPI.COMM_WORLD


class Network:
    """Every rank has all of it: the same first weights, and the same steps after them."""

    def __init__(self, rng: np.random.Generator) -> None:
        # float64: in float32 the last digit of a sum, which its order decides, shows in the loss after some steps.
        self.weights = [rng.normal(0, 0.05, shape) for shape in pairwise(SIZES)]
        self.norms = [cbnorm.mpi.BatchNorm(width, dtype=np.float64) for width in SIZES[1:-1]]

    def forward(self, x: Array) -> Array:
        """Scores of the classes for this rank's rows; the inputs of all products stay in `inputs`."""
        self.inputs = [x]
        for weight, norm in zip(self.weights, self.norms, strict=False):
            self.inputs.append(np.tanh(norm.forward(self.inputs[-1] @ weight)))
        scores: Array = self.inputs[-1] @ self.weights[-1]
        return scores

    def backward(self, dout: Array) -> list[Array]:
        """Gradients of the weights, from this rank's rows; the norms keep theirs, which are of all rows."""
        gradients = [self.inputs[-1].T @ dout]
        dout = dout @ self.weights[-1].T
        for number in range(len(self.norms) - 1, -1, -1):
            y = self.inputs[number + 1]
            dout = self.norms[number].backward(dout * (1 - y * y))
            gradients.insert(0, self.inputs[number].T @ dout)
            dout = dout @ self.weights[number].T
        return gradients

    def step(self, x: Array, labels: NDArray[np.int64], rows_of_all: int) -> float:
        """One step of gradient descent on a batch of which this rank has some rows, or none; the loss before it."""
        scores = self.forward(x)
        scores -= scores.max(axis=1, keepdims=True)
        logarithms = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        rows = np.arange(len(x))
        loss = np.array(-logarithms[rows, labels].sum() / rows_of_all)
        dscores = np.exp(logarithms)
        dscores[rows, labels] -= 1
        gradients = self.backward(dscores / rows_of_all)

        flat = np.concatenate([loss.ravel(), *(each.ravel() for each in gradients)])
        comm.Allreduce(MPI.IN_PLACE, flat)
        ends = np.cumsum([1, *(each.size for each in gradients)])[:-1]
        total, *summed = np.split(flat, ends)
        for weight, gradient in zip(self.weights, summed, strict=True):
            weight -= LEARNING_RATE * gradient.reshape(weight.shape)
        for norm in self.norms:
            for name, parameter in norm.parameters().items():
                parameter -= LEARNING_RATE * norm.grads[name]  # summed over the ranks already
        return float(total[0])


def main(epochs: int) -> None:
    """Train; rank 0 prints."""
    images, labels = (np.asarray(each) for each in load_digits(return_X_y=True))
    images = images / 16
    rng = np.random.default_rng(SEED)
    network = Network(rng)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in np.array_split(rng.permutation(len(images)), len(images) // BATCH_SIZE):
            mine = np.array_split(batch, comm.size)[comm.rank]
            losses.append(network.step(images[mine], labels[mine], len(batch)))
        if comm.rank == 0:
            print(f"epoch {epoch}: loss {np.mean(losses):.12f}, of the last step {losses[-1]:.12f}", flush=True)
    for norm in network.norms:
        norm.eval()
    if comm.rank == 0:
        right = network.forward(images).argmax(axis=1) == labels
        print(f"of the training images {100 * right.mean():.2f}% right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10)
