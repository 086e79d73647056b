"""The commands, and what they do without the packages that they could use."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cbnorm
import cbnorm._cli
from cbnorm._cli.arguments import parse
from cbnorm._cli.bench.cases import OPERATIONS
from cbnorm._cli.bench.peers import PEERS

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
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
        (DEMO, "matplotlib"),
        (["bench", "--plot=p.png"], "matplotlib"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_missing_extra_is_named(arguments, module):
    done = run_without([module], arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"cbnorm {arguments[0]}: needs {module}: pip install 'cbnorm[{arguments[0]}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_plot_needs_no_matplotlib():
    done = run_without(["matplotlib"], [*DEMO, "--no-plot"])
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[*DEMO, "--no-plot"], BENCH, [*BENCH, "--company", "1"]], ids=" ".join)
def test_without_rich_all_is_plain_text(arguments):
    slow_to_import = [] if arguments == [*DEMO, "--no-plot"] else ["torch"]
    done = run_without(["rich", *slow_to_import], arguments)
    assert done.returncode == 0
    assert "\N{ESCAPE}" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stdout.splitlines() if "─" in line]) == (3 if arguments[0] == "demo" else 1)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_info_needs_no_extras(options):
    done = run_without(HEAVY, ["info", *options])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_info_is_what_show_config_prints(capsys):
    assert cbnorm._cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    cbnorm.show_config()
    assert printed == capsys.readouterr().out
    for name in ("python", "platform", "openmp", "cache", "threads", "settings"):
        assert f"\n{name} " in printed
    assert cbnorm._cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cbnorm.show_config("dicts")


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
    assert done.returncode == 0
    assert "NumPy's copyto, 1 thread" in " ".join(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--version"], [], ["--help"], ["info", "--json"]], ids=str)
def test_python_m_cbnorm_is_the_same(arguments, capsys):
    done = subprocess.run([sys.executable, "-m", "cbnorm", *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments == ["--version"]:
        assert done.stdout == f"cbnorm {cbnorm.__version__}\n"
    elif arguments == ["info", "--json"]:
        assert json.loads(done.stdout)["cbnorm"] == cbnorm.__version__
    else:
        for command in ("demo", "bench", "info"):
            assert f"\n    {command} " in done.stdout


def documented_commands():
    """The lines of README.md and docs/ that are commands of cbnorm alone, joined where a backslash parts them."""
    for page in (ROOT / "README.md", *sorted(ROOT.joinpath("docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        yield from re.findall(r"^ *(cbnorm (?:bench|demo|info).*)$", text, re.MULTILINE)


@pytest.mark.skipif(not ROOT.joinpath("docs").is_dir(), reason="needs the source tree")
def test_commands_in_the_documentation_are_commands(monkeypatch):
    monkeypatch.setattr("cbnorm._cli.bench.peers.installed_peers", lambda: list(PEERS))
    commands = list(documented_commands())
    assert len(commands) >= 5
    for command in commands:
        options = parse(shlex.split(command)[1:])
        for name in options.operation or ():
            assert not [shape for shape in options.shape or () if OPERATIONS[name].unsuitable(shape)]


@pytest.mark.parametrize("arguments", [["info"], BENCH], ids=" ".join)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_told_in_a_line(arguments):
    command = [sys.executable, "-m", "cbnorm", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"cbnorm {arguments[0]}: cannot go on: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_reader_who_has_seen_enough_gets_no_traceback():
    command = [sys.executable, "-m", "cbnorm", *BENCH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()
    assert process.returncode == 1
    assert "Error" not in complaints
