"""The progress bar that every command shows while it works."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def with_progress(work, **arguments):
    """Call `work(progress=..., **arguments)` behind a progress bar on stderr, shown in a terminal only."""
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
