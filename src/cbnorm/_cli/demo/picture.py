"""The picture of `cbnorm demo`: accuracy by epoch, accuracy by learning rate, activations by layer."""

import math

from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

from cbnorm._cli.demo.results import TARGET_ACCURACY, TRAINS_ACCURACY
from cbnorm._cli.output import GREY, PALETTE, new_picture, save_picture
from cbnorm._cli.page import plural

COLOURS = {"batch": PALETTE[0], "none": PALETTE[1]}
MORE_COLOURS = PALETTE[2:]
LINE_HEIGHT = 18  # points between the lines above a panel


def draw(results, path):
    """Draw what the demo found.

    Parameters
    ----------
    results : cbnorm._cli.demo.results.Results
        From `experiment.run`.
    path : pathlib.Path
        Where the picture goes; its ending sets the format, PNG without one.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    figure = new_picture(13.5, 6.8)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    through_training, by_rate, through_depth = figure.subplots(1, 3)
    spare = iter(MORE_COLOURS * len(results.norms))
    colours = {norm: COLOURS.get(norm) or next(spare) for norm in results.norms}

    _draw_training(through_training, results, colours)
    _draw_rates(by_rate, results, colours)
    _draw_depth(through_depth, results, colours)
    for axes in (through_training, by_rate):
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (through_training, by_rate, through_depth):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=12)

    figure.suptitle(_finding(results), fontsize=17, fontweight="bold")
    if results.timings:
        figure.supxlabel(_time_spent(results), fontsize=13, color=GREY)
    save_picture(figure, path)


def _draw_training(axes, results, colours):
    _threshold(axes, TARGET_ACCURACY)
    words = {}
    for norm in results.norms:
        run = results.best(norm)
        axes.plot(range(1, len(run.accuracies) + 1), run.accuracies, color=colours[norm], linewidth=2.5)
        if math.isfinite(run.epochs_to_target):
            reached = run.accuracies[run.epochs_to_target - 1]
            axes.plot(run.epochs_to_target, reached, "o", color=colours[norm], markersize=10)
        words[norm] = f"{TARGET_ACCURACY:.0%} {_reached(results, run)}"
    axes.set_xlim(0, results.epochs + 1)
    axes.set_xlabel("epoch, each at its fastest learning rate", fontsize=13)
    _head(axes, "Test accuracy by epoch", words, colours)


def _draw_rates(axes, results, colours):
    _threshold(axes, TRAINS_ACCURACY)
    words = {}
    for norm in results.norms:
        accuracies = [run.accuracy for run in results.runs_of(norm)]
        axes.plot(results.learning_rates, accuracies, "o-", color=colours[norm], linewidth=2.5, markersize=5)
        highest = results.highest_rate(norm)
        if highest is not None:
            accuracy = accuracies[results.learning_rates.index(highest)]
            axes.plot(highest, accuracy, "o", color=colours[norm], markersize=10)
        words[norm] = "none trains" if highest is None else f"trains up to {highest:g}"
    axes.set_xscale("log")
    axes.set_xticks(results.learning_rates, [f"{rate:g}" for rate in results.learning_rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"learning rate (accuracy after {results.epochs} epochs)", fontsize=13)
    _head(axes, "Test accuracy by learning rate", words, colours)


def _draw_depth(axes, results, colours):
    words = {}
    for norm in results.norms:
        before, after = results.initial_spread[norm], results.best(norm).spread
        layers = range(1, len(before) + 1)
        axes.plot(layers, before, "o--", color=colours[norm], linewidth=2, markersize=6, markerfacecolor="white")
        axes.plot(layers, after, "o-", color=colours[norm], linewidth=2.5, markersize=6)
        words[norm] = f"{before[0]:.2g} to {before[-1]:.2g} at first"
    axes.plot([], [], "o--", color=GREY, markerfacecolor="white", label="before training")
    axes.plot([], [], "o-", color=GREY, label="after training")
    axes.legend(fontsize=12, frameon=False, loc="lower left")
    axes.set_yscale("log")
    axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(layers)
    axes.set_xlim(0.7, len(before) + 0.3)
    axes.set_xlabel("hidden layer (std over test images)", fontsize=13)
    _head(axes, "Spread of the activations by layer", words, colours)


def _head(axes, title, words, colours):
    """Write the title and under it, in its colour, what each normalization reached: legend and result."""
    heights = range(LINE_HEIGHT * (len(words) - 1), -1, -LINE_HEIGHT)
    for (norm, text), height in zip(words.items(), heights, strict=True):
        axes.annotate(
            f"{_name(norm)}: {text}",
            (0, 1),
            (0, height + 12),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colours[norm],
            fontsize=12.5,
            in_layout=False,
        )
    axes.set_title(title, loc="left", fontsize=15, pad=LINE_HEIGHT * len(words) + 18)


def _threshold(axes, accuracy):
    axes.axhline(accuracy, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(
        f"{accuracy:.0%}",
        (1, accuracy),
        (-2, -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=GREY,
        fontsize=12,
        ha="right",
        va="top",
    )


def _finding(results):
    normalized = [norm for norm in results.norms if norm != "none"] or list(results.norms)
    norm = min(normalized, key=lambda norm: results.best(norm).epochs_to_target)
    epochs, rate = _reached(results, results.best(norm)), _highest(results, norm)
    if norm != "none" and "none" in results.norms:
        count = results.best("none").epochs_to_target
        epochs += f" ({f'not in {results.epochs}' if math.isinf(count) else count} without)"
        rate += f" ({_highest(results, 'none')} without)"
    return (
        f"{_name(norm).capitalize()}: {TARGET_ACCURACY:.0%} test accuracy {epochs},\n"
        f"highest learning rate that trains: {rate}"
    )


def _time_spent(results):
    pairs = zip(results.timings[::2], results.timings[1::2], strict=True)
    shares = [f"{ours.norm} {ours.share:.0%} / {theirs.share:.0%}" for ours, theirs in pairs]
    return f"Share of a step in normalization, cbnorm / NumPy formulas: {', '.join(shares)}"


def _highest(results, norm):
    rate = results.highest_rate(norm)
    return "none" if rate is None else f"{rate:g}"


def _reached(results, run):
    if math.isinf(run.epochs_to_target):
        return f"not in {results.epochs} epochs"
    return f"after {plural(run.epochs_to_target, 'epoch')}"


def _name(norm):
    return "no normalization" if norm == "none" else f"{norm} normalization"
