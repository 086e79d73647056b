"""What control groups of either version allow the process: CPUs and memory, of its group and those above."""

import pytest

from cbnorm import _cgroup, _threads

# What /proc/self/cgroup holds, with the files of the groups, and what they allow.
CPU_1 = "7:memory:/job\n4:cpu,cpuacct:/job/step\n"
MEMORY_1 = "7:cpu:/\n4:memory:/job/step\n"
ONE_GROUP = "0::/job/step\n"  # version 2
HERE = "cpu/job/step/cpu.cfs_"


@pytest.mark.parametrize(
    ("membership", "files", "number"),
    [
        (ONE_GROUP, {}, None),
        (ONE_GROUP, {"job/step/cpu.max": "max 100000"}, None),
        (ONE_GROUP, {"job/step/cpu.max": "200000 100000"}, 2),
        (ONE_GROUP, {"job/step/cpu.max": "50000 100000"}, 1),
        (ONE_GROUP, {"job/step/cpu.max": "250000 100000"}, 3),
        (ONE_GROUP, {"job/step/cpu.max": "400000 100000", "job/cpu.max": "3000 1000"}, 3),
        (ONE_GROUP, {"job/step/cpu.max": "max 100000", "cpu.max": "500000 100000"}, 5),
        (ONE_GROUP, {"job/step/cpu.max": "", "job/cpu.max": "text 1", "cpu.max": "200000 100000"}, 2),
        # Other groups, and what is not among the groups at all.
        (ONE_GROUP, {"other/cpu.max": "100000 100000", "../cpu.max": "100000 100000"}, None),
        (CPU_1, {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "600000 100000"}, 6),
        ("0::/../..\n", {"cpu.max": "600000 100000"}, 6),
        (CPU_1, {HERE + "quota_us": "-1", HERE + "period_us": "100000"}, None),
        (CPU_1, {HERE + "quota_us": "150000", HERE + "period_us": "100000"}, 2),
        (CPU_1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (CPU_1, {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"}, 4),
        (CPU_1, {HERE + "quota_us": "150000"}, None),
        # Both versions at once, the second without a CPU controller.
        (CPU_1 + ONE_GROUP, {HERE + "quota_us": "150000", HERE + "period_us": "50000"}, 3),
        ("5:cpuset:/job\n", {"cpu/job/cpu.cfs_quota_us": "1", "cpu/job/cpu.cfs_period_us": "1"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
        ("no such line\n", {"cpu.max": "100000 100000"}, None),
        (None, {"cpu.max": "100000 100000"}, None),
    ],
)
def test_cpus_that_control_groups_allow(membership, files, number, control_groups):
    assert _threads._cgroup_quota(*control_groups(membership, files)) == number


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        (ONE_GROUP, {}, []),
        (ONE_GROUP, {"job/step/memory.max": "max"}, []),
        (ONE_GROUP, {"job/step/memory.max": "1000", "job/memory.max": "max", "memory.max": "3000"}, [1000, 3000]),
        (ONE_GROUP, {"other/memory.max": "1000", "../memory.max": "1000"}, []),
        (MEMORY_1, {"memory/job/memory.limit_in_bytes": "2000", "memory.limit_in_bytes": "1"}, [2000]),
        (MEMORY_1, {"memory/memory.limit_in_bytes": "2000", "job/step/memory.max": "1000"}, [2000]),
        ("no such line\n", {"memory.max": "1000"}, []),
    ],
)
def test_bytes_that_control_groups_allow(membership, files, limits, control_groups):
    assert [limit for limit, *_ in _cgroup.memory_limits(*control_groups(membership, files))] == limits
