"""What type checkers see of `_plan.pyx`: a cache holds a plan."""

class Plan:
    outer: int
    channels: int
    inner: int
    size: int
    groups: int
    sets: int
    axis: int
    shape: tuple[int, ...]
    statistics_shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    centred: bool
    statistics_given: bool
    count: float
    eps: float
    def with_eps(self, eps: float) -> Plan: ...

def plan_channels(
    shape: tuple[int, ...], axis: int, eps: float = 0.0, statistics_given: bool = False, count: float | None = None
) -> Plan: ...
def plan_rows(shape: tuple[int, ...], axis: int, eps: float = 0.0, centred: bool = True) -> Plan: ...
def plan_groups(shape: tuple[int, ...], groups: int, eps: float = 0.0) -> Plan: ...
