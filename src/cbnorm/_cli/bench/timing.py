"""The clock of `cbnorm bench`: calls in turn, of each the fastest and the median."""

import math
from array import array
from collections.abc import Callable
from itertools import count
from random import Random
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

LEAST_RUNS = 5
SPINNING = 0.005  # seconds after a call in which threads of OpenMP or another pool may still wait for work
KEPT = 50_000  # calls that the median is of, at most twice as many


class Contestant(NamedTuple):
    """A call to time, without arguments, and the pool whose threads it runs on."""

    call: Callable
    pool: str


class Times:
    """The seconds of one contestant's calls: the fastest, how many, and enough of them for the median."""

    def __init__(self):
        self.fastest, self.runs = math.inf, 0
        self._sample, self._stride = array("d"), 1

    def add(self, seconds):
        """Take in one call."""
        self.fastest = min(self.fastest, seconds)
        if self.runs % self._stride == 0:
            self._sample.append(seconds)
            if len(self._sample) == 2 * KEPT:  # from now on every other one
                del self._sample[1::2]
                self._stride *= 2
        self.runs += 1

    @property
    def median(self):
        """The median call, which what else runs on the machine slows down."""
        return median(self._sample)


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
    dict of Times
        By the same keys.
    """
    found = {key: Times() for key in contestants}
    spent = dict.fromkeys(contestants, 0.0)
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
                times = found[key]
                times.add(seconds)
                spent[key] = times.runs * times.fastest  # what interrupts one call is not held against it
    return found
