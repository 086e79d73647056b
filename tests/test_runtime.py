"""Limits that others set, and forks: real libraries in processes of their own."""

import os
import shutil
import subprocess

import pytest

from cbnorm import _threads

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(
    len(CPUS) < 2 or not os.path.isdir("/proc/self/task") or not _threads.openmp,
    reason="this needs Linux, two CPUs and OpenMP",
)

START = """
import os
import numpy as np
import cbnorm
from cbnorm import _kernels

_kernels.active.set_judging(False)
x = np.ones((512, 512), np.float32)

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))

def started():
    "The threads that a call starts; OpenMP keeps them."
    before = tasks()
    cbnorm.batchnorm_forward(x)
    return tasks() - before
"""


def words(done):
    return done.stdout.split()


@pytest.mark.parametrize("user_api", [None, "openmp"])
@pytest.mark.parametrize("own", ["", "cbnorm.set_num_threads(8)"])
def test_a_limit_by_threadpoolctl_holds_for_the_calls_in_it(run_python, own, user_api):
    code = START + (
        f"from threadpoolctl import threadpool_limits\n{own}\n"
        f"with threadpool_limits(1, user_api={user_api!r}):\n"
        "    print(cbnorm.get_num_threads(), len(started()))\n"
        "    with cbnorm.threads(8):\n"
        "        print(cbnorm.get_num_threads(), len(started()))\n"
        "print(cbnorm.get_num_threads(), len(started()))\n"
    )
    number = 8 if own else len(CPUS)
    assert words(run_python(code)) == ["1", "0"] * 2 + [str(number), str(min(number, 8) - 1)]


LIMITS = (
    "from threadpoolctl import threadpool_limits\n"
    "for limit in {limits}:\n"
    "    with threadpool_limits(limit):\n"
    "        print(cbnorm.get_num_threads())\n"
    "print(cbnorm.get_num_threads())\n"
)


def test_a_limit_lowers_the_number_and_raises_none_but_that_of_openmp(run_python):
    code = START + LIMITS.format(limits=(1, 2, 64))
    assert words(run_python(code)) == ["1", "2", str(len(CPUS)), str(len(CPUS))]
    # What the environment told OpenMP is OpenMP's own, up to what the process may use.
    assert words(run_python(code, OMP_NUM_THREADS="1")) == ["1", "2", str(len(CPUS)), "1"]
    code = START + LIMITS.format(limits=(1, 64))
    assert words(run_python(code, CBNORM_NUM_THREADS="3")) == ["1", "3", "3"]


def test_joblib_limits_its_processes(run_python):
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
    assert words(run_python(code)) == ["1", "1", "2", "2", *loky, *forked, *threading]


def test_a_call_that_is_large_enough_for_two_threads_has_them(run_python):
    code = START + "for size in (32_767, 32_768):\n    x = np.ones((size, 1), np.float32)\n    print(len(started()))\n"
    assert words(run_python(code)) == ["0", "1"]


BINDINGS = {
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "threads",
    "GOMP_CPU_AFFINITY": f"{' '.join(map(str, CPUS))}",
}


@pytest.mark.parametrize("before", ["", "sklearn.utils._openmp_helpers"])
@pytest.mark.parametrize("name", BINDINGS)
def test_threads_that_openmp_binds_have_a_cpu_each(run_python, name, before):
    if before:
        pytest.importorskip("sklearn")  # its OpenMP is its own, and binds the main thread before cbnorm is there
    code = (
        (f"import {before}\n" if before else "")
        + START
        + (
            "cbnorm.batchnorm_forward(x[:8])\n"
            "with cbnorm.threads(2):\n"
            "    team = [os.getpid(), *started()]\n"
            "print(cbnorm.get_num_threads(), *(cpu for task in team for cpu in os.sched_getaffinity(task)))\n"
        )
    )
    number, *cpus = map(int, words(run_python(code, **{name: BINDINGS[name]})))
    assert number == len(CPUS)
    assert len(cpus) == len(set(cpus)) == 2


def test_a_binding_leaves_limits_of_the_affinity(run_python):
    pin = f"import os; os.sched_setaffinity(0, [{CPUS[-1]}])\n"
    again = "import sklearn.utils._openmp_helpers\n"
    show = "import cbnorm; print(cbnorm.get_num_threads(), *os.sched_getaffinity(0))"
    for code in (pin + show, pin + again + show):
        assert words(run_python(code, OMP_PROC_BIND="true")) == ["1", str(CPUS[-1])]
    places = {"OMP_PROC_BIND": "true", "OMP_PLACES": f"{{{CPUS[0]}}}"}
    assert words(run_python("import os; " + show, **places)) == ["1", str(CPUS[0])]


def test_an_affinity_that_changes_after_import_is_seen(run_python):
    code = START + (
        "cpus = os.sched_getaffinity(0)\n"
        "for each in ([min(cpus)], cpus):\n"
        "    os.sched_setaffinity(0, each)\n"
        "    print(cbnorm.get_num_threads(), len(started()))\n"
    )
    number = len(CPUS)
    assert words(run_python(code)) == ["1", "0", str(number), str(number - 1)]
    # An explicit number stays.
    assert words(run_python(code, CBNORM_NUM_THREADS="2")) == ["2", "1", "2", "0"]


def test_info_says_what_limits_the_number(run_python):
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


IN_A_CHILD = """
import os, signal, sys, time

def run_in_child(work):
    "The end of a forked process; it is killed if it hangs."
    child = os.fork()
    if child == 0:
        work()
        sys.stdout.flush()
        os._exit(0)
    for _ in range(2000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"
"""

USES_OPENMP = """
#include <omp.h>
int threads(void) {
    int count = 0;
    #pragma omp parallel num_threads(2) reduction(+ : count)
    count += 1;
    return count;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("used", [True, False])
def test_a_child_whose_parent_used_openmp_does_not_hang(run_python, tmp_path, used):
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
    *why, status = words(run_python(code))
    assert status == "0"
    # A child of a parent without OpenMP has threads; so has one whose OpenMP is another than the parent's.
    assert " ".join(why) in (["OpenMP was there before cbnorm in a forked process", "threads"] if used else ["threads"])


def test_the_workers_of_a_torch_data_loader_do_not_hang(run_python):
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
    assert words(run_python(code)) == ["0.0"]


LAYERS = """
import copy, pickle, threading
import numpy as np
import cbnorm

x = np.ones((8, 4, 3), np.float32)
layers = [cbnorm.BatchNorm(4), cbnorm.LayerNorm(3), cbnorm.RMSNorm(3), cbnorm.GroupNorm(2, 4), cbnorm.InstanceNorm(4)]
layers += copy.deepcopy(layers) + pickle.loads(pickle.dumps(layers))
held, leave = threading.Event(), threading.Event()

def hold():
    from contextlib import ExitStack
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer._lock)
        held.set()
        leave.wait()

other = threading.Thread(target=hold)
other.start()
held.wait()

def work():
    for layer in layers:
        layer.backward(layer(x))
        layer.load_state_dict(layer.state_dict())
        copy.deepcopy(layer), pickle.dumps(layer)
        layer.save("layer.npz"), layer.load("layer.npz")
    cbnorm.recompute_stats(layers[0], [x])
    print("done")

print(run_in_child(work))
leave.set()
other.join()
"""


def test_a_child_can_use_layers_that_another_thread_held(run_python, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words(run_python(IN_A_CHILD + LAYERS)) == ["done", "0"]


def test_a_fork_finds_moving_statistics_of_one_moment(run_python):
    code = (
        IN_A_CHILD
        + """
import sys, threading
import numpy as np, cbnorm
sys.setswitchinterval(1e-6)
layer = cbnorm.BatchNorm(2)
states = [layer.state_dict() | {"moving_mean": np.full(2, v), "moving_var": np.full(2, v)} for v in (1.0, 2.0, 3.0)]

def change():
    while running:
        for state in states:
            layer.load_state_dict(state)

running = True
layer.load_state_dict(states[0])
other = threading.Thread(target=change)
other.start()

def work():
    assert (layer.moving_mean == layer.moving_var).all(), (layer.moving_mean, layer.moving_var)

print({run_in_child(work) for _ in range(200)})
running = False
other.join()
"""
    )
    assert words(run_python(code)) == ["{0}"]
