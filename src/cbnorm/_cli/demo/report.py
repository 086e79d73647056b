"""What `cbnorm demo` prints at the end: tables."""

import math

from cbnorm._cli.demo.experiment import BATCH_SIZE, INIT_STD, SIZES
from cbnorm._cli.demo.results import TARGET_ACCURACY, TRAINS_ACCURACY
from cbnorm._cli.output import new_table, plural, print_heading, terminal


def print_tables(results):
    """Print the accuracy at each learning rate, the claims measured, and where the time went."""
    console = terminal()
    console.print(f"{results.num_train} digits to train, {results.num_test} to test; seed {results.seed}")
    console.print(
        f"{len(SIZES) - 2} hidden layers of {SIZES[1]} tanh, first weights of std {INIT_STD:g}, "
        f"SGD in batches of {BATCH_SIZE}"
    )
    console.print()
    target = f"{TARGET_ACCURACY:.0%}"
    epochs = plural(results.epochs, "epoch")
    print_heading(console, f"Test accuracy after {epochs}, by learning rate (first epoch at {target})")
    console.print(_accuracies(results))
    print_heading(console, "What each gains, at the learning rate that came first to the target")
    console.print(_claims(results))
    console.print(f'"Trains": {TRAINS_ACCURACY:.0%} test accuracy or more after the last epoch.')
    if not results.timings:
        return
    console.print()
    print_heading(console, "Time in normalization: the same training with cbnorm and with NumPy formulas")
    console.print(_times(results))
    for line in _comparisons(results):
        console.print(line)


def _accuracies(results):
    table = new_table(("rate",), results.norms)
    for row in zip(*(results.runs_of(norm) for norm in results.norms), strict=True):
        cells = []
        for run in row:
            reached = "-" if math.isinf(run.epochs_to_target) else f"{run.epochs_to_target}"
            cell = f"{run.accuracy:.1%} {'(' + reached + ')':>4}"
            cells.append(cell if run.trains else f"[dim]{cell}[/dim]")
        table.add_row(f"{row[0].learning_rate:g}", *cells)
    return table


def _claims(results):
    table = new_table(("",), results.norms)
    best = [results.best(norm) for norm in results.norms]
    highest = [results.highest_rate(norm) for norm in results.norms]
    table.add_row(
        f"epochs to {TARGET_ACCURACY:.0%} test accuracy",
        *("never" if math.isinf(run.epochs_to_target) else f"{run.epochs_to_target}" for run in best),
    )
    table.add_row("  at learning rate", *(f"{run.learning_rate:g}" for run in best))
    table.add_row("highest learning rate that trains", *("none" if rate is None else f"{rate:g}" for rate in highest))
    table.add_row("test accuracy", *(f"{run.accuracy:.1%}" for run in best))
    table.add_row(
        "  with population statistics",
        *("-" if run.population_accuracy is None else f"{run.population_accuracy:.1%}" for run in best),
    )
    table.add_row("spread (std) of the activations")
    initial = [results.initial_spread[norm] for norm in results.norms]
    for when, spreads in (("before", initial), ("after", [run.spread for run in best])):
        for layer in (1, len(SIZES) - 2):
            table.add_row(f"  {when} training, layer {layer}", *(f"{spread[layer - 1]:.2g}" for spread in spreads))
    return table


def _times(results):
    table = new_table(("",), ("normalization", "training", "share"))
    for timing in results.timings:
        table.add_row(
            f"{timing.norm}, {timing.library}",
            f"{timing.norm_seconds:.2f} s",
            f"{timing.total_seconds:.2f} s",
            f"{timing.share:.0%}",
        )
    return table


def _comparisons(results):
    for ours, theirs in zip(results.timings[::2], results.timings[1::2], strict=True):
        difference = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        yield (
            f"{ours.norm}: {theirs.norm_seconds / ours.norm_seconds:.1f} times faster with cbnorm; "
            f"largest difference of the losses {difference:.1e}"
        )
