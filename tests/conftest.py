"""Fixtures: tests run for each kernel build or number of threads, and code run in a process of its own."""

import os
import subprocess
import sys

import pytest

import cbnorm
from cbnorm import _kernels


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


@pytest.fixture(scope="session")
def run_python():
    """Run code in a new process, where cbnorm finds nothing in the environment but what is passed."""

    def run(code, *, status=0, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CBNORM_", "OMP_"))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        return done

    return run
