"""The mean time of a training step in NumPy, with the threads that cbnorm chooses and with others: docs/performance.md.

    python examples/training_step.py [SECONDS [SHAPE ...]]

A step is `z = x @ W`, batch normalization, ReLU; a full one has the backward pass and its two products too. Each
setting has a process of its own, and they take turns of so many seconds.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from math import prod
from typing import IO

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "one thread": {"CBNORM_NUM_THREADS": "1"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
SHAPES = ("64x256", "256x1024", "4096x512", "16384x1024", "32x64x28x28")
TURNS = 5
REST = 0.06  # seconds, in which the threads of the process before fall asleep


def make_step(text: str) -> Callable[[], float]:
    """The function that makes a step and returns the seconds in normalization."""
    import numpy as np
    from numpy.typing import NDArray

    import cbnorm

    sizes, _, full = text.partition(":")
    shape = tuple(map(int, sizes.split("x")))
    rng = np.random.default_rng(0)
    channels, inner = shape[1], prod(shape[2:])
    x, dout = rng.standard_normal((2, *shape), np.float32)
    weights = rng.standard_normal((channels, channels), np.float32) / np.float32(channels**0.5)
    y, dx = np.ones_like(x), np.ones_like(x)
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)

    def product(values: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        if inner == 1:
            return values @ matrix
        return (matrix @ values.reshape(-1, channels, inner)).reshape(shape)

    def step() -> float:
        z = product(x, weights)
        start = time.perf_counter()
        cache = cbnorm.batchnorm_forward(z, gamma, beta, out=y)[1]
        seconds = time.perf_counter() - start
        np.maximum(y, 0, out=y)
        if full:
            start = time.perf_counter()
            cbnorm.batchnorm_backward(dout, cache, out=dx)
            seconds += time.perf_counter() - start
            product(dx, weights.T)
            np.tensordot(x, dx, (rows := [0, *range(2, x.ndim)], rows))
        return seconds

    return step


def serve() -> None:
    """Make steps as told on standard input: how long, of which kind."""
    steps: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        seconds, text = line.split()
        if text not in steps:
            steps[text] = make_step(text)
            steps[text]()
        step = steps[text]
        made, spent, start = 0, 0.0, time.perf_counter()
        while made == 0 or time.perf_counter() - start < float(seconds):
            spent += step()
            made += 1
        print(time.perf_counter() - start, spent, made, flush=True)


def stream(file: IO[str] | None) -> IO[str]:
    """One end of a pipe, which is there."""
    assert file is not None
    return file


def main(seconds: float, shapes: Sequence[str]) -> None:
    """Print a line for each kind of step."""
    processes = {}
    for name, settings in SETTINGS.items():
        command = [sys.executable, __file__, "serve"]
        pipe = subprocess.PIPE
        processes[name] = subprocess.Popen(command, env={**os.environ, **settings}, stdin=pipe, stdout=pipe, text=True)
    print(
        "step, ms (of it in normalization)".ljust(36),
        *(name.center(18) for name in SETTINGS),
        "default / best of others",
    )
    for text in (f"{shape}{kind}" for shape in shapes for kind in ("", ":full")):
        totals = {name: [0.0, 0.0, 0] for name in processes}
        for turn in range(TURNS + 1):
            for name in random.sample(list(processes), len(processes)):
                time.sleep(REST)
                print(seconds if turn else 0.1 * seconds, text, file=stream(processes[name].stdin), flush=True)
                found = map(float, stream(processes[name].stdout).readline().split())
                if turn:
                    totals[name] = [total + number for total, number in zip(totals[name], found, strict=True)]
        steps = {name: 1e3 * total / made for name, (total, _, made) in totals.items()}
        norms = {name: 1e3 * spent / made for name, (_, spent, made) in totals.items()}
        ratio = steps["default"] / min(steps["one thread"], steps["passive"])
        cells = (f"{steps[name]:9.3f} ({norms[name]:.3f})".ljust(18) for name in SETTINGS)
        print(text.replace(":", ", ").ljust(36), *cells, f"{ratio:.3f}", flush=True)
    for process in processes.values():
        process.kill()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 1.0, sys.argv[2:] or SHAPES)
