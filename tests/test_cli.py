"""The commands, and what they do without the packages that they could use."""

import subprocess
import sys

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

DEMO = ["demo", "--epochs", "1"]
BENCH = ["bench", "--budget", "0.001", "--against", "numpy", "--operation", "test", "--shape", "64x3"]
HEAVY = ("sklearn", "scipy", "matplotlib", "rich", "threadpoolctl", "torch", "numba", "jax", "onnxruntime")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def run_without(modules, arguments):
    """Run the command line in a process where `modules` cannot be imported."""
    return run_python(
        "import sys\n"
        f"for name in {modules!r}: sys.modules[name] = None\n"
        "from cbnorm._cli import main\n"
        f"sys.exit(main({arguments!r}))"
    )


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (DEMO, "sklearn"),
        (DEMO, "rich"),
        (DEMO, "matplotlib"),
        (["bench", "--dtype=float32"], "rich"),
        (["bench", "--plot=p.png"], "matplotlib"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_missing_extra_is_named(arguments, module):
    done = run_without([module], arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"cbnorm {arguments[0]} needs {module}: pip install 'cbnorm[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_plot_needs_no_matplotlib():
    done = run_without(["matplotlib"], [*DEMO, "--no-plot"])
    assert (done.returncode, done.stderr) == (0, "")


def test_info_needs_no_extras():
    done = run_without(HEAVY, ["info"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("arguments", [["bench", "--against", "nobody"], ["demo", "--norm", "no"], ["--help"]], ids=str)
def test_nothing_heavy_is_imported_for_an_error_or_help(arguments):
    done = run_python(
        "import sys\n"
        "from cbnorm._cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        f"    print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    assert done.stdout.splitlines()[-1].split() == ["imported:"]


def test_a_peer_that_is_not_installed_is_told_apart():
    done = run_without(["jax"], ["bench", "--against", "jax"])
    assert done.returncode == 2
    assert "argument --against: jax is not installed, expected one of numpy" in done.stderr


def test_the_limit_without_pytorch_is_numpys_copy():
    done = run_without(["torch"], BENCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert "NumPy's copyto, 1 thread" in done.stdout


def test_python_m_cbnorm():
    done = subprocess.run([sys.executable, "-m", "cbnorm", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "info" in done.stdout
