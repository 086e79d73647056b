"""The measurement of `cbnorm bench`: everyone checked against float64, then timed in turn on the same arrays."""

import math
import platform
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np

from cbnorm._cli.bench.cases import OPERATIONS, Case
from cbnorm._cli.bench.expected import import_seconds, line_bytes, line_seconds, load
from cbnorm._cli.bench.peers import PEERS
from cbnorm._cli.bench.peers.cbnorm import Cbnorm
from cbnorm._cli.bench.peers.numpy import NumPy, NumPyCopy
from cbnorm._cli.bench.peers.peer import Peer
from cbnorm._cli.bench.peers.torch import TorchCopy
from cbnorm._cli.bench.timing import Contestant, interleave
from cbnorm._cli.page import plural
from cbnorm._config import show_config

US, COPY = "cbnorm", "copy"

# Largest difference from the formulas in float64 that counts as agreement, as a share of the largest number
# (of 1 at least): too tight for a wrong formula, loose enough for NumPy, whose float32 sum of three million
# numbers around 1 is off by 1e-3.
TOLERANCE = {"float32": 5e-3, "float64": 1e-10}
DISTURBED = 100  # times the fastest call that the median must not take: something else had the cores


@dataclass
class Line:
    """What was found for one operation on one shape."""

    operation: str
    shape: str
    sizes: tuple
    bytes_moved: int
    seconds: dict = field(default_factory=dict)  # name -> {"fresh": s, "out": s}, the minima; copy: {"out": s}
    medians: dict = field(default_factory=dict)  # the same keys: seconds
    runs: dict = field(default_factory=dict)  # the same keys: how many calls each minimum is of
    errors: dict = field(default_factory=dict)  # name -> largest difference from float64
    failures: dict = field(default_factory=dict)  # name -> why it was not timed

    def ratio(self, peer, kind):
        """How many times as long a peer takes as cbnorm; None where either was not timed.

        `kind` is "fresh", or "out": cbnorm with out= against the better of the peer's two.
        """
        ours, theirs = self.seconds.get(US, {}), self.seconds.get(peer, {})
        if kind not in ours or kind not in theirs:
            return None
        return (min(theirs.values()) if kind == "out" else theirs[kind]) / ours[kind]

    @property
    def disturbed(self):
        """Whose median call took most, in times their fastest, and how many times; None below `DISTURBED`."""
        worst = (
            (self.medians[name][kind] / fastest, name)
            for name, kinds in self.seconds.items()
            for kind, fastest in kinds.items()
            if fastest
        )
        times, name = max(worst, default=(0, ""))
        return (name, times) if times >= DISTURBED else None

    @property
    def share_of_limit(self):
        """Speed of cbnorm with out= as a fraction of that of the copy."""
        ours = self.seconds.get(US)
        return self.seconds[COPY]["out"] / ours["out"] if ours else None


@dataclass
class Results:
    """All that the tables, the JSON file and the picture show."""

    dtype: str
    num_threads: int
    budget: float
    peers: tuple
    notes: dict  # peer -> what its numbers leave out
    copy: str  # how the limit was measured
    machine: dict
    versions: dict
    lines: list = field(default_factory=list)
    left_out: list = field(default_factory=list)  # lines that could not be measured, and why
    interrupted: bool = False

    @property
    def agrees(self):
        """Whether cbnorm itself came close enough to float64 on every line."""
        return not any(US in line.failures for line in self.lines)


class Measurement:
    """A context in which cbnorm and its peers are ready to be timed.

    Parameters
    ----------
    peers : sequence of str
        Names of `peers.PEERS`.
    dtype : {"float32", "float64"}
        Of all arrays.
    num_threads : int
        For everyone who can use more than one.
    budget : float
        Seconds for the timing of one line; five calls of each are made in any case.

    Attributes
    ----------
    results : Results
        What was found so far.
    """

    def __init__(self, peers, dtype, num_threads, budget):
        self._peers, self._dtype, self._num_threads, self._budget = tuple(peers), dtype, num_threads, budget
        self._stack = ExitStack()

    def expected_start(self, per_number):
        """About how many seconds pass before the first line, where a number costs `per_number` seconds."""
        return import_seconds(self._peers, per_number)

    def expected(self, shape, per_number):
        """About how many seconds `add` takes."""
        return line_seconds(shape, self._peers, self._budget, per_number)

    def expected_bytes(self, operation, shape):
        """Memory that `add` takes at its peak."""
        return line_bytes(OPERATIONS[operation], shape, self._dtype)

    def __enter__(self):
        now = load()
        with ExitStack() as stack:
            # cbnorm first: who loads OpenMP first decides which one the process has.
            players = (Cbnorm, *map(PEERS.get, self._peers))
            self._players = [stack.enter_context(closing(each(self._num_threads))) for each in players]
            copy = TorchCopy if find_spec("torch") else NumPyCopy
            self._copy = stack.enter_context(closing(copy(self._num_threads)))
            config = show_config("dicts")
            versions = {"python": platform.python_version(), "numpy": np.__version__}
            self.results = Results(
                dtype=self._dtype,
                num_threads=self._num_threads,
                budget=self._budget,
                peers=self._peers,
                notes=own_limit(self._num_threads) | {each.name: each.note for each in self._players if each.note},
                copy=self._copy.words,
                machine={name: config[name] for name in ("cpu", "kernels", "openmp")} | {"load": now},
                versions=versions | {player.name: player.version() for player in self._players},
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def add(self, operation, shape):
        """Measure one more line; a MemoryError is raised where its arrays do not fit."""
        line = _measure(operation, shape, self._players, self._copy, self._dtype, self._budget)
        self.results.lines.append(line)


def own_limit(num_threads):
    """A note where cbnorm uses fewer threads than it was given; none elsewhere."""
    config = show_config("dicts")
    if config["threads"] >= num_threads:
        return {}
    return {US: f"{plural(config['threads'], 'thread')}, {config['threads_by']}"}


def _measure(operation, shape, players, copy, dtype, budget):
    case = Case.make(operation, shape, np.dtype(dtype))
    line = Line(operation, str(shape), shape.sizes, case.bytes_moved)
    contestants = {(COPY, "out"): Contestant(copy.call(*_copied(case)), Peer.pool)}
    truth = _truth(case)
    for player in players:
        calls = _agreeing(player, case, truth, line)
        if calls:
            contestants[player.name, "fresh"] = Contestant(calls.fresh, player.pool)
            if calls.out:
                contestants[player.name, "out"] = Contestant(calls.out, player.pool)
    del truth
    for (name, kind), times in interleave(contestants, budget).items():
        line.seconds.setdefault(name, {})[kind] = times.fastest
        line.medians.setdefault(name, {})[kind] = times.median
        line.runs.setdefault(name, {})[kind] = times.runs
    return line


def _copied(case):
    """Two arrays whose copy reads and writes as many bytes as the operation must."""
    if not case.operation.is_backward:
        return case.x, case.out
    x, dout = case.x.reshape(-1), case.dout.reshape(-1)
    source = np.concatenate([x, dout[: len(dout) // 2]])  # three arrays moved: one and a half copied
    return source, np.full_like(source, 0)


def _truth(case):
    case = case.in_float64()
    calls = NumPy(1).calls(case)
    y_or_gradients = slice(3 if case.operation.is_backward else 1)
    return list(calls.arrays(calls.fresh()))[y_or_gradients]


def _agreeing(player, case, truth, line):
    """The calls of a player, once each has come close enough to the truth; else None, and why in `line`."""
    try:
        calls = player.calls(case)
        if calls is None:
            return None
        error = 0.0
        for call in (calls.fresh, calls.out):
            if call:
                case.out.fill(np.nan)
                arrays = list(calls.arrays(call()))[: len(truth)]
                if call is calls.out:
                    arrays[0] = case.out
                error = max(error, *(_difference(*pair) for pair in zip(arrays, truth, strict=True)))
    except Exception as failure:  # a peer's own: reported, so that the others are still timed
        line.failures[player.name] = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return None
    line.errors[player.name] = error
    tolerance = TOLERANCE[case.x.dtype.name]
    if error <= tolerance:
        return calls
    line.failures[player.name] = f"differs from float64 by {error:.1e} (tolerance {tolerance:.0e})"
    return None


def _difference(array, truth):
    """Largest difference as a share of the largest true number; infinity for NaN or another size."""
    if array.size != truth.size:
        return math.inf
    largest = max(1.0, np.abs(truth).max())
    error = float(np.abs(array.reshape(truth.shape) - truth).max() / largest)
    return math.inf if math.isnan(error) else error
