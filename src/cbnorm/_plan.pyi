"""What type checkers see of `_plan.pyx`: a cache holds a plan."""

import numpy as np
from numpy.typing import NDArray

class Plan:
    outer: int
    channels: int
    inner: int
    size: int
    groups: int
    samples: int
    sets: int
    axis: int
    shape: tuple[int, ...]
    statistics_shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    centred: bool
    statistics_given: bool
    count: float
    eps: float
    weights: NDArray[np.float64] | None
    heaviest: float
    omit: bool
    ddof: float
    kinds: int
    def count_by(
        self, weights: NDArray[np.float64] | None, total: float, heaviest: float, omit: bool = False, ddof: float = 0
    ) -> Plan: ...
    def of_part(self, total: float) -> Plan: ...
    def whole_count(self) -> int | float: ...
    def with_eps(self, eps: float) -> Plan: ...

def plan_channels(
    shape: tuple[int, ...], axis: int, eps: float = 0.0, statistics_given: bool = False, count: float | None = None
) -> Plan: ...
def plan_rows(shape: tuple[int, ...], axis: int, eps: float = 0.0, centred: bool = True) -> Plan: ...
def plan_groups(shape: tuple[int, ...], groups: int, eps: float = 0.0, axis: int = 1) -> Plan: ...
