"""What `cbnorm bench` prints and writes: one table for each operation, a JSON file."""

import json
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter

from cbnorm._cli.bench.company import ONE_THREAD
from cbnorm._cli.bench.measure import TOLERANCE, US
from cbnorm._cli.output import new_table, plural, print_heading, terminal

WIDTH = 100


def print_tables(results):
    """Print times, ratios and share of the limit, operation by operation; then what the numbers mean."""
    _print(results, _table, _explained(results))


def print_company(results):
    """The same for what `company.run` found."""
    explained = (
        "Times: the mean of all calls, each contestant in a process of its own, in turn, with out= where it has one.",
        "Ratios: how many times as long cbnorm on one thread and the others take.",
        "Between matmuls: a product with weights, the contestant's own, comes before each call and is not counted.",
    )
    _print(results, _company_table, explained)


def _print(results, table, sentences):
    console = terminal(WIDTH)
    machine = results.machine
    threads = plural(results.num_threads, "thread")
    console.print(f"{machine['cpu']}, {threads}, {machine['kernels']} kernels, {results.dtype}")
    console.print(", ".join(f"{name} {version}" for name, version in results.versions.items()))
    for operation, lines in groupby(results.lines, attrgetter("operation")):
        console.print()
        print_heading(console, operation)
        console.print(table(list(lines), results.peers))
    for sentence in sentences:
        console.print(sentence)


def _company_table(lines, peers):
    others = [name for name in (ONE_THREAD, *peers) if any(name in line.seconds for line in lines)]
    headings = [name.replace(", ", "\n") for name in (US, *others)]
    table = new_table(("shape", "company"), headings, collapse_padding=True)
    for line in lines:
        ours = line.seconds[US]
        ratios = [_ratio(line.seconds[name] / ours) if name in line.seconds else "" for name in others]
        table.add_row(line.shape, line.company, _duration(ours), *ratios)
    return table


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
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")


def _finite(number):
    return number if number < float("inf") else None


def _table(lines, peers):
    headings = ["cbnorm\nfresh", "cbnorm\nout=", "copy\nout="]
    peers = [name for name in peers if any(name in line.seconds or name in line.failures for line in lines)]
    for name in peers:
        kinds = "fresh/out" if any("out" in line.seconds.get(name, ()) for line in lines) else "fresh"
        headings.append(f"{name}\n{kinds}")
    table = new_table(("shape",), headings, collapse_padding=True)
    for line in lines:
        table.add_row(line.shape, *_own_cells(line), *(_peer_cell(line, name) for name in peers))
    return table


def _own_cells(line):
    if US in line.failures:
        return [_failure(line, US), "", ""]
    seconds = line.seconds[US]
    return [_duration(seconds["fresh"]), _duration(seconds["out"]), f"{line.share_of_limit:.0%}"]


def _peer_cell(line, name):
    if name in line.failures:
        return _failure(line, name)
    ratios = (line.ratio(name, "fresh"), line.ratio(name, "out"))
    return "/".join(_ratio(each) for each in ratios if each is not None)


def _failure(line, name):
    return f"[red]error {line.errors[name]:.0e}[/red]" if name in line.errors else "[red]failed[/red]"


def _ratio(number):
    words = f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"
    return f"{words:>4}" if number >= 1 else f"[red]{words:>4}[/red]"


def _duration(seconds):
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size or unit == "µs":
            number = seconds / size
            decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:.{decimals}f} {unit}"
    return None


def _explained(results):
    if results.machine["load"] > 1:
        yield f"[red]The machine was busy when this began, load {results.machine['load']:.1f}: measure again.[/red]"
    yield "Times: the fastest of many calls, everyone in turn on the same arrays."
    yield (
        "Ratios: how many times as long a peer takes as cbnorm; first both with fresh outputs, then, where "
        "it has out=, the better of its two against cbnorm with out=."
    )
    yield f"Copy: speed as a share of copying the bytes that must be moved ({results.copy})."
    for name, note in results.notes.items():
        yield f"{name}: {note}."
    tolerance = f"within {TOLERANCE[results.dtype]:.0e} of the largest number"
    failures = [
        f"{name}, {line.operation} {line.shape}: {reason}"
        for line in results.lines
        for name, reason in line.failures.items()
    ]
    if not failures:
        yield f"Checked before timing: all agree with the formulas in float64, {tolerance}."
        return
    yield f"[red]Not timed, as they do not agree with the formulas in float64, {tolerance}:[/red]"
    yield from failures
