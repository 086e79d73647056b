"""What `cbnorm demo` measures, and what counts as reaching the target and as training."""

import math
from dataclasses import dataclass

TARGET_ACCURACY = 0.95  # "epochs to 95%"
TRAINS_ACCURACY = 0.90  # a learning rate "trains" if the test accuracy after the last epoch is at least this


@dataclass
class Run:
    """One training: what the network reached and, layer after layer, how far its activations spread."""

    norm: str
    learning_rate: float
    losses: list  # of every step
    accuracies: list  # on the test images after every epoch; shorter where the loss stopped being finite
    population_accuracy: float | None  # None where there are no statistics for test time
    spread: list

    @property
    def accuracy(self):
        """Test accuracy after the last epoch."""
        return self.accuracies[-1]

    @property
    def trains(self):
        """Whether the learning rate was not too high, nor too low for the epochs given."""
        return math.isfinite(self.losses[-1]) and self.accuracy >= TRAINS_ACCURACY

    @property
    def epochs_to_target(self):
        """The first epoch that ended with the target accuracy; infinity if none did."""
        return next((i for i, value in enumerate(self.accuracies, 1) if value >= TARGET_ACCURACY), math.inf)


@dataclass
class Timing:
    """Where the time of a step went: medians over the steps of one training, as any may have been interrupted."""

    norm: str
    library: str
    norm_seconds: float  # in normalization, forward and backward
    step_seconds: float  # in all
    losses: list

    @property
    def share(self):
        """Share of a step spent in normalization."""
        return self.norm_seconds / self.step_seconds


@dataclass
class Results:
    """All that the tables and the picture show."""

    norms: tuple
    learning_rates: tuple
    epochs: int
    seed: int
    num_train: int
    num_test: int
    runs: list
    initial_spread: dict  # norm -> one number for each hidden layer
    timings: list  # for each normalization, cbnorm and then NumPy

    def runs_of(self, norm):
        """The trainings with a normalization, by rising learning rate."""
        return [run for run in self.runs if run.norm == norm]

    def best(self, norm):
        """The training that came first to the target; where none came there, the most accurate one."""
        return min(self.runs_of(norm), key=lambda run: (run.epochs_to_target, -run.accuracy))

    def highest_rate(self, norm):
        """The highest learning rate that trains, or None."""
        return max((run.learning_rate for run in self.runs_of(norm) if run.trains), default=None)
