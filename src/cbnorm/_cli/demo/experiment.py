"""The experiment of `cbnorm demo`: one network, one start, the same shuffles, several normalizations."""

import math
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import cbnorm
from cbnorm._cli.demo import numpy_layers
from cbnorm._cli.demo.network import Network
from cbnorm._cli.demo.results import Results, Run, Timing

# Four hidden layers, and first weights small enough that depth hurts: weights scaled with care would leave
# normalization less to gain.
SIZES = (64, 100, 100, 100, 100, 10)
INIT_STD = 0.05
BATCH_SIZE = 60
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass
class Digits:
    """scikit-learn's digits, scaled to 0..1, a random third kept for testing."""

    x: np.ndarray
    labels: np.ndarray
    test_x: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def load(cls, seed):
        """The images in the order, and with the third for testing, that `seed` decides."""
        digits = load_digits()
        x = (digits.data / 16).astype(np.float32)
        order = np.random.default_rng(seed).permutation(len(x))
        test, train = np.split(order, [len(x) // 3])
        return cls(x[train], digits.target[train], x[test], digits.target[test])

    def batches(self, order):
        """The training rows in the given order, in batches of nearly equal size."""
        return np.array_split(order, math.ceil(len(order) / BATCH_SIZE))

    def train_batches(self):
        """The training images in batches, in their own order."""
        return [self.x[rows] for rows in self.batches(np.arange(len(self.x)))]


class Trainer:
    """A network at a learning rate; the seed alone decides its first weights and its shuffles."""

    def __init__(self, digits, norm, learning_rate, seed, layers=cbnorm):
        weights_rng, self.shuffle_rng = np.random.default_rng(seed).spawn(2)
        self.digits = digits
        self.learning_rate = learning_rate
        self.network = Network(SIZES, norm, INIT_STD, weights_rng, layers)
        self.losses = []
        self.step_seconds, self.norm_seconds = [], []  # of each step, and in it those of normalization

    def epoch(self):
        """Train on every image once; returns whether the loss is still finite."""
        for rows in self.digits.batches(self.shuffle_rng.permutation(len(self.digits.x))):
            x, labels = self.digits.x[rows], self.digits.labels[rows]
            start, before = perf_counter(), self.network.norm_seconds
            self.losses.append(self.network.train_step(x, labels, self.learning_rate))
            self.step_seconds.append(perf_counter() - start)
            self.norm_seconds.append(self.network.norm_seconds - before)
        return math.isfinite(self.losses[-1])


def run(epochs, seed, norms=("none", "batch"), learning_rates=LEARNING_RATES, progress=None):
    """Train with every normalization at every learning rate, then measure the time normalization takes.

    Parameters
    ----------
    epochs : int
        Passes over the training images.
    seed : int
        Decides the held-out third, the weights and the shuffles.
    norms : sequence of str
        Names of `network.NORMS`.
    learning_rates : sequence of float
        In rising order.
    progress : callable, optional
        Called with the share done, 0 to 1, what is trained, and a few words on it.

    Returns
    -------
    Results
    """
    progress = progress or (lambda share, group, words: None)
    digits = Digits.load(seed)
    timed = [norm for norm in norms if norm != "none"]
    results = Results(
        norms=tuple(norms),
        learning_rates=tuple(learning_rates),
        epochs=epochs,
        seed=seed,
        num_train=len(digits.x),
        num_test=len(digits.test_x),
        runs=[],
        initial_spread={},
        timings=[],
    )
    plans = [(norm, rate) for norm in norms for rate in learning_rates]
    num_trainings = len(plans) + 2 * len(timed)

    def report(index, weight, group, words, share):
        progress((index + weight * share) / num_trainings, group, words)

    # A learning rate that is too high overflows: the demo counts that and has no use for the warnings.
    # Matrices this small gain nothing from BLAS threads, whose number could change the last bits.
    with np.errstate(all="ignore"), threadpool_limits(1, user_api="blas"):
        results.initial_spread = {norm: _initial_spread(digits, norm, seed) for norm in norms}
        for index, (norm, rate) in enumerate(plans):
            trainer = Trainer(digits, norm, rate, seed)
            report_epochs = partial(report, index, 1, f"normalization: {norm}", f"rate {rate:g}")
            results.runs.append(_train(trainer, norm, epochs, report_epochs))
        for index, norm in enumerate(timed):
            rate = results.best(norm).learning_rate
            report_epochs = partial(report, len(plans) + 2 * index, 2, f"{norm}, cbnorm and NumPy timed", "")
            results.timings += _compare_time(digits, norm, rate, seed, epochs, report_epochs)
    return results


def _initial_spread(digits, norm, seed):
    network = Trainer(digits, norm, 0.0, seed).network
    # Moving averages know nothing before training; the statistics of the data stand in for them.
    network.use_population(digits.train_batches())
    return network.spread(digits.test_x)


def _train(trainer, norm, epochs, progress):
    digits, network = trainer.digits, trainer.network
    accuracies = []
    for epoch in range(epochs):
        progress(epoch / epochs)
        finite = trainer.epoch()
        accuracies.append(network.accuracy(digits.test_x, digits.test_labels))
        if not finite:
            break
    spread = network.spread(digits.test_x)
    network.use_population(digits.train_batches())
    return Run(
        norm=norm,
        learning_rate=trainer.learning_rate,
        losses=trainer.losses,
        accuracies=accuracies,
        population_accuracy=network.accuracy(digits.test_x, digits.test_labels) if network.has_statistics else None,
        spread=spread,
    )


def _compare_time(digits, norm, learning_rate, seed, epochs, progress):
    trainers = {
        "cbnorm": Trainer(digits, norm, learning_rate, seed, cbnorm),
        "NumPy": Trainer(digits, norm, learning_rate, seed, numpy_layers),
    }
    # Epoch by epoch in turn, so that both meet the same load of the machine.
    for epoch in range(epochs):
        progress(epoch / epochs)
        for trainer in trainers.values():
            trainer.epoch()
    return [
        Timing(norm, library, median(trainer.norm_seconds), median(trainer.step_seconds), trainer.losses)
        for library, trainer in trainers.items()
    ]
