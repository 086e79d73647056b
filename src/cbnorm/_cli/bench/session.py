"""One run of `cbnorm bench`: what is said before, each table as it is done, files, also where Ctrl-C ends it."""

from itertools import groupby
from operator import itemgetter

from cbnorm._cli import output
from cbnorm._cli.bench import expected, report
from cbnorm._cli.page import Page, plural
from cbnorm._cli.progress import Progress, about

INTERRUPTED = 130  # the status of a process that Ctrl-C ended


def run(plan, measurement, shown, files):
    """Measure and tell.

    Parameters
    ----------
    plan : sequence of (str, Shape)
        The lines, operation by operation: names of `cases.OPERATIONS`, each with a shape.
    measurement : measure.Measurement or company.Company
        What measures a line.
    shown : report.Report
        How its results are shown.
    files : sequence of (str, callable, pathlib.Path)
        What to leave: a word for it, what writes results to a path, and the path.

    Returns
    -------
    int
        The exit status: 0, or 1 where a line was left out, cbnorm is wrong or a file could not be written, or 130.
    """
    plan, left_out = _fitting(plan, measurement)
    if not plan:
        return 1
    page = Page()
    per_number = expected.seconds_per_number()
    seconds = [measurement.expected(shape, per_number) for _, shape in plan]
    start = measurement.expected_start(per_number)
    total = start + sum(seconds)
    page.sentence(f"{plural(len(plan), 'line')} to measure: {about(total)}; Ctrl-C ends it with what there is by then.")
    progress = Progress(total)
    try:
        with measurement:
            measurement.results.left_out += left_out
            _measure(page, plan, measurement, shown, progress, _shares(start, seconds))
    except KeyboardInterrupt:
        page.sentence("Interrupted.", "red")
        if not (results := getattr(measurement, "results", None)):
            return INTERRUPTED
        results.interrupted = True
    results = measurement.results
    written = []
    if results.lines:
        report.print_end(page, shown, results)
        written = [output.write("bench", what, function, results, path) for what, function, path in files]
    if results.interrupted:
        return INTERRUPTED
    return 0 if all(written) and results.agrees and not results.left_out else 1


def _shares(start, seconds):
    """The share of all the work that is done before each line."""
    total = start + sum(seconds)
    for each in seconds:
        yield start / total
        start += each


def _measure(page, plan, measurement, shown, progress, shares):
    results = measurement.results
    report.print_head(page, results)
    for operation, shapes in groupby(plan, itemgetter(0)):
        shapes = [shape for _, shape in shapes]
        group = f"{operation}, {plural(len(shapes), 'shape')}"
        lines = len(results.lines)
        try:
            with progress:
                for shape in shapes:
                    progress(next(shares), group, str(shape))
                    try:
                        measurement.add(operation, shape)
                    except (MemoryError, ChildProcessError) as error:
                        results.left_out.append(_left_out(operation, shape, error))
        finally:  # also where Ctrl-C ended it
            report.print_table(page, shown, results.lines[lines:], results)


def _fitting(plan, measurement):
    """The lines that fit into memory, and what was said of those that do not: the system might end the process."""
    fitting, left_out, free = [], [], expected.free_bytes()
    for operation, shape in plan:
        needed = measurement.expected_bytes(operation, shape)
        if needed <= free:
            fitting.append((operation, shape))
        else:
            words = f"needs about {expected.gibibytes(needed)} of memory, {expected.gibibytes(free)} are free"
            left_out.append(_left_out(operation, shape, words))
    return fitting, left_out


def _left_out(operation, shape, reason):
    """Say that a line cannot be measured, and why."""
    words = f"{operation} {shape}: {str(reason) or 'out of memory'}".splitlines()[0]
    output.complain("bench", f"left out: {words}")
    return words
