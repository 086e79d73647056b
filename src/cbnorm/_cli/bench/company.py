"""`cbnorm bench --company`: calls as they are made in use, with matmuls between them or busy processes beside.

Each contestant has a process of its own, since the waiting threads of one would be company for the others. They take
turns, under the same load; the mean counts, as a user waits for the slow calls too. This file is also what these
processes run.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random
from time import perf_counter, sleep

import numpy as np

import cbnorm
from cbnorm._cli.bench.cases import OPERATIONS, Case, Shape
from cbnorm._cli.bench.expected import import_seconds, line_bytes, line_seconds, load
from cbnorm._cli.bench.measure import US, own_limit
from cbnorm._cli.bench.peers import PEERS
from cbnorm._cli.bench.peers.cbnorm import Cbnorm
from cbnorm._config import show_config

ONE_THREAD = "cbnorm, 1 thread"
TURNS = 3
REST = 0.06  # seconds before a turn, in which the threads of the one before fall asleep
BUSY = "import os, sys\nparent = int(sys.argv[1])\nwhile os.getppid() == parent: pass"


@dataclass
class Line:
    """One operation on one shape in one company."""

    operation: str
    shape: str
    company: str
    seconds: dict  # name -> mean of a call


@dataclass
class Results:
    """All that the table and the JSON file show."""

    dtype: str
    num_threads: int
    budget: float
    peers: tuple
    notes: dict
    machine: dict
    versions: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)
    failures: dict = field(default_factory=dict)  # who was not timed on a line, and why
    left_out: list = field(default_factory=list)  # lines that could not be measured, and why
    interrupted: bool = False
    agrees: bool = True  # nobody is checked


class Company:
    """Times each line alone, between matmuls and beside busy processes, as `measure.Measurement` times it alone.

    Parameters
    ----------
    peers : sequence of str
        Names of `peers.PEERS`.
    dtype : {"float32", "float64"}
        Of all arrays.
    num_threads : int
        For everyone who can use more than one.
    budget : float
        Seconds of one turn; everyone has three.
    busy : sequence of int
        How many processes compute beside.

    Attributes
    ----------
    results : Results
        What was found so far.
    """

    def __init__(self, peers, dtype, num_threads, budget, busy):
        config = show_config("dicts")
        machine = {name: config[name] for name in ("cpu", "kernels", "openmp")} | {"load": load()}
        with cbnorm.threads(num_threads):
            notes = own_limit(num_threads)
        self.results = Results(dtype, num_threads, budget, tuple(peers), notes, machine)
        self._names = (US, ONE_THREAD, *peers)
        self._companies = {"alone": (0, False), "between matmuls": (0, True)}
        self._companies |= {f"beside {count} busy": (count, False) for count in busy}

    def expected_start(self, per_number):
        """Nothing is done before the first line."""
        return 0.0

    def expected(self, shape, per_number):
        """About how many seconds `add` takes, where a number costs `per_number` seconds."""
        starts = import_seconds(self.results.peers, per_number)
        arrays = line_seconds(shape, (), 0.0, per_number)
        turns = len(self._companies) * (TURNS + 1) * REST + len(self._companies) * (TURNS + 0.1) * self.results.budget
        return starts + len(self._names) * (arrays + turns)

    def expected_bytes(self, operation, shape):
        """Memory that `add` takes at its peak: all are there at once, and check nothing."""
        return len(self._names) * line_bytes(OPERATIONS[operation], shape, self.results.dtype)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def add(self, operation, shape):
        """Measure the lines of one more shape; a ChildProcessError is raised where cbnorm itself cannot be called."""
        results = self.results
        with ExitStack() as stack:
            contestants = {}
            for name in self._names:
                threads = 1 if name == ONE_THREAD else results.num_threads
                what = (name.partition(",")[0], operation, str(shape), results.dtype, threads)
                contestant = stack.enter_context(Contestant(*what))
                contestant.begin()
                if contestant.failure and name == US:
                    raise ChildProcessError(contestant.failure)
                if contestant.failure:
                    results.failures[f"{name}, {operation} {shape}"] = contestant.failure
                elif contestant.version:
                    contestants[name] = contestant
                    results.versions[contestant.name] = contestant.version
            for company, (count, matmul) in self._companies.items():
                means = _means(contestants, results.budget, count, matmul)
                results.lines.append(Line(operation, str(shape), company, means))


def _means(contestants, budget, busy, matmul):
    """Mean seconds of a call by contestant, after a turn that does not count."""
    found = {name: [] for name in contestants}
    shuffled = Random(0)
    with ExitStack() as stack:
        for _ in range(busy):
            stack.enter_context(_Process([sys.executable, "-c", BUSY, str(os.getpid())]))
        for turn in range(TURNS + 1):
            for name in shuffled.sample(list(contestants), len(contestants)):
                sleep(REST)
                calls, seconds = contestants[name].take_turn(budget if turn else 0.1 * budget, matmul)
                if turn:
                    found[name].append((calls, seconds))
    return {name: sum(s for _, s in turns) / sum(c for c, _ in turns) for name, turns in found.items()}


class _Process(subprocess.Popen):
    """A process that ends with its block, and not by the terminal's Ctrl-C, which is ours to answer."""

    def __init__(self, command, **options):
        super().__init__(command, process_group=0, **options)

    def __exit__(self, *error):
        self.kill()
        with suppress(BrokenPipeError):  # it never read what was said last
            super().__exit__(*error)


class Contestant:
    """Someone's calls, in a process of their own that makes them when told to.

    Its `version` is None where it cannot do what is asked, its `failure` says what went wrong before the first call.
    """

    def __init__(self, name, *what):
        self.name = name
        command = [sys.executable, "-m", __name__, name, *map(str, what)]
        self.process = _Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        self.process.__enter__()
        return self

    def begin(self):
        """Wait until it is ready, or says why not."""
        answer = self._answer()
        self.version, self.failure = answer["version"], answer["failure"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the process of {self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def __exit__(self, *error):
        return self.process.__exit__(*error)

    def take_turn(self, seconds, matmul):
        """Call for so long; returns how many calls were made and the seconds spent in them."""
        with suppress(BrokenPipeError):  # it has ended: its answer tells
            print(json.dumps([seconds, matmul]), file=self.process.stdin, flush=True)
        return self._answer()


def serve(name, operation, shape, dtype, num_threads):
    """Be such a process."""
    version = failure = None
    try:
        case = Case.make(operation, Shape.parse(shape), np.dtype(dtype))
        peer = {**PEERS, US: Cbnorm}[name](int(num_threads))
        calls = peer.calls(case)
        if calls:
            call, matmul, version = calls.out or calls.fresh, peer.matmul(case), peer.version()
            call()
    except Exception as error:  # a peer's own: told, so that the others are still timed
        version, failure = None, f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps({"version": version, "failure": failure}), flush=True)
    if not version:
        return
    for line in sys.stdin:
        seconds, with_matmul = json.loads(line)
        made, spent, end = 0, 0.0, perf_counter() + seconds
        while made == 0 or perf_counter() < end:
            if with_matmul:
                matmul()
            start = perf_counter()
            call()
            spent += perf_counter() - start
            made += 1
        print(json.dumps([made, spent]), flush=True)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except BrokenPipeError:  # nobody waits for an answer any more
        os._exit(1)
