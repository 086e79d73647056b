"""`cbnorm bench --company`: calls as they are made in use, with matmuls between them or busy processes beside.

Each contestant has a process of its own, since the waiting threads of one would be company for the others. They take
turns, under the same load; the mean counts, as a user waits for the slow calls too. This file is also what these
processes run.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from time import perf_counter, sleep

import numpy as np

from cbnorm._cli.bench.cases import Case, Shape
from cbnorm._cli.bench.measure import US
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
    machine: dict
    versions: dict
    lines: list


def run(plan, peers, dtype, num_threads, budget, busy, progress=None):
    """Time each line alone, between matmuls and beside busy processes.

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
        Seconds of one turn; everyone has three.
    busy : sequence of int
        How many processes compute beside.
    progress : callable, optional
        Called with the share done, 0 to 1, and a few words.

    Returns
    -------
    Results
    """
    progress = progress or (lambda done, words: None)
    companies = {"alone": (0, False), "between matmuls": (0, True)}
    companies |= {f"beside {count} busy": (count, False) for count in busy}
    lines, versions = [], {}
    for index, (operation, shape) in enumerate(plan):
        with ExitStack() as stack:
            contestants = {}
            for name in (US, ONE_THREAD, *peers):
                threads = 1 if name == ONE_THREAD else num_threads
                contestant = Contestant(name.partition(",")[0], operation, str(shape), dtype, threads)
                contestants[name] = stack.enter_context(contestant)
            contestants = {name: each for name, each in contestants.items() if each.version}
            versions |= {name: each.version for name, each in contestants.items() if name != ONE_THREAD}
            for number, (company, (count, matmul)) in enumerate(companies.items()):
                progress((index + number / len(companies)) / len(plan), f"{operation} {shape} {company}")
                lines.append(Line(operation, str(shape), company, _means(contestants, budget, count, matmul)))
    progress(1.0, "done")
    config = show_config("dicts")
    return Results(
        dtype=dtype,
        num_threads=num_threads,
        budget=budget,
        peers=tuple(peers),
        machine={name: config[name] for name in ("cpu", "kernels", "openmp")},
        versions=versions,
        lines=lines,
    )


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
    """A process that ends with its block."""

    def __exit__(self, *error):
        self.kill()
        super().__exit__(*error)


class Contestant:
    """Someone's calls, in a process of their own that makes them when told to."""

    def __init__(self, name, *what):
        self.name = name
        command = [sys.executable, "-m", __name__, name, *map(str, what)]
        self.process = _Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        self.process.__enter__()
        self.version = self._answer()  # None where it cannot do what is asked
        return self

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def __exit__(self, *error):
        return self.process.__exit__(*error)

    def take_turn(self, seconds, matmul):
        """Call for so long; returns how many calls were made and the seconds spent in them."""
        print(json.dumps([seconds, matmul]), file=self.process.stdin, flush=True)
        return self._answer()


def serve(name, operation, shape, dtype, num_threads):
    """Be such a process."""
    case = Case.make(operation, Shape.parse(shape), np.dtype(dtype))
    peer = {**PEERS, US: Cbnorm}[name](int(num_threads))
    calls = peer.calls(case)
    print(json.dumps(calls and peer.version()), flush=True)
    if calls is None:
        return
    call, matmul = calls.out or calls.fresh, peer.matmul(case)
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
    serve(*sys.argv[1:])
