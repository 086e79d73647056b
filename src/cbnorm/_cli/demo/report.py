"""What `cbnorm demo` prints at the end: tables."""

import math

from cbnorm._cli.demo.experiment import BATCH_SIZE, INIT_STD, SIZES
from cbnorm._cli.demo.results import TARGET_ACCURACY, TRAINS_ACCURACY
from cbnorm._cli.page import Cell, Page, plural


def print_tables(results):
    """Print the accuracy at each learning rate, the claims measured, and where the time went."""
    page = Page()
    page.sentence(f"{results.num_train} digits to train, {results.num_test} to test; seed {results.seed}")
    page.sentence(
        f"{len(SIZES) - 2} hidden layers of {SIZES[1]} tanh, first weights of std {INIT_STD:g}, "
        f"SGD in batches of {BATCH_SIZE}"
    )
    page.line()
    target = f"{TARGET_ACCURACY:.0%}"
    epochs = plural(results.epochs, "epoch")
    page.heading(f"Test accuracy after {epochs}, by learning rate (first epoch at {target})")
    page.table(("rate",), results.norms, _accuracies(results))
    page.line()
    page.heading("What each gains, at the learning rate that came first to the target")
    page.table(("",), results.norms, _claims(results))
    page.line()
    page.sentence(f'"Trains": {TRAINS_ACCURACY:.0%} test accuracy or more after the last epoch.')
    if not results.timings:
        return
    page.line()
    page.heading("Time of a step (median): the same training with cbnorm and with NumPy formulas")
    page.table(("",), ("normalization", "step", "share"), _times(results))
    page.line()
    for line in _comparisons(results):
        page.sentence(line)


def _accuracies(results):
    for row in zip(*(results.runs_of(norm) for norm in results.norms), strict=True):
        cells = []
        for run in row:
            reached = "-" if math.isinf(run.epochs_to_target) else f"{run.epochs_to_target}"
            cells.append(Cell(f"{run.accuracy:.1%} {'(' + reached + ')':>4}", "" if run.trains else "dim"))
        yield [f"{row[0].learning_rate:g}", *cells]


def _claims(results):
    best = [results.best(norm) for norm in results.norms]
    highest = [results.highest_rate(norm) for norm in results.norms]
    yield [
        f"epochs to {TARGET_ACCURACY:.0%} test accuracy",
        *("never" if math.isinf(run.epochs_to_target) else f"{run.epochs_to_target}" for run in best),
    ]
    yield ["  at learning rate", *(f"{run.learning_rate:g}" for run in best)]
    yield ["highest learning rate that trains", *("none" if rate is None else f"{rate:g}" for rate in highest)]
    yield ["test accuracy", *(f"{run.accuracy:.1%}" for run in best)]
    yield [
        "  with population statistics",
        *("-" if run.population_accuracy is None else f"{run.population_accuracy:.1%}" for run in best),
    ]
    yield ["spread (std) of the activations"]
    initial = [results.initial_spread[norm] for norm in results.norms]
    for when, spreads in (("before", initial), ("after", [run.spread for run in best])):
        for layer in (1, len(SIZES) - 2):
            yield [f"  {when} training, layer {layer}", *(f"{spread[layer - 1]:.2g}" for spread in spreads)]


def _times(results):
    for timing in results.timings:
        seconds = (f"{1e3 * each:.3f} ms" for each in (timing.norm_seconds, timing.step_seconds))
        yield [f"{timing.norm}, {timing.library}", *seconds, f"{timing.share:.0%}"]


def _comparisons(results):
    for ours, theirs in zip(results.timings[::2], results.timings[1::2], strict=True):
        difference = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        yield (
            f"{ours.norm}: {theirs.norm_seconds / ours.norm_seconds:.1f} times faster with cbnorm; "
            f"largest difference of the losses {difference:.1e}"
        )
