"""The picture of `cbnorm bench`: for each operation and shape, ratio to each peer and share of the limit."""

from itertools import cycle
from statistics import median

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import offset_copy

from cbnorm._cli.bench.measure import US
from cbnorm._cli.bench.peers import PEERS
from cbnorm._cli.output import GREY, PALETTE, new_picture, save_picture
from cbnorm._cli.page import plural

LINE_HEIGHT = 0.21  # inches
COLOURS = dict(zip(PEERS, PALETTE, strict=True))  # a peer has its own in every picture
MARKERS = dict(zip(PEERS, "soDv^P", strict=True))


def draw(results, path):
    """Draw what the measurement found.

    Parameters
    ----------
    results : cbnorm._cli.bench.measure.Results
        From `measure.run`.
    path : pathlib.Path
        Where the picture goes; its ending sets the format, PNG without one.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    heights, headings = _places(results.lines)
    figure = new_picture(12, 3.2 + LINE_HEIGHT * (max(heights) + 1))
    by_peer, by_limit = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_ratios(by_peer, results, heights)
    _draw_limit(by_limit, results, heights)
    for axes in (by_peer, by_limit):
        axes.set_yticks(heights, [line.shape for line in results.lines], fontsize=10)
        axes.set_ylim(max(heights) + 0.8, -0.8)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", which="both", top=True, labeltop=True)  # a long picture is read from both ends
        axes.spines[["right", "left"]].set_visible(False)
    for height, words in headings:
        by_peer.annotate(
            words, (0, height), (-8, 0), ("axes fraction", "data"), "offset points",
            ha="right", va="center", fontsize=11, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    figure.suptitle(_finding(results), fontsize=15, fontweight="bold")
    figure.supxlabel(
        f"{results.machine['cpu']}, {plural(results.num_threads, 'thread')}, {results.dtype}; copy: {results.copy}",
        fontsize=11,
        color=GREY,
    )
    save_picture(figure, path)


def _places(lines):
    """The height of each line, and of each operation's heading above its first one."""
    heights, headings, height, operation = [], [], 0, None
    for line in lines:
        if line.operation != operation:
            operation = line.operation
            height += bool(heights) * 0.5
            headings.append((height, operation))
            height += 1
        heights.append(height)
        height += 1
    return heights, headings


def _draw_ratios(axes, results, heights):
    axes.axvline(1, color=GREY, linewidth=1)
    spare = cycle(PALETTE)
    for name in results.peers:
        colour, marker = COLOURS.get(name) or next(spare), MARKERS.get(name, "o")
        for kind, fill in (("fresh", "white"), ("out", colour)):
            found = [(line.ratio(name, kind), y) for line, y in zip(results.lines, heights, strict=True)]
            found = [(ratio, y) for ratio, y in found if ratio is not None]
            axes.plot(*np.reshape(found, (-1, 2)).T, marker, color=colour, markerfacecolor=fill, markersize=7)
        axes.plot([], [], marker, color=colour, label=name)
    axes.set_xscale("log")
    lowest, highest = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 1000 * lowest else (1,)))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    _head(axes, "Time of each peer, in times that of cbnorm\n○ fresh outputs, ● with out=")


def _draw_limit(axes, results, heights):
    axes.axvline(1, color=GREY, linewidth=1)
    shares = [line.share_of_limit for line in results.lines]
    found = [(share, y) for share, y in zip(shares, heights, strict=True) if share is not None]
    axes.plot(*np.reshape(found, (-1, 2)).T, "o", color="black", markersize=7, label=f"{US}, out=")
    axes.set_xlim(0, 1.05 * max([1, *(share for share, _ in found)]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _head(axes, "Speed as a share of\nthe memory limit (a copy)")


def _head(axes, title):
    axes.set_title(title, loc="left", fontsize=12, pad=46)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, fontsize=10, columnspacing=1, handletextpad=0,
        bbox_transform=offset_copy(axes.transAxes, axes.figure, x=-12, y=18, units="points"),
    )  # fmt: skip


def _finding(results):
    words = []
    for name in results.peers:
        ratios = [line.ratio(name, "fresh") for line in results.lines]
        ratios = [ratio for ratio in ratios if ratio is not None]
        if ratios:
            words.append(f"{median(ratios):.1f}× {name}")
    return f"Speed of cbnorm, median over the shapes:\n{', '.join(words) or 'no peer to compare with'}"
