"""How many threads calls use where the user does not say: environment, affinity, control groups, other libraries."""

import os

import pytest
from processes import CPUS, STARTED, needs_openmp, needs_two_cpus, run_python, words

import cbnorm
from cbnorm import _threads

PRINT = "import cbnorm; print(cbnorm.get_num_threads())"


@pytest.fixture
def seven_processors(monkeypatch):
    """A process with so many, no quota, and nothing in its environment."""
    for name, value in {"_global": None, "_variable": None, "_quota_until": 0.0, "_cpus": 8}.items():
        monkeypatch.setattr(_threads, name, value)
    monkeypatch.setattr(_threads, "processors", lambda: 7)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: None)


@needs_openmp
@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({"CBNORM_NUM_THREADS": "3"}, 3),
        ({"CBNORM_NUM_THREADS": " 1024 "}, 1024),
        ({"CBNORM_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"CBNORM_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": " 5 , 2"}, 5),
        ({"OMP_NUM_THREADS": "99999"}, 1024),
        # What OpenMP would not take counts as not set.
        *(({"OMP_NUM_THREADS": text}, None) for text in ("", "0", "-2", "many")),
        ({}, None),
    ],
)
def test_environment(environment, number, seven_processors, monkeypatch):
    monkeypatch.setattr(_threads, "_global", _threads._own_variable(environment))
    monkeypatch.setattr(_threads, "_variable", _threads._openmp_variable(environment))
    assert cbnorm.get_num_threads() == (number or 7)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "1025", "3,2", "9" * 30])
def test_bad_environment(text):
    with pytest.raises(ValueError, match=f"^CBNORM_NUM_THREADS: expected 1 to 1024, got '{text}'$"):
        _threads._own_variable({"CBNORM_NUM_THREADS": text})


@needs_openmp
def test_environment_is_read_at_import():
    assert run_python(PRINT, CBNORM_NUM_THREADS="3").stdout == "3\n"
    assert run_python(PRINT, OMP_NUM_THREADS="5").stdout == "5\n"
    failed = run_python(PRINT, status=1, CBNORM_NUM_THREADS="many")
    assert "ValueError: CBNORM_NUM_THREADS: expected 1 to 1024, got 'many'" in failed.stderr


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_no_more_threads_than_the_cpus_of_the_process():
    pin = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    assert run_python(pin + PRINT).stdout == "1\n"
    assert run_python(pin + PRINT, CBNORM_NUM_THREADS="2").stdout == "2\n"


@needs_openmp
@pytest.mark.parametrize(("quota", "number"), [(None, 7), (3, 3), (9, 7)])
def test_no_more_threads_than_the_control_group_allows(quota, number, seven_processors, monkeypatch):
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: quota)
    assert cbnorm.get_num_threads() == number


@needs_openmp
def test_a_quota_that_changes_is_seen_within_a_second(seven_processors, monkeypatch):
    now, quotas = 100.0, iter([3, 2])
    monkeypatch.setattr(_threads, "monotonic", lambda: now)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: next(quotas))
    assert [cbnorm.get_num_threads() for _ in range(5)] == [3] * 5
    now += 1
    assert [cbnorm.get_num_threads() for _ in range(5)] == [2] * 5


@needs_two_cpus
@pytest.mark.parametrize("user_api", [None, "openmp"])
@pytest.mark.parametrize("own", ["", "cbnorm.set_num_threads(8)"])
def test_a_limit_by_threadpoolctl_holds_for_the_calls_in_it(own, user_api):
    code = STARTED + (
        f"from threadpoolctl import threadpool_limits\n{own}\n"
        f"with threadpool_limits(1, user_api={user_api!r}):\n"
        "    print(cbnorm.get_num_threads(), len(started()))\n"
        "    with cbnorm.threads(8):\n"
        "        print(cbnorm.get_num_threads(), len(started()))\n"
        "print(cbnorm.get_num_threads(), len(started()))\n"
    )
    number = 8 if own else len(CPUS)
    assert words(code) == ["1", "0"] * 2 + [str(number), str(min(number, 8) - 1)]


LIMITS = (
    "from threadpoolctl import threadpool_limits\n"
    "for limit in {limits}:\n"
    "    with threadpool_limits(limit):\n"
    "        print(cbnorm.get_num_threads())\n"
    "print(cbnorm.get_num_threads())\n"
)


@needs_two_cpus
def test_a_limit_lowers_the_number_and_raises_none_but_that_of_openmp():
    code = STARTED + LIMITS.format(limits=(1, 2, 64))
    assert words(code) == ["1", "2", str(len(CPUS)), str(len(CPUS))]
    # What the environment told OpenMP is OpenMP's own, up to what the process may use.
    assert words(code, OMP_NUM_THREADS="1") == ["1", "2", str(len(CPUS)), "1"]
    code = STARTED + LIMITS.format(limits=(1, 64))
    assert words(code, CBNORM_NUM_THREADS="3") == ["1", "3", "3"]


@needs_two_cpus
def test_joblib_limits_its_processes():
    pytest.importorskip("joblib")
    code = (
        "from joblib import Parallel, delayed, parallel_config\n"
        "def number():\n"
        "    import cbnorm\n"
        "    return cbnorm.get_num_threads()\n"
        "for inner in (1, 2):\n"
        "    with parallel_config('loky', inner_max_num_threads=inner):\n"
        "        print(*Parallel(n_jobs=2)(delayed(number)() for _ in range(2)))\n"
        "import cbnorm\n"
        "for backend in ('loky', 'multiprocessing', 'threading'):\n"
        "    print(*Parallel(n_jobs=2, backend=backend)(delayed(number)() for _ in range(2)))\n"
    )
    by_default, of_the_process = str(max(1, os.cpu_count() // 2)), str(len(CPUS))
    loky, forked, threading = [by_default] * 2, ["1"] * 2, [of_the_process] * 2  # its threads have no limit
    assert words(code) == ["1", "1", "2", "2", *loky, *forked, *threading]


@needs_two_cpus
def test_a_call_that_is_large_enough_for_two_threads_has_them():
    code = (
        STARTED + "for size in (32_767, 32_768):\n    x = np.ones((size, 1), np.float32)\n    print(len(started()))\n"
    )
    assert words(code) == ["0", "1"]


@needs_two_cpus
def test_an_affinity_that_changes_after_import_is_seen():
    code = STARTED + (
        "cpus = os.sched_getaffinity(0)\n"
        "for each in ([min(cpus)], cpus):\n"
        "    os.sched_setaffinity(0, each)\n"
        "    print(cbnorm.get_num_threads(), len(started()))\n"
    )
    number = len(CPUS)
    assert words(code) == ["1", "0", str(number), str(number - 1)]
    # An explicit number stays.
    assert words(code, CBNORM_NUM_THREADS="2") == ["2", "1", "2", "0"]


@needs_two_cpus
def test_info_says_what_limits_the_number():
    show = "cbnorm.show_config(); print(cbnorm.show_config('dicts')['threads'])"
    cases = [
        ("", {}, f"{len(CPUS)}" if len(CPUS) == os.cpu_count() else f"{len(CPUS)} (CPU affinity)"),
        ("", {"OMP_NUM_THREADS": "3"}, "3 (OMP_NUM_THREADS)"),
        ("", {"CBNORM_NUM_THREADS": "3"}, "3 (CBNORM_NUM_THREADS)"),
        ("cbnorm.set_num_threads(5)", {}, "5 (set_num_threads)"),
        (f"os.sched_setaffinity(0, [{CPUS[:1]}[0]])", {}, "1 (CPU affinity)"),
        ("from threadpoolctl import threadpool_limits; limit = threadpool_limits(1)", {},
         "1 (omp_set_num_threads, as by threadpoolctl)"),
        ("pid = os.fork(); pid and os._exit(os.waitpid(pid, 0)[1])", {}, "1 (forked after cbnorm was imported)"),
    ]  # fmt: skip
    for code, environment, threads in cases:
        *lines, number = run_python(f"import os, cbnorm; {code}\n{show}", **environment).stdout.splitlines()
        assert f"threads  {threads}" in lines
        assert number == threads.split()[0]
