"""What `cbnorm bench` prints and writes: one table for each operation, a JSON file."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

from cbnorm._cli.bench.company import ONE_THREAD
from cbnorm._cli.bench.expected import is_busy
from cbnorm._cli.bench.measure import TOLERANCE, US
from cbnorm._cli.page import Cell, plural


class Report(NamedTuple):
    """How results are shown: a table's names, numbers and rows, and the sentences at the end."""

    table: Callable
    explained: Callable


def print_head(page, results):
    """Print what is measured, and on what; before anything is, whether the machine is busy."""
    machine = results.machine
    threads = plural(results.num_threads, "thread")
    if US in results.notes:
        threads += f" ({US}: {results.notes[US]})"
    page.line(f"{machine['cpu']}, {threads}, {machine['kernels']} kernels, {results.dtype}")
    if results.versions:
        page.sentence(", ".join(f"{name} {version}" for name, version in results.versions.items()))
    if is_busy(machine["load"], results.num_threads):
        words = f"The machine is busy, load {machine['load']:.1f}: times and ratios will not be those of a quiet one."
        page.sentence(words, "red")


def print_table(page, report, lines, results):
    """Print the lines of one operation."""
    if not lines:
        return
    page.line()
    page.heading(lines[0].operation)
    page.table(*report.table(lines, results.peers))
    for line in lines:
        for words in _disturbed(line):
            page.sentence(words, "red")


def print_end(page, report, results):
    """Print what the numbers mean, and what went wrong."""
    page.line()
    for words, style in report.explained(results):
        page.sentence(words, style)


def _disturbed(line):
    found = getattr(line, "disturbed", None)
    if found:
        name, times = found
        yield f"! {line.shape}: half of {name}'s calls took {times:.0f} times its fastest or more: do not trust it."


def _company_table(lines, peers):
    others = [name for name in (ONE_THREAD, *peers) if any(name in line.seconds for line in lines)]
    rows = []
    for line in lines:
        ours = line.seconds[US]
        ratios = [_ratio(line.seconds[name] / ours) if name in line.seconds else "" for name in others]
        rows.append([line.shape, line.company, _duration(ours), *ratios])
    return ("shape", "company"), [name.replace(", ", "\n") for name in (US, *others)], rows


def write_json(results, path):
    """Write every time in seconds, with what it was measured on.

    Parameters
    ----------
    results : Results
        From `measure.run` or `company.run`.
    path : pathlib.Path
        Where the file goes.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    found = asdict(results) | {"tolerance": TOLERANCE[results.dtype]}
    for line in found["lines"]:
        # JSON knows no infinity.
        line["errors"] = {name: _finite(error) for name, error in line.get("errors", {}).items()}
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(number):
    return number if number < float("inf") else None


def _table(lines, peers):
    headings = ["cbnorm\nfresh", "cbnorm\nout=", "copy\nout="]
    peers = [name for name in peers if any(name in line.seconds or name in line.failures for line in lines)]
    for name in peers:
        kinds = "fresh/out" if any("out" in line.seconds.get(name, ()) for line in lines) else "fresh"
        headings.append(f"{name}\n{kinds}")
    rows = [
        [line.shape + " !" * bool(line.disturbed), *_own_cells(line), *(_peer_cell(line, name) for name in peers)]
        for line in lines
    ]
    return ("shape",), headings, rows


def _own_cells(line):
    if US in line.failures:
        return [_failure(line, US), "", ""]
    seconds = line.seconds[US]
    return [_duration(seconds["fresh"]), _duration(seconds["out"]), f"{line.share_of_limit:.0%}"]


def _peer_cell(line, name):
    if name in line.failures:
        return _failure(line, name)
    ratios = [ratio for ratio in (line.ratio(name, "fresh"), line.ratio(name, "out")) if ratio is not None]
    return Cell("/".join(_ratio(each).text for each in ratios), "red" * any(each < 1 for each in ratios))


def _failure(line, name):
    return Cell(f"error {line.errors[name]:.0e}" if name in line.errors else "failed", "red")


def _ratio(number):
    words = f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"
    return Cell(f"{words:>4}", "red" * (number < 1))


def _duration(seconds):
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            number = seconds / size
            decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:.{decimals}f} {unit}"
    return None


def _explained(results):
    yield "Times: the fastest of many calls, everyone in turn on the same arrays.", ""
    yield (
        "Ratios: how many times as long a peer takes as cbnorm; first both with fresh outputs, then, where "
        "it has out=, the better of its two against cbnorm with out=.",
        "",
    )
    yield f"Copy: speed as a share of copying the bytes that must be moved ({results.copy}).", ""
    for name, note in results.notes.items():
        yield f"{name}: {note}.", ""
    tolerance = f"within {TOLERANCE[results.dtype]:.0e} of the largest number"
    failures = {
        f"{name}, {line.operation} {line.shape}": reason
        for line in results.lines
        for name, reason in line.failures.items()
    }
    if not failures:
        yield f"Checked before timing: all agree with the formulas in float64, {tolerance}.", ""
        return
    yield f"Not timed, as they failed or do not agree with the formulas in float64, {tolerance}:", "red"
    yield from _listed(failures)


def _explained_company(results):
    yield ", ".join(f"{name} {version}" for name, version in results.versions.items()), ""
    yield (
        "Times: the mean of all calls, each contestant in a process of its own, in turn, with out= where it has one.",
        "",
    )
    yield "Ratios: how many times as long cbnorm on one thread and the others take.", ""
    yield (
        "Between matmuls: a product with weights, the contestant's own, comes before each call and is not counted.",
        "",
    )
    if results.failures:
        yield "Not timed, as they failed:", "red"
        yield from _listed(results.failures)


def _listed(failures):
    return ((f"{who}: {reason}", "") for who, reason in failures.items())


ALONE = Report(_table, _explained)
IN_COMPANY = Report(_company_table, _explained_company)
