"""Examples print what they say."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_ranks_in_processes_of_their_own_are_the_whole():
    run = subprocess.run([sys.executable, EXAMPLES / "ranks.py"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert 0 <= float(run.stdout) <= 1e-12
