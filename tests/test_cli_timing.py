"""The clock of `cbnorm bench`: turns, the fastest call, the median."""

import itertools
import time
from functools import partial
from statistics import median

import pytest

from cbnorm._cli.bench import timing


def test_slow_ones_do_not_use_up_the_budget():
    seconds = {"slow": 0.02, "fast": 0.0002}
    calls = {name: partial(time.sleep, each) for name, each in seconds.items()}
    found = timing.interleave({name: timing.Contestant(call, "openmp") for name, call in calls.items()}, 0.3)
    assert found["slow"].fastest >= 0.02 > found["fast"].fastest >= 0.0002
    assert found["slow"].runs >= timing.LEAST_RUNS
    assert found["fast"].runs > 5 * found["slow"].runs


def test_pools_wait_for_one_another():
    calls = {"a": [], "b": []}
    contestants = {
        name: timing.Contestant(lambda times=times: times.append(time.perf_counter()), name)
        for name, times in calls.items()
    }
    assert {times.runs for times in timing.interleave(contestants, 1e-6).values()} == {timing.LEAST_RUNS}
    both = sorted((moment, name) for name, times in calls.items() for moment in times)
    assert len(both) == 2 * 2 * timing.LEAST_RUNS  # one that counts and one that does not
    changes = [(first, second) for first, second in itertools.pairwise(both) if first[1] != second[1]]
    assert min(second[0] - first[0] for first, second in changes) >= timing.SPINNING


@pytest.mark.parametrize("number", [1, 2, 3, 1000])
def test_the_median_and_the_fastest_of_all_calls(number):
    seconds = [((7 * i) % number + 1) * 1e-6 for i in range(number)]
    times = timing.Times()
    for each in seconds:
        times.add(each)
    assert (times.fastest, times.runs) == (min(seconds), number)
    assert times.median == median(seconds)


def test_the_median_of_many_calls_is_that_of_a_part_from_begin_to_end(monkeypatch):
    monkeypatch.setattr(timing, "KEPT", 50)
    times = timing.Times()
    for each in range(10_000):
        times.add(1.0 + each)
    assert times.runs == 10_000
    assert times.median == pytest.approx(5000, rel=0.02)
