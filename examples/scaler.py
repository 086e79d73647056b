"""cbnorm.sklearn.StandardScaler beside scikit-learn's: time and memory of fit and transform, what is left of a mean.

Usage: python examples/scaler.py [rows columns dtype]...
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import preprocessing

from cbnorm.sklearn import StandardScaler

CASES = ["10000", "100", "float64", "1000000", "64", "float32", "200000", "256", "float32", "1000000", "256", "float32"]


def best(functions: list[Callable[[], object]], seconds: float = 2.0) -> list[float]:
    """The shortest time of each, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]


def peak(function: Callable[[], object]) -> float:
    """MB that a call takes at most."""
    tracemalloc.start()
    function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


def compare(X: NDArray[Any]) -> None:
    """Print a line for each method."""
    ours, theirs, place = StandardScaler().fit(X), preprocessing.StandardScaler().fit(X), X.copy()
    for name, mine, other in (
        ("fit", lambda: ours.fit(X), lambda: theirs.fit(X)),
        ("transform", lambda: ours.transform(X), lambda: theirs.transform(X)),
        ("fit_transform", lambda: ours.fit_transform(X), lambda: theirs.fit_transform(X)),
        ("in place", lambda: ours.transform(place, copy=False), lambda: theirs.transform(place, copy=False)),
    ):
        a, b = best([mine, other])
        print(f"  {name:14}{a * 1e3:9.2f}{peak(mine):8.1f}{b * 1e3:10.2f}{peak(other):8.1f}{b / a:8.1f}")
    for scaler, name in ((ours, "cbnorm"), (theirs, "scikit-learn")):
        left = np.abs(np.asarray(scaler.transform(X)).mean(axis=0, dtype=np.float64)).max()
        print(f"  largest mean that is left by {name}: {left:.1e}")


def main(arguments: list[str]) -> None:
    """Compare each case."""
    for rows, columns, dtype in zip(*[iter(arguments or CASES)] * 3, strict=True):
        print(f"{rows} x {columns} {dtype}: ms, MB of cbnorm; ms, MB of scikit-learn; ratio of the times")
        numbers = np.random.default_rng(0).standard_normal((int(rows), int(columns)), np.float32)
        compare(numbers.astype(dtype) + np.dtype(dtype).type(1000))


if __name__ == "__main__":
    main(sys.argv[1:])
