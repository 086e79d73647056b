"""What a user of `cbnorm bench` sees: tables, JSON, picture, exit status; and that a wrong peer is caught."""

import json
import re

import numpy as np
import pytest

import cbnorm._cli
from cbnorm._cli.bench import measure, report, timing
from cbnorm._cli.bench.cases import OPERATIONS, Shape
from cbnorm._cli.bench.peers import PEERS, installed_peers
from cbnorm._cli.bench.peers.numpy import NumPy
from cbnorm._cli.bench.peers.peer import Calls, Peer
from cbnorm._cli.page import Page

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

QUICK = ["bench", "--budget", "0.001", "--against", "numpy"]


class Wrong(Peer):
    """Gives what `result` makes of a case."""

    name = "wrong"

    def train(self, case):
        return Calls(lambda: (self.result(case),))

    def version(self):
        return "0"


def make_wrong(monkeypatch, result):
    peer = type("Wrong", (Wrong,), {"result": staticmethod(result)})
    monkeypatch.setitem(PEERS, "wrong", peer)


def measured(plan, peers=(), dtype="float32", num_threads=2, budget=0.001):
    with measure.Measurement(peers, dtype, num_threads, budget) as measurement:
        for operation, shape in plan:
            measurement.add(operation, Shape.parse(shape))
    return measurement.results


def measure_line(operation, shape, *arguments, **options):
    results = measured([(operation, shape)], *arguments, **options)
    return results, results.lines[0]


def test_tables_have_a_row_for_each_shape_and_fit_100_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "LEAST_RUNS", 1)
    assert cbnorm._cli.main([*QUICK, "--shape", "64x3", "--shape", "2x7x7x32@-1", "--shape", "2x32x7x7"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 100
    for operation in OPERATIONS:
        assert operation in lines
    rows = [line.split() for line in lines if re.match(r" *\d+x", line)]
    assert [row[0] for row in rows[:3]] == ["64x3", "2x7x7x32@-1", "2x32x7x7"]
    assert len(rows) == 3 * 7 + 4  # group and instance normalization take (N, C, ...) with channels at 1 only
    for _, fresh, fresh_unit, out, out_unit, share, ratio in rows:
        assert (float(fresh), float(out), float(ratio)) > (0, 0, 0)
        assert {fresh_unit, out_unit} <= {"µs", "ms", "s"}
        assert share.endswith("%")
    assert "all agree with the formulas in float64" in printed.out
    assert [line.split()[1].rstrip(",") for line in printed.err.splitlines()] == list(OPERATIONS)  # a line a group
    assert list(tmp_path.iterdir()) == []


def test_json_holds_every_minimum(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["--operation", "train", "--operation", "backward", "--shape", "2x16x3x3", "--threads", "1"]
    assert cbnorm._cli.main([*QUICK, *arguments, "--dtype", "float64", "--json", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert (found["dtype"], found["num_threads"], found["peers"]) == ("float64", 1, ["numpy"])
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["machine"]) == {"cpu", "kernels", "openmp", "load"}
    train, backward = found["lines"]
    assert (train["operation"], train["shape"], train["sizes"]) == ("train", "2x16x3x3", [2, 16, 3, 3])
    assert (train["bytes_moved"], backward["bytes_moved"]) == (2 * 288 * 8, 3 * 288 * 8)
    for line in (train, backward):
        kinds = {name: set(kinds) for name, kinds in line["seconds"].items()}
        assert kinds == {"cbnorm": {"fresh", "out"}, "numpy": {"fresh"}, "copy": {"out"}}
        assert all(0 < seconds < 1 for kinds in line["seconds"].values() for seconds in kinds.values())
        for name, kind in [("cbnorm", "fresh"), ("cbnorm", "out"), ("numpy", "fresh"), ("copy", "out")]:
            assert line["seconds"][name][kind] <= line["medians"][name][kind] < 1
        assert all(runs >= 5 for kinds in line["runs"].values() for runs in kinds.values())
        assert max(line["errors"].values()) < found["tolerance"]
        assert line["failures"] == {}


@pytest.mark.parametrize(("name", "start"), [("picture.svg", b"<?xml"), ("picture", b"\x89PNG\r\n")])
def test_picture_ending_sets_the_format(tmp_path, capsys, name, start):
    assert cbnorm._cli.main([*QUICK, "--operation", "test", "--shape", "64x3", "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert name in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--operation", "trian", "invalid choice: 'trian'"),
        ("--shape", "4096", "expected sizes such as 4096x1024"),
        ("--shape", "64x0", "expected sizes of 1 or more, got '64x0'"),
        ("--shape", "x".join(["1"] * 65), "expected at most 64 axes, got 65"),
        ("--shape", "64x3@2", "expected an axis from -2 to 1, got '64x3@2'"),
        ("--dtype", "int8", "invalid choice: 'int8'"),
        ("--threads", "0", "expected an integer of 1 or more, got '0'"),
        ("--threads", "5000", "expected at most 1024, got '5000'"),
        ("--budget", "0", "expected a number of seconds above 0, got '0'"),
        ("--budget", "nan", "expected a number of seconds above 0, got 'nan'"),
        ("--against", "tensorflow", "tensorflow is no peer of cbnorm, expected one of numpy"),
        ("--json", "missing/numbers.json", "no such directory: missing"),
        ("--plot", "picture.doc", "unknown picture format '.doc'"),
    ],
)
def test_bad_options_fail_before_the_measurement(tmp_path, monkeypatch, capsys, option, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failure:
        cbnorm._cli.main(["bench", f"{option}={value}"])
    assert failure.value.code == 2
    printed = capsys.readouterr()
    assert f"argument {option}: {message}" in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("operation", "shape", "message"),
    [
        ("groupnorm", "64x32", "expected three axes or more, (N, C, ...), got 64x32"),
        ("groupnorm", "2x100x3x3", "expected /GROUPS that divide 100 channels, got 2x100x3x3 (32 groups)"),
        ("instancenorm", "2x3x3x8@-1", "expected no axis: channels are axis 1, got 2x3x3x8@-1"),
    ],
)
def test_shape_that_an_operation_cannot_take(capsys, operation, shape, message):
    with pytest.raises(SystemExit) as failure:
        cbnorm._cli.main(["bench", "--operation", operation, "--shape", shape])
    assert failure.value.code == 2
    assert f"argument --shape: {operation}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "cell", "reason"),
    [
        (lambda case: case.x, "error 5e-01", "differs from float64 by 4.9e-01"),
        (lambda case: case.x * np.nan, "error inf", "differs from float64 by inf"),
        (lambda case: case.x[:-1], "error inf", "differs from float64 by inf"),
        (lambda case: 1 / 0, "failed", "ZeroDivisionError: division by zero"),
    ],
    ids=["garbage", "nan", "size", "exception"],
)
def test_a_wrong_peer_is_reported_and_not_timed(monkeypatch, capsys, tmp_path, result, cell, reason):
    make_wrong(monkeypatch, result)
    results, line = measure_line("train", "64x3", ["numpy", "wrong"])
    assert set(line.seconds) == {"cbnorm", "numpy", "copy"}
    assert line.failures["wrong"].startswith(reason)
    assert results.agrees  # cbnorm does
    page = Page()
    report.print_table(page, report.ALONE, results.lines, results)
    report.print_end(page, report.ALONE, results)
    printed = capsys.readouterr().out
    assert cell in printed
    assert f"wrong, train 64x3: {reason}" in printed
    report.write_json(results, tmp_path / "numbers.json")
    assert json.loads((tmp_path / "numbers.json").read_text())["lines"][0]["failures"] == line.failures


def test_out_that_is_not_written_is_caught(monkeypatch):
    make_wrong(monkeypatch, None)

    def ignores_out(case):
        fresh = NumPy(1).calls(case).fresh
        return Calls(fresh, fresh)

    monkeypatch.setattr(PEERS["wrong"], "calls", lambda self, case: ignores_out(case))
    assert "inf" in measure_line("train", "64x3", ["wrong"])[1].failures["wrong"]


def test_a_wrong_cbnorm_is_an_error(monkeypatch, capsys, tmp_path):
    right = cbnorm.batchnorm_forward
    monkeypatch.setattr(cbnorm, "batchnorm_forward", lambda x, *rest, **options: right(x * x, *rest, **options))
    picture = ["--plot", str(tmp_path / "picture.png")]
    assert cbnorm._cli.main([*QUICK, "--operation", "train", "--shape", "64x3", *picture]) == 1
    assert "cbnorm, train 64x3: differs from float64 by" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore")  # what a library warns of when it is imported is its own
def test_every_installed_peer_agrees(monkeypatch, name, dtype):
    if name not in installed_peers():
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(timing, "LEAST_RUNS", 1)
    shapes = [Shape.parse(text) for text in ("64x33", "2x32x5x5", "2x5x5x32@-1", "3x4x5x6@2")]
    plan = [(each, str(shape)) for each in OPERATIONS for shape in shapes if not OPERATIONS[each].unsuitable(shape)]
    results = measured(plan, [name], dtype, budget=1e-6)
    unsupported = {"instancenorm"} if (name, dtype) == ("onnxruntime", "float64") else set()
    assert {line.operation for line in results.lines if line.failures} == unsupported


def test_a_shape_is_left_out_for_operations_that_cannot_take_it(capsys):
    operations = ["--operation", "test", "--operation", "groupnorm"]
    assert cbnorm._cli.main([*QUICK, *operations, "--shape", "64x3", "--shape", "2x32x3x3"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("64x3 "), printed.count("2x32x3x3 ")) == (1, 2)


@pytest.mark.parametrize(("load", "busy"), [(0.4, False), (2.6, True)])
def test_a_busy_machine_is_told_before_the_measurement(monkeypatch, capsys, load, busy):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert cbnorm._cli.main([*QUICK, "--operation", "test", "--shape", "64x3"]) == 0
    before = capsys.readouterr().out.partition("\ntest\n")[0]
    assert ("The machine is busy, load 2.6" in before) == busy


def test_number_of_threads_is_given_back():
    before = cbnorm.get_num_threads()
    measure_line("train", "64x3", num_threads=before + 1)
    assert cbnorm.get_num_threads() == before


@pytest.mark.parametrize("text", ["64x3", "64x224x224x3@-1", "16x256x28x28/16", "2x3x4@1/1"])
def test_shapes_are_spelled_as_they_are_read(text):
    assert str(Shape.parse(text)) == text
