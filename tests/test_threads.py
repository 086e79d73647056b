"""How many threads calls use: what the user says, what the process is given, one after a fork."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cbnorm
from cbnorm import _threads

needs_openmp = pytest.mark.skipif(not _threads.openmp, reason="built without OpenMP")

# More numbers than eight threads need for a share each.
LARGE = (2_003, 151)


@pytest.fixture(autouse=True)
def number_is_restored():
    before = _threads._global
    yield
    _threads._global = before


def large_arrays():
    random = np.random.default_rng(0)
    return random.standard_normal(LARGE, np.float32), random.standard_normal(LARGE, np.float32)


def normalize(x, dout):
    """The bytes of all results of a forward and a backward call."""
    y, cache, _, _ = cbnorm.batchnorm_forward(x)
    return b"".join(part.tobytes() for part in (y, *cbnorm.batchnorm_backward(dout, cache)))


@needs_openmp
@pytest.mark.parametrize("number", [1, 2, 1024, np.int64(3), True])
def test_set_and_get(number):
    cbnorm.set_num_threads(number)
    assert cbnorm.get_num_threads() == number
    assert type(cbnorm.get_num_threads()) is int


@needs_openmp
@pytest.mark.parametrize(
    ("number", "error"),
    [
        *((number, ValueError) for number in (0, -1, 1025, 10**30)),
        *((number, TypeError) for number in (None, "2", 2.0, float("nan"), [2])),
    ],
)
def test_bad_numbers(number, error):
    cbnorm.set_num_threads(5)
    with pytest.raises(error, match=r"^num_threads: expected .*, got "):
        cbnorm.set_num_threads(number)
    with pytest.raises(error, match=r"^num_threads: expected .*, got "), cbnorm.threads(number):
        pytest.fail("the block was entered")
    assert cbnorm.get_num_threads() == 5


@needs_openmp
def test_blocks_nest_and_end_with_exceptions():
    def fail():
        with cbnorm.threads(7):
            raise KeyError(cbnorm.get_num_threads())

    cbnorm.set_num_threads(5)
    with cbnorm.threads(2):
        assert cbnorm.get_num_threads() == 2
        with pytest.raises(KeyError, match="7"):
            fail()
        assert cbnorm.get_num_threads() == 2
        cbnorm.set_num_threads(4)
        assert cbnorm.get_num_threads() == 2
    assert cbnorm.get_num_threads() == 4


@needs_openmp
def test_a_block_decorates_a_function():
    @cbnorm.threads(3)
    def number():
        return cbnorm.get_num_threads()

    cbnorm.set_num_threads(5)
    assert [number(), number(), cbnorm.get_num_threads()] == [3, 3, 5]


@needs_openmp
def test_the_number_of_a_block_is_not_taken_for_the_default(run_python):
    code = (
        "import numpy as np, cbnorm, os\n"
        "from cbnorm import _kernels, _threads\n"
        "before = cbnorm.get_num_threads()\n"
        "with cbnorm.threads(before + 1): inside = cbnorm.get_num_threads()\n"
        "print(inside - before, _threads.threads_for(10**6) - before)"
    )
    assert run_python(code).stdout == "1 0\n"


@needs_openmp
def test_a_block_is_for_its_python_thread_alone():
    cbnorm.set_num_threads(5)
    inside, leave = threading.Event(), threading.Event()

    def block():
        with cbnorm.threads(2):
            inside.set()
            assert leave.wait(30)
            return cbnorm.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(block)
        assert inside.wait(30)
        here = cbnorm.get_num_threads()
        leave.set()
        assert (here, other.result(30)) == (5, 2)
        # What is set for the process holds in threads that were started before.
        cbnorm.set_num_threads(6)
        assert pool.submit(cbnorm.get_num_threads).result(30) == 6


@pytest.fixture
def seven_processors(monkeypatch):
    """A process with so many, no quota, and nothing in its environment."""
    for name, value in {"_global": None, "_variable": None, "_quota_until": 0.0, "_cpus": 8}.items():
        monkeypatch.setattr(_threads, name, value)
    monkeypatch.setattr(_threads, "processors", lambda: 7)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: None)


PRINT = "import cbnorm; print(cbnorm.get_num_threads())"


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
def test_environment_is_read_at_import(run_python):
    assert run_python(PRINT, CBNORM_NUM_THREADS="3").stdout == "3\n"
    assert run_python(PRINT, OMP_NUM_THREADS="5").stdout == "5\n"
    failed = run_python(PRINT, status=1, CBNORM_NUM_THREADS="many")
    assert "ValueError: CBNORM_NUM_THREADS: expected 1 to 1024, got 'many'" in failed.stderr


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_no_more_threads_than_the_cpus_of_the_process(run_python):
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


# What /proc/self/cgroup holds, the files of the groups, and the CPUs they allow.
VERSION_1 = "7:memory:/job\n4:cpu,cpuacct:/job/step\n"
VERSION_2 = "0::/job/step\n"
HERE = "cpu/job/step/cpu.cfs_"


@pytest.mark.parametrize(
    ("membership", "files", "number"),
    [
        (VERSION_2, {}, None),
        (VERSION_2, {"job/step/cpu.max": "max 100000"}, None),
        (VERSION_2, {"job/step/cpu.max": "200000 100000"}, 2),
        (VERSION_2, {"job/step/cpu.max": "50000 100000"}, 1),
        (VERSION_2, {"job/step/cpu.max": "250000 100000"}, 3),
        (VERSION_2, {"job/step/cpu.max": "400000 100000", "job/cpu.max": "3000 1000"}, 3),
        (VERSION_2, {"job/step/cpu.max": "max 100000", "cpu.max": "500000 100000"}, 5),
        (VERSION_2, {"job/step/cpu.max": "", "job/cpu.max": "text 1", "cpu.max": "200000 100000"}, 2),
        # Other groups, and what is not among the groups at all.
        (VERSION_2, {"other/cpu.max": "100000 100000", "../cpu.max": "100000 100000"}, None),
        (VERSION_1, {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "600000 100000"}, 6),
        ("0::/../..\n", {"cpu.max": "600000 100000"}, 6),
        (VERSION_1, {HERE + "quota_us": "-1", HERE + "period_us": "100000"}, None),
        (VERSION_1, {HERE + "quota_us": "150000", HERE + "period_us": "100000"}, 2),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (VERSION_1, {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"}, 4),
        (VERSION_1, {HERE + "quota_us": "150000"}, None),
        # Both versions at once, the second without a CPU controller.
        (VERSION_1 + VERSION_2, {HERE + "quota_us": "150000", HERE + "period_us": "50000"}, 3),
        ("5:cpuset:/job\n", {"cpu/job/cpu.cfs_quota_us": "1", "cpu/job/cpu.cfs_period_us": "1"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
        ("no such line\n", {"cpu.max": "100000 100000"}, None),
        (None, {"cpu.max": "100000 100000"}, None),
    ],
)
def test_control_group_quota(membership, files, number, tmp_path):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    if membership is not None:
        (tmp_path / "self").write_text(membership)
    assert _threads._cgroup_quota(root, tmp_path / "self") == number


@needs_openmp
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # from JAX, where an earlier test imported it
def test_a_forked_child_runs_on_one_thread_and_does_not_hang():
    arrays = large_arrays()
    with cbnorm.threads(2):
        want = normalize(*arrays)
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)

        def child():
            cbnorm.set_num_threads(2)
            number = cbnorm.get_num_threads()
            sender.send((number, normalize(*arrays) == want))

        process = fork.Process(target=child, daemon=True)
        process.start()
        try:
            assert receiver.poll(20), "the child hangs"
            assert receiver.recv() == (1, True)
            process.join(20)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
        assert cbnorm.get_num_threads() == 2
        assert normalize(*arrays) == want


def test_without_openmp_there_is_one_thread_and_info_says_why(monkeypatch, capsys):
    monkeypatch.setattr(_threads, "_single", "built without OpenMP")
    cbnorm.set_num_threads(4)
    with pytest.raises(ValueError, match=r"^num_threads: expected 1 to 1024, got 0"):
        cbnorm.set_num_threads(0)
    with cbnorm.threads(8):
        assert cbnorm.get_num_threads() == 1
    cbnorm.show_config()
    assert "threads  1 (built without OpenMP)\n" in capsys.readouterr().out
    config = cbnorm.show_config("dicts")
    assert (config["threads"], config["threads_by"]) == (1, "built without OpenMP")
