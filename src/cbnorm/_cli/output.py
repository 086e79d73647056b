"""What the commands leave besides text: pictures, files, and why there are none.

matplotlib is an extra, imported here by the functions that need it alone.
"""

import os
import sys

from cbnorm._cli.page import Page

# Okabe and Ito's colours, told apart by every kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.4"


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
        complain(command, f"cannot write {path}: {error.strerror or error}")
        return False
    Page().line(f"{what}: {path}")
    return True


def complain(command, words):
    """Tell on standard error what went wrong, in one line."""
    Page(sys.stderr).line(f"cbnorm {command}: {words}")
