"""The measurement of `cbnorm bench`: everyone checked against float64, then timed in turn on the same arrays."""

import math
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from random import Random
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np

from cbnorm._cli.bench.cases import Case
from cbnorm._cli.bench.peers import PEERS
from cbnorm._cli.bench.peers.cbnorm import Cbnorm
from cbnorm._cli.bench.peers.numpy import NumPy, NumPyCopy
from cbnorm._cli.bench.peers.peer import Peer
from cbnorm._cli.bench.peers.torch import TorchCopy
from cbnorm._config import show_config

US, COPY = "cbnorm", "copy"

# Largest difference from the formulas in float64 that counts as agreement, as a share of the largest number
# (of 1 at least): too tight for a wrong formula, loose enough for NumPy, whose float32 sum of three million
# numbers around 1 is off by 1e-3.
TOLERANCE = {"float32": 5e-3, "float64": 1e-10}
LEAST_RUNS = 5
SPINNING = 0.005  # seconds after a call in which threads of OpenMP or another pool may still wait for work


class Contestant(NamedTuple):
    """A call to time, without arguments, and the pool whose threads it runs on."""

    call: Callable
    pool: str


@dataclass
class Line:
    """What was found for one operation on one shape."""

    operation: str
    shape: str
    sizes: tuple
    bytes_moved: int
    seconds: dict = field(default_factory=dict)  # name -> {"fresh": s, "out": s}, the minima; copy: {"out": s}
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
    def share_of_limit(self):
        """Speed of cbnorm with out= as a fraction of that of the copy."""
        ours = self.seconds.get(US)
        return self.seconds[COPY]["out"] / ours["out"] if ours else None


@dataclass
class Results:
    """All that the table, the JSON file and the picture show."""

    dtype: str
    num_threads: int
    budget: float
    peers: tuple
    notes: dict  # peer -> what its numbers leave out
    copy: str  # how the limit was measured
    machine: dict
    versions: dict
    lines: list

    @property
    def agrees(self):
        """Whether cbnorm itself came close enough to float64 on every line."""
        return not any(US in line.failures for line in self.lines)


def run(plan, peers, dtype, num_threads, budget, progress=None):
    """Time cbnorm and its peers.

    Parameters
    ----------
    plan : sequence of (str, Shape)
        The lines: names of `cases.OPERATIONS`, each with a shape.
    peers : sequence of str
        Names of `peers.PEERS`.
    dtype : {"float32", "float64"}
        Of all arrays.
    num_threads : int
        For everyone who can use more than one.
    budget : float
        Seconds for the timing of one line; five calls of each are made in any case.
    progress : callable, optional
        Called with the share done, 0 to 1, and a few words.

    Returns
    -------
    Results
    """
    progress = progress or (lambda done, words: None)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with ExitStack() as stack:
        # cbnorm first: who loads OpenMP first decides which one the process has.
        players = [stack.enter_context(closing(each(num_threads))) for each in (Cbnorm, *map(PEERS.get, peers))]
        copy = stack.enter_context(closing((TorchCopy if find_spec("torch") else NumPyCopy)(num_threads)))
        lines = []
        for index, (operation, shape) in enumerate(plan):
            progress(index / len(plan), f"{operation} {shape}")
            lines.append(_measure(operation, shape, players, copy, dtype, budget))
        progress(1.0, "done")
        config = show_config("dicts")
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        return Results(
            dtype=dtype,
            num_threads=num_threads,
            budget=budget,
            peers=tuple(peers),
            notes={player.name: player.note for player in players if player.note},
            copy=copy.words,
            machine={name: config[name] for name in ("cpu", "kernels", "openmp")} | {"load": load},
            versions=versions | {player.name: player.version() for player in players},
            lines=lines,
        )


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
    for (name, kind), (seconds, runs) in interleave(contestants, budget).items():
        line.seconds.setdefault(name, {})[kind] = seconds
        line.runs.setdefault(name, {})[kind] = runs
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


def interleave(contestants, budget):
    """Time calls in turn: in rounds of random order, so that each meets every load and cache the others leave.

    Who has had more than the average time sits the round out, so that slow ones do not use up the budget.
    Threads of a pool go on spinning for a while after a call and would slow those of another one: these
    wait until that is over, and then wake their own with a call that does not count.

    Parameters
    ----------
    contestants : dict of Contestant
        By any key.
    budget : float
        Seconds for all together.

    Returns
    -------
    dict of (float, int)
        Seconds of the fastest call, and how many were made.
    """
    best, spent, runs = (dict.fromkeys(contestants, nothing) for nothing in (math.inf, 0.0, 0))
    pools = sorted({contestant.pool for contestant in contestants.values()})
    shuffled = Random(0)
    end = perf_counter() + budget
    for index in count():
        if index >= LEAST_RUNS and perf_counter() >= end:
            break
        average = sum(spent.values()) / len(spent)
        for pool in shuffled.sample(pools, len(pools)):
            keys = [key for key, contestant in contestants.items() if contestant.pool == pool]
            keys = [key for key in keys if index < LEAST_RUNS or spent[key] <= average]
            if keys and len(pools) > 1:
                sleep(SPINNING)
                contestants[keys[0]].call()
            for key in shuffled.sample(keys, len(keys)):
                call = contestants[key].call
                start = perf_counter()
                call()
                seconds = perf_counter() - start
                best[key] = min(best[key], seconds)
                runs[key] += 1
                spent[key] = runs[key] * best[key]  # what interrupts one call is not held against it
    return {key: (best[key], runs[key]) for key in contestants}
