"""Fixtures: tests run for each kernel build, number of threads, layer and way to a file; made-up groups and memory."""

import os

import guarded
import hypothesis
import pytest
from layer_cases import LAYERS
from pooled import MIB, meminfo

import cbnorm
from cbnorm import _cgroup, _kernels, _memory, _pool

collect_ignore = ["mpi_checks.py"]  # it starts MPI where it is imported: not in this process
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def pytest_collection_modifyitems(config, items):
    """Leave tests marked slow, huge or frozen aside, unless -m asks for them; and what a sanitizer would disturb."""
    asked = config.getoption("-m")
    aside = [name for name in ("slow", "huge", "frozen") if name not in asked]
    for item in items:
        marker = item.get_closest_marker("not_sanitized")
        if SANITIZED and marker:
            item.add_marker(pytest.mark.skip(reason=marker.kwargs["reason"]))
    left = [item for item in items if any(item.get_closest_marker(name) for name in aside)]
    left += [item for item in items if item.name.startswith("cbnorm.mpi.")]  # doctests: test_mpi.py runs them in ranks
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


# The same few examples in every run; many others, and new ones each time, in `.ci/fuzz`.
COMMON = hypothesis.settings(
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],  # it takes a minute
)
hypothesis.settings.register_profile("short", COMMON, derandomize=True, max_examples=60, database=None)
hypothesis.settings.register_profile("long", COMMON, max_examples=150, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


def pytest_terminal_summary(terminalreporter):
    """How many hostile calls there were."""
    if guarded.CALLS:
        terminalreporter.write_line(guarded.summary())


@pytest.fixture(scope="session", autouse=True)
def every_thread_works():
    """Calls of these tests use the threads that they are given, also where more than one do not pay."""
    before = _kernels.active_name
    for name in _kernels.BUILDS:
        _kernels.use(name)
        _kernels.active.set_judging(False)
    _kernels.use(before)


@pytest.fixture(params=_kernels.BUILDS)
def kernels(request):
    """The name of the build that all calls go through during the test: each that this CPU runs."""
    before = _kernels.active_name
    _kernels.use(request.param)
    yield request.param
    _kernels.use(before)


@pytest.fixture(params=[1, 2, 3, 8], ids="{} threads".format)
def num_threads(request):
    """How many threads calls use at most during the test; below 262,144 numbers they use fewer than 8."""
    with cbnorm.threads(request.param):
        yield request.param


@pytest.fixture(params=LAYERS)
def layer_case(request):
    """A layer and the normalization that it stands for: each in turn."""
    return LAYERS[request.param]


@pytest.fixture(params=["nameless", "named"])
def way(request, monkeypatch):
    """Whether unfinished files have no name, or have one as on systems where they must."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("not on this system")
    return request.param


@pytest.fixture
def control_groups(tmp_path):
    """Write files of control groups, and which group the process is in; returns where both stand."""

    def write(membership, files):
        root, own = tmp_path / "cgroup", tmp_path / "self"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{text}\n")
        if membership is not None:
            own.write_text(membership)
        return root, own

    return write


@pytest.fixture
def plenty(tmp_path):
    """An empty pool of 64 MiB on a machine whose memory is not short, whatever else runs."""
    before = cbnorm.get_pool_limit()
    _memory.watch(meminfo(tmp_path, 4096 * MIB), [], 8192 * MIB)
    cbnorm.set_pool_limit(64 * MIB)
    cbnorm.empty_pool()
    yield
    _pool._start(_pool._machine_memory(), _cgroup.memory_limits())
    cbnorm.set_pool_limit(before)
    cbnorm.empty_pool()
