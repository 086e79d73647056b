"""How far a command is: a bar where the terminal can draw one, elsewhere a line for each group of its work."""

import math
import os
import sys
from time import perf_counter

from cbnorm._cli.page import Page

EARLY = 0.1  # of the work: before that, the time expected says more than the time it took


class Progress:
    """Tells on standard error how far the work is; a context, in whose blocks the bar is drawn.

    Parameters
    ----------
    expected : float
        Seconds that all of it may take; 0 where nobody knows.
    """

    def __init__(self, expected=0.0):
        self._expected = expected
        self._start = perf_counter()
        self._group = None
        self._page = Page(sys.stderr)
        self._bar = self._task = None

    def __enter__(self):
        self._bar = _bar(self._page)
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(self, *error):
        if self._bar:
            self._bar.stop()
        self._bar = None

    def __call__(self, share, group, words=""):
        """Tell that a share of the work, 0 to 1, is done, and what comes next: words within a group."""
        if self._bar:
            description = f"{group} {words}{self._left(share)}"
            self._bar.update(self._task, completed=share, description=description, refresh=True)
        elif group != self._group:
            self._page.line(f"{math.floor(100 * share):3d}%  {group}{self._left(share)}")
        self._group = group

    def _left(self, share):
        passed = perf_counter() - self._start
        if share >= EARLY:
            left = passed * (1 - share) / share
        elif self._expected:
            left = self._expected * (1 - share)
        else:
            return ""
        return f", {about(left)} left" if share < 1 else ""


def about(seconds):
    """Seconds in words, no more exact than an estimate is."""
    if seconds < 10:
        return f"about {math.ceil(seconds)} s"
    if seconds < 100:
        return f"about {5 * round(seconds / 5)} s"
    if seconds < 6000:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def _bar(page):
    """Rich's bar, None where it is not installed or the terminal cannot go back in its line."""
    if not page.is_terminal or page.ascii or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
    except ModuleNotFoundError:
        return None
    columns = BarColumn(bar_width=12), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}")
    # Drawn when there is news alone: a thread that redraws the bar would be timed with the work. Standard output
    # stays where it goes: rich would send it to this console.
    console = Console(file=page.stream, highlight=False)
    return Bar(*columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False)
