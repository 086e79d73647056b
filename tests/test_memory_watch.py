"""Where the machine or a control group is short of memory, nothing is kept for the next results."""

import sys
import time

import pytest
from pooled import MIB, array, bytes_kept, forward, meminfo
from processes import linux

import cbnorm
from cbnorm import _cgroup, _memory

pytestmark = [linux, pytest.mark.usefixtures("plenty")]

VERSION_1, VERSION_2 = "7:cpu:/\n4:memory:/job/step\n", "0::/job/step\n"


def frees_into_the_pool():
    """Whether a result that is freed, after the next look at the memory, is kept."""
    time.sleep(0.13)
    cbnorm.empty_pool()
    y = forward(array(1))
    del y
    return bytes_kept() > 0


@pytest.mark.parametrize(
    ("total", "available", "kept"),
    [
        (8192, 4096, True),
        (8192, 520, True),
        (8192, 500, False),
        (1024, 70, True),
        (1024, 60, False),
        (8, 3, True),
        (8, 1, False),  # what would be kept is 1 MiB
        (1024, 0, False),
    ],
)
def test_nothing_is_kept_where_the_machine_is_short_of_memory(total, available, kept, tmp_path):
    _memory.watch(meminfo(tmp_path, available * MIB), [], total * MIB)
    assert frees_into_the_pool() == kept


@pytest.mark.parametrize("limit", [1 << 40, sys.maxsize])
def test_a_limit_beyond_the_memory_limits_nothing(limit, tmp_path):
    _memory.watch(meminfo(tmp_path, 4096 * MIB), [], 8192 * MIB)
    cbnorm.set_pool_limit(limit)
    assert frees_into_the_pool()


def test_groups_that_cannot_be_watched_leave_the_others_watched(tmp_path, control_groups):
    groups = control_groups(VERSION_2, {"job/memory.max": MIB, "job/memory.current": MIB})
    limits = _cgroup.memory_limits(*groups)
    _memory.watch(meminfo(tmp_path, 4096 * MIB), limits + [(MIB, "x" * 2000, "x")] + limits * 9, 8192 * MIB)
    assert not frees_into_the_pool()


def test_what_is_kept_goes_once_memory_is_short_and_comes_back_with_it(tmp_path):
    results = [forward(array(1)) for _ in range(5)]
    del results[1:]
    assert bytes_kept() == 4 * MIB
    meminfo(tmp_path, 10 * MIB)
    time.sleep(0.13)
    del results
    assert bytes_kept() == 0
    assert not frees_into_the_pool()
    meminfo(tmp_path, 4096 * MIB)
    assert frees_into_the_pool()


@pytest.mark.parametrize(("usage", "cached", "kept"), [(100, 0, True), (970, 0, False), (970, 500, True)])
@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_kept_where_a_control_group_is_short_of_memory(
    version, usage, cached, kept, tmp_path, control_groups
):
    top = "memory/job/memory." if version == 1 else "job/memory."
    names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    stat = f"anon 12\n{'total_' * (version == 1)}inactive_file {cached * MIB}\nslab 5"
    files = {top + names[0]: 1024 * MIB, top + names[1]: usage * MIB, top + "stat": stat}
    limits = _cgroup.memory_limits(*control_groups(VERSION_1 if version == 1 else VERSION_2, files))
    _memory.watch(meminfo(tmp_path, 4096 * MIB), limits, 1024 * MIB)
    assert frees_into_the_pool() == kept
