"""What the commands' output has in common: colours, headings and tables, pictures, progress, and files that cannot be.

rich and matplotlib are extras: imported here by the functions that need them alone.
"""

import os
import sys

# Okabe and Ito's colours, told apart by every kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.4"


def plural(count, word):
    """`1 thread`, `2 threads`."""
    return f"{count} {word}{'s' * (count != 1)}"


def terminal(width=None):
    """Where a command prints; of some width where its output goes to a file."""
    from rich.console import Console

    console = Console(highlight=False)
    if width and not console.is_terminal:
        console.width = width
    return console


def print_heading(console, words):
    """Print what stands above a table."""
    console.print(words, style="bold")


def new_table(names, numbers, **options):
    """Table with columns of names on the left and of numbers right of them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, **options)
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def with_progress(work, **arguments):
    """Call `work(progress=..., **arguments)` behind a progress bar on stderr, shown in a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # Drawn when there is news alone: a thread that redraws the bar would be timed with the work.
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden, auto_refresh=False) as bar:
        task = bar.add_task("", total=1.0)
        return work(
            progress=lambda done, words: bar.update(task, completed=done, description=words, refresh=True),
            **arguments,
        )


def new_picture(width, height):
    """Figure of so many inches that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_picture(figure, path):
    """Write a picture in the format that its ending names; OSError if that cannot be done."""
    figure.savefig(path, format=_format(path), dpi=110)


def _format(path):
    return path.suffix[1:].lower() or "png"


def cannot_draw(path):
    """Say why there can be no picture at `path`, or None."""
    formats = new_picture(1, 1).canvas.get_supported_filetypes()
    problem = cannot_write(path)
    if problem or _format(path) in formats:
        return problem
    return f"unknown picture format {path.suffix!r}, expected one of {', '.join(sorted(formats))}"


def cannot_write(path):
    """Say why a file cannot be written at `path`, or None."""
    if not path.parent.is_dir():
        return f"no such directory: {path.parent}"
    if path.is_dir():
        return f"is a directory: {path}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"no permission to write {path}"
    return None


def write(command, what, function, results, path):
    """Let `function(results, path)` write a file and tell where it is, or why it is not; returns whether it is."""
    try:
        function(results, path)
    except OSError as error:
        print(f"cbnorm {command}: cannot write {path}: {error.strerror or error}", file=sys.stderr)
        return False
    print(f"{what}: {path}")
    return True
