"""OpenMP as cbnorm loads it: how long it spins, the CPUs that it binds threads to, forks of a process that has it."""

import shutil
import subprocess

import pytest
from processes import CPUS, IN_A_CHILD, STARTED, linux, needs_two_cpus, run_python, words

BINDINGS = {
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "threads",
    "GOMP_CPU_AFFINITY": f"{' '.join(map(str, CPUS))}",
}
USES_OPENMP = """
#include <omp.h>
int threads(void) {
    int count = 0;
    #pragma omp parallel num_threads(2) reduction(+ : count)
    count += 1;
    return count;
}
"""


@linux
def test_openmp_is_told_to_spin_shortly_and_nobody_else_is():
    code = "import os; before = dict(os.environ); import cbnorm; assert dict(os.environ) == before"
    told = run_python(code, OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("built with another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '3000'" in told
    told = run_python(code, OMP_DISPLAY_ENV="verbose", GOMP_SPINCOUNT="77").stderr
    assert "GOMP_SPINCOUNT = '77'" in told


@needs_two_cpus
@pytest.mark.parametrize("before", ["", "sklearn.utils._openmp_helpers"])
@pytest.mark.parametrize("name", BINDINGS)
def test_threads_that_openmp_binds_have_a_cpu_each(name, before):
    if before:
        pytest.importorskip("sklearn")  # its OpenMP is its own, and binds the main thread before cbnorm is there
    code = (
        (f"import {before}\n" if before else "")
        + STARTED
        + (
            "cbnorm.batchnorm_forward(x[:8])\n"
            "with cbnorm.threads(2):\n"
            "    team = [os.getpid(), *started()]\n"
            "print(cbnorm.get_num_threads(), *(cpu for task in team for cpu in os.sched_getaffinity(task)))\n"
        )
    )
    number, *cpus = map(int, words(code, **{name: BINDINGS[name]}))
    assert number == len(CPUS)
    assert len(cpus) == len(set(cpus)) == 2


@needs_two_cpus
def test_a_binding_leaves_limits_of_the_affinity():
    pin = f"import os; os.sched_setaffinity(0, [{CPUS[-1]}])\n"
    again = "import sklearn.utils._openmp_helpers\n"
    show = "import cbnorm; print(cbnorm.get_num_threads(), *os.sched_getaffinity(0))"
    for code in (pin + show, pin + again + show):
        assert words(code, OMP_PROC_BIND="true") == ["1", str(CPUS[-1])]
    places = {"OMP_PROC_BIND": "true", "OMP_PLACES": f"{{{CPUS[0]}}}"}
    assert words("import os; " + show, **places) == ["1", str(CPUS[0])]


@needs_two_cpus
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("used", [True, False])
def test_a_child_whose_parent_used_openmp_does_not_hang(tmp_path, used):
    source = tmp_path / "uses_openmp.c"
    source.write_text(USES_OPENMP)
    library = tmp_path / "uses_openmp.so"
    build = ["cc", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
    if subprocess.run(build, capture_output=True).returncode:
        pytest.skip("the C compiler has no OpenMP")
    parent = f"import ctypes; assert ctypes.CDLL({str(library)!r}).threads() == 2\n" if used else ""
    code = (
        IN_A_CHILD
        + parent
        + (
            "def work():\n"
            "    import cbnorm, numpy as np\n"
            "    with cbnorm.threads(2):\n"
            "        cbnorm.batchnorm_forward(np.ones((512, 512)))\n"
            "        print(*cbnorm.show_config('dicts')['threads_by'].split())\n"
            "print(run_in_child(work))\n"
        )
    )
    *why, status = words(code)
    assert status == "0"
    # A child of a parent without OpenMP has threads; so has one whose OpenMP is another than the parent's.
    assert " ".join(why) in (["OpenMP was there before cbnorm in a forked process", "threads"] if used else ["threads"])


@needs_two_cpus
def test_the_workers_of_a_torch_data_loader_do_not_hang():
    pytest.importorskip("torch")
    code = """
import torch
from torch.utils.data import DataLoader, Dataset

class Normalized(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        import cbnorm, numpy as np
        with cbnorm.threads(2):
            return cbnorm.batchnorm_forward(np.ones((512, 512), np.float32))[0][0, 0]

torch.set_num_threads(2)
torch.ones(1000, 1000).exp()
loader = DataLoader(Normalized(), num_workers=2, multiprocessing_context="fork", timeout=20)
print(sum(batch.sum().item() for batch in loader))
"""
    assert words(code) == ["0.0"]
