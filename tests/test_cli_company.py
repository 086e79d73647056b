"""What a user of `cbnorm bench --company` sees: means of everyone in each company, and processes that end."""

import json
import os
import subprocess

import pytest

import cbnorm._cli
from cbnorm._cli.bench import company
from cbnorm._cli.bench.cases import Case, Shape

pytest.importorskip("rich")

QUICK = ["bench", "--company", "1", "--budget", "0.02", "--shape", "64x3", "--against", "numpy"]
COMPANIES = ["alone", "between matmuls", "beside 1 busy"]


def processes():
    """Command lines of this process's children."""
    listing = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if "ps -o" not in line]


def test_a_row_for_each_company(tmp_path, capsys):
    before = processes()
    assert cbnorm._cli.main([*QUICK, "--json", str(tmp_path / "company.json")]) == 0
    assert processes() == before
    shown = capsys.readouterr().out.splitlines()
    assert [
        line.split("64x3")[1].strip()[:15].strip() for line in shown if line.strip().startswith("64x3")
    ] == COMPANIES
    written = json.loads((tmp_path / "company.json").read_text())
    assert [line["company"] for line in written["lines"]] == COMPANIES
    for line in written["lines"]:
        assert set(line["seconds"]) == {"cbnorm", company.ONE_THREAD, "numpy"}
        assert all(0 < seconds < 0.1 for seconds in line["seconds"].values())


@pytest.mark.parametrize("shape", ["8x6", "4x6x5", "4x5x6@-1"])
def test_the_matmul_keeps_the_size_of_the_batch(shape):
    case = Case.make("train", Shape.parse(shape), "float32")
    product = company.Cbnorm(1).matmul(case)()
    assert product.size == case.x.size


def test_who_cannot_do_an_operation_is_left_out(capsys):
    pytest.importorskip("sklearn")
    arguments = [*QUICK[:-1], "sklearn", "--operation", "backward"]
    assert cbnorm._cli.main(arguments) == 0
    assert "sklearn" not in capsys.readouterr().out


def test_no_picture(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cbnorm._cli.main([*QUICK, "--plot", str(tmp_path / "company.png")])
    assert "--plot: not with --company" in capsys.readouterr().err
