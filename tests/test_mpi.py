"""Ranks of MPI: launched by mpiexec, every launch ended in time."""

import re

import pytest
from launches import TESTS, launch, needs_mpi

CHECKS = re.findall(r"^def check_(\w+)\(", TESTS.joinpath("mpi_checks.py").read_text(), re.MULTILINE)
NUMBERS_OF_RANKS = [2, 4]


@pytest.fixture(scope="module", params=NUMBERS_OF_RANKS, ids="{} ranks".format)
def checked(request):
    """What a launch of all checks printed, by the name of the check: one launch, since each takes a second or two."""
    run = launch(request.param, "-m", "mpi4py", TESTS / "mpi_checks.py", timeout=240)
    found = re.findall(r"^(\w+): (passed|failed\n.*?)?$(?=\n\w+: |\Z|\n\Z)", run.stdout, re.MULTILINE | re.DOTALL)
    return dict(found), run


@needs_mpi
@pytest.mark.parametrize("name", CHECKS)
def test_in_ranks(checked, name):
    results, run = checked
    assert results.get(name) == "passed", results.get(name) or f"did not end: {run.stdout[-500:]}\n{run.stderr[-3000:]}"
