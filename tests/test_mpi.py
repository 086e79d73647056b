"""Ranks of MPI: launched by mpiexec, every launch ended in time."""

import os
import re
import time

import numpy as np
import pytest
from launches import TESTS, launch, needs_mpi, start, stop
from processes import linux, run_python

CHECKS = re.findall(r"^def check_(\w+)\(", TESTS.joinpath("mpi_checks.py").read_text(), re.MULTILINE)
EXAMPLES = TESTS.parent / "examples"


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def checked(request):
    """What a launch of all checks printed, by the name of the check: one launch, since each takes a second or two."""
    run = launch(request.param, "-m", "mpi4py", TESTS / "mpi_checks.py", timeout=240)
    _, *found = re.split(r"^(\w+): (?=passed$|failed$)", run.stdout, flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True)), run


@needs_mpi
@pytest.mark.parametrize("name", CHECKS)
def test_in_ranks(checked, name):
    results, run = checked
    result = results.get(name, f"not ended: {run.stdout[-300:]}{run.stderr[-3000:]}")
    assert result.strip() == "passed", result


PASSES = """
import sys
import numpy as np
import cbnorm.mpi

channels, forward, backward = map(int, sys.argv[1:])
x = np.ones((6, channels))
for number in range(forward):
    y, cache, *_ = cbnorm.mpi.batchnorm_forward(x, moving_mean=x[0], moving_var=x[0])
    if number < backward:
        cbnorm.mpi.batchnorm_backward(x, cache)
    cbnorm.mpi.batchnorm_forward(x, moving_mean=x[0], moving_var=x[0], mode="test")
"""


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_that_travel(tmp_path, ranks):
    """As Open MPI counts them: a message to each other rank in a pass, of 3C + 2 or 2C + 2 float64, and no others."""
    counts = {"pml_monitoring_enable": 2, "pml_monitoring_enable_output": 3, "pml_monitoring_filename": tmp_path / "of"}
    options = [str(word) for name, value in counts.items() for word in ("--mca", name, value)]
    channels, forward, backward = 37, 5, 3
    run = launch(ranks, "-c", PASSES, channels, forward, backward, options=options)
    assert run.returncode == 0, run.stderr
    sent = {}
    for file in tmp_path.glob("of.*.prof"):
        for line in re.findall(r"^E\t.*", file.read_text(), re.MULTILINE):  # not MPI's own, for a new communicator
            sender, receiver, size, messages = map(int, re.findall(r"\d+", line)[:4])
            sent[sender, receiver] = size, messages
    size = 8 * (forward * (3 * channels + 2) + backward * (2 * channels + 2))
    pairs = [(sender, receiver) for sender in range(ranks) for receiver in range(ranks) if sender != receiver]
    if not sent:
        pytest.skip("this MPI does not count its messages")
    assert sent == dict.fromkeys(pairs, (size, forward + backward))


DEATHS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "gone": "os._exit(3)",
    "an exception": "raise OSError('no disk')",
    "the wrong arguments": "cbnorm.mpi.moments('nothing')",
}


@needs_mpi
@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
def test_a_rank_that_dies_ends_them_all(death):
    code = f"""
import os, signal
import numpy as np
import cbnorm.mpi
from mpi4py import MPI
cbnorm.mpi.moments(np.ones((3, 2)))
if MPI.COMM_WORLD.rank == 1:
    {death}
for _ in range(2):
    cbnorm.mpi.moments(np.ones((3, 2)))
"""
    start = time.monotonic()
    run = launch(3, "-m", "mpi4py", "-c", code, timeout=40)
    assert run.returncode, run
    assert time.monotonic() - start < 35
    if "moments" in death:
        assert run.stderr.count("x: expected real numbers") >= 1


@linux
@needs_mpi
def test_a_launch_that_hangs_is_stopped_with_all_its_ranks():
    code = """
import os
import numpy as np
import cbnorm.mpi
from mpi4py import MPI
numbers = MPI.COMM_WORLD.gather(os.getpid())
if MPI.COMM_WORLD.rank == 0:
    print(*numbers, flush=True)
    cbnorm.mpi.moments(np.ones((3, 2)))
"""
    with start(2, "-m", "mpi4py", "-c", code) as process:
        try:
            numbers = process.stdout.readline().split()
            time.sleep(0.5)
            assert process.poll() is None
        finally:
            stop(process)
    assert len(numbers) == 2
    deadline = time.monotonic() + 10
    while any(os.path.isdir(f"/proc/{number}") for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@needs_mpi
def test_the_example_of_the_docs_runs():
    page = TESTS.parent.joinpath("docs", "distributed.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "mpi4py" in block]
    run = launch(2, "-m", "mpi4py", "-c", "\n".join(blocks))
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["201", "201"]


def test_mpi_is_not_started_before_it_is_used():
    run_python("import sys, cbnorm.mpi; cbnorm.mpi.BatchNorm(3); assert 'mpi4py' not in sys.modules")


def test_what_is_missing_is_told():
    code = """
import sys
import cbnorm.mpi
sys.modules["mpi4py"] = None
try:
    cbnorm.mpi.moments([1.0])
except ImportError as error:
    print(error)
"""
    assert "pip install 'cbnorm[mpi]'" in run_python(code).stdout


@needs_mpi
def test_training_in_any_number_of_ranks_has_the_same_losses():
    pytest.importorskip("sklearn")
    curves = []
    for ranks in (1, 2, 4):
        run = launch(ranks, "-m", "mpi4py", EXAMPLES / "mpi_digits.py", 2, timeout=120)
        assert run.returncode == 0, run.stderr
        curves.append([float(number) for number in re.findall(r"(?:loss|step) (\d\S+)", run.stdout.replace(",", ""))])
    assert len(curves[0]) == 4
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2, rtol=0, atol=1e-6)
    assert curves[0][2] < curves[0][0] / 2  # the mean loss of the second epoch and of the first
