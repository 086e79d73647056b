"""What `cbnorm bench` says before, while and after it measures; and when it is stopped or memory is short."""

import json
import re

import pytest

import cbnorm
import cbnorm._cli
from cbnorm._cli.bench import expected, measure
from cbnorm._cli.bench.cases import OPERATIONS, Shape
from cbnorm._cli.progress import about

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

QUICK = ["bench", "--budget", "0.001", "--against", "numpy"]
THREE = [*QUICK, "--operation", "train", "--operation", "test", "--operation", "rmsnorm", "--shape", "64x3"]


@pytest.fixture
def stopped(monkeypatch):
    """A measurement in which Ctrl-C is pressed at the second operation's second shape."""
    right = measure._measure

    def measured_until(operation, shape, *rest):
        if (operation, str(shape)) == ("test", "32x5"):
            raise KeyboardInterrupt
        return right(operation, shape, *rest)

    monkeypatch.setattr(measure, "_measure", measured_until)


def test_first_it_says_how_long_it_will_take(capsys):
    assert cbnorm._cli.main(THREE) == 0
    assert re.match(r"3 lines to measure: about \d+ s; Ctrl-C ends it", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "1 s"), (9.5, "10 s"), (12, "10 s"), (89, "90 s"), (150, "2 min"), (3000, "50 min"), (9000, "2.5 h")],
)
def test_times_are_told_as_roughly_as_they_are_known(seconds, words):
    assert about(seconds) == f"about {words}"


def test_more_work_is_expected_to_take_longer():
    shapes = map(Shape.parse, ("64x3", "4096x1024", "65536x256"))
    times = [expected.line_seconds(shape, ["numpy"], 0.5, 5e-8) for shape in shapes]
    assert 0.5 <= times[0] < 0.6 < times[1] < times[2]
    assert expected.line_seconds(Shape.parse("64x3"), [], 5.0, 5e-8) >= 5
    assert expected.import_seconds(["numpy"], 1e-8) < expected.import_seconds(["numpy", "torch"], 1e-8)


def test_each_table_is_printed_as_it_is_done(monkeypatch, capfd):
    seen = []
    right = measure._measure

    def watched(operation, *rest):
        seen.append((operation, capfd.readouterr()))
        return right(operation, *rest)

    monkeypatch.setattr(measure, "_measure", watched)
    assert cbnorm._cli.main(THREE) == 0
    assert [operation for operation, _ in seen] == ["train", "test", "rmsnorm"]
    first, second, third = (text for _, text in seen)
    assert f"cbnorm {cbnorm.__version__}" in first.out
    assert "\ntrain\n" not in first.out
    assert "\ntrain\n" in second.out
    assert "\ntest\n" in third.out
    for text, name in zip((first, second, third), ("train", "test", "rmsnorm"), strict=True):
        assert re.fullmatch(rf" *\d+%  {name}, 1 shape, about \d+ s left\n", text.err)


def test_ctrl_c_reports_and_writes_what_there_is(stopped, tmp_path, capsys):
    files = ["--json", str(tmp_path / "n.json"), "--plot", str(tmp_path / "p.png")]
    arguments = [*QUICK, *files, *["--operation", "train", "--operation", "test", "--shape", "64x3", "--shape", "32x5"]]
    assert cbnorm._cli.main(arguments) == 130
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\d+x\d+) ", printed, re.MULTILINE) == ["64x3", "32x5", "64x3"]
    assert "\nInterrupted.\n" in printed
    assert "all agree" in printed
    found = json.loads((tmp_path / "n.json").read_text())
    assert [(line["operation"], line["shape"]) for line in found["lines"]] == [
        ("train", "64x3"),
        ("train", "32x5"),
        ("test", "64x3"),
    ]
    assert found["interrupted"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_before_the_first_line_leaves_no_files(stopped, tmp_path, capsys):
    arguments = [*QUICK, "--operation", "test", "--shape", "32x5", "--json", str(tmp_path / "n.json")]
    assert cbnorm._cli.main(arguments) == 130
    assert capsys.readouterr().out.endswith("Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("company", [[], ["--company", "1"]], ids=["alone", "company"])
def test_ctrl_c_in_a_terminal(tmp_path, company):
    terminals = pytest.importorskip("terminals", exc_type=ImportError)
    numbers = tmp_path / "n.json"
    arguments = ["bench", *company, "--against", "numpy", "--operation", "train", "--budget", "0.02"]
    arguments += ["--json", str(numbers), *(word for rows in range(64, 1000) for word in ("--shape", f"{rows}x4"))]
    shown, status = terminals.run_in_terminal(arguments, until=r"65x4")
    assert status == 130
    assert "Interrupted." in shown
    assert "Traceback" not in shown
    assert shown.index("Interrupted.") < shown.index("Times:") < shown.index(f"Numbers: {numbers}")
    assert json.loads(numbers.read_text())["interrupted"]


@pytest.mark.parametrize("company", [[], ["--company", "1"]], ids=["alone", "company"])
def test_arrays_that_can_never_fit_are_told_before(capsys, company):
    arguments = [*QUICK, *company, "--operation", "test", "--shape", "1000000x1000000000"]
    assert cbnorm._cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("cbnorm bench: left out: test 1000000x1000000000: needs about ")
    assert "GiB of memory" in line


def test_other_lines_are_measured_where_one_does_not_fit(tmp_path, capsys):
    shapes = ["--shape", "1000000x1000000000", "--shape", "64x3", "--json", str(tmp_path / "n.json")]
    assert cbnorm._cli.main([*QUICK, "--operation", "test", *shapes]) == 1
    assert "all agree" in capsys.readouterr().out
    found = json.loads((tmp_path / "n.json").read_text())
    assert [line["shape"] for line in found["lines"]] == ["64x3"]
    assert found["left_out"][0].startswith("test 1000000x1000000000: needs about ")


def test_memory_that_is_refused_is_told_in_a_line(monkeypatch, capsys):
    def refused(operation, shape, *rest):
        raise MemoryError("Unable to allocate 8. GiB for an array")

    monkeypatch.setattr(measure, "_measure", refused)
    assert cbnorm._cli.main(THREE) == 1
    complaints = [line for line in capsys.readouterr().err.splitlines() if "%" not in line]
    assert complaints[0] == "cbnorm bench: left out: train 64x3: Unable to allocate 8. GiB for an array"
    assert len(complaints) == 3


@pytest.mark.parametrize("name", ["test", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_line_needs_the_memory_that_is_expected(name, dtype):
    import tracemalloc

    shape = Shape.parse("1000x300")
    tracemalloc.start()
    try:
        with measure.Measurement(["numpy"], dtype, 1, 1e-6) as measurement:
            measurement.add(name, shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = expected.line_bytes(OPERATIONS[name], shape, dtype)
    assert 0.85 * most < peak < 1.05 * most


def test_a_line_whose_median_is_a_hundred_times_its_minimum_is_marked(monkeypatch, capsys):
    right = measure._measure

    def disturbed(operation, *rest):
        line = right(operation, *rest)
        line.medians["numpy"]["fresh"] = line.seconds["numpy"]["fresh"] * (250 if operation == "test" else 99)
        line.medians["cbnorm"] = line.medians["copy"] = {"fresh": 0.0, "out": 0.0}
        return line

    monkeypatch.setattr(measure, "_measure", disturbed)
    assert cbnorm._cli.main(THREE) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  64x3 +\d", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"^  64x3 ! +\d", printed, re.MULTILINE)) == 1
    told = " ".join(printed.partition("\ntest\n")[2].partition("\nrmsnorm\n")[0].split())
    assert told.endswith("! 64x3: half of numpy's calls took 250 times its fastest or more: do not trust it.")


def test_fewer_threads_than_asked_for_are_told(monkeypatch, capsys):
    monkeypatch.setattr("cbnorm._threads._single", "built without OpenMP")
    assert cbnorm._cli.main([*THREE, "--threads", "2"]) == 0
    assert ", 2 threads (cbnorm: 1 thread, built without OpenMP), " in capsys.readouterr().out
    assert cbnorm._cli.main(THREE) == 0
    assert re.search(r", 1 thread, \w+ kernels", capsys.readouterr().out)
