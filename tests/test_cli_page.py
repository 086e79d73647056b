"""What the commands look like: wide and narrow terminals, no terminal, no colours, ASCII, without rich."""

import io
import re
import subprocess
import sys

import pytest

from cbnorm._cli.page import Cell, Page

pytest.importorskip("rich")
terminals = pytest.importorskip("terminals", exc_type=ImportError)  # Unix alone has pseudo-terminals

BENCH = ["bench", "--budget", "0.001", "--against", "numpy", "--operation", "test", "--shape", "64x3"]
NAMES, NUMBERS = ("shape",), [f"library {i}\nfresh/out" for i in range(12)]
ROWS = [[f"{rows}x64", *(Cell(f"{rows + i}.25/1.5", "red" * (i == 3)) for i in range(12))] for rows in (64, 1024)]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def printed(stream, *arguments):
    Page(stream).table(*arguments)
    return terminals.lines_of(stream.getvalue())[:-1]


@pytest.mark.parametrize("columns", [20, 60, 80, 200, 1000])
def test_a_table_is_as_wide_as_the_terminal_and_nothing_is_cut(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = printed(Terminal(), NAMES, NUMBERS, ROWS)
    assert max(map(len, lines)) <= max(columns, 23)  # a name and a number are shown at any width
    words = " ".join(lines).split()
    for row in ROWS:
        assert [word for word in words if word in [cell.text for cell in row[1:]]]
        for cell in row[1:]:
            assert words.count(cell.text) == sum(each.text == cell.text for one in ROWS for each in one[1:])
    parts = sum(line.strip("─ ") == "" and "─" in line for line in lines)
    assert words.count("64x64") == parts  # each part has the names
    assert parts == {20: 12, 1000: 1}.get(columns, parts)


def test_in_a_file_a_table_is_as_wide_as_it_is():
    lines = printed(io.StringIO(), NAMES, NUMBERS, ROWS)
    assert len(lines) == 2 + 1 + 2
    assert min(map(len, lines[2:])) > 150
    assert [line.rstrip() for line in lines] == lines


@pytest.mark.parametrize("rows", [[[]], [["name"]], [["", "1"], ["name", "2", "3"]]])
def test_rows_may_be_short_or_missing(rows):
    lines = printed(io.StringIO(), ("",), ("one", "three"), rows)
    assert len(lines) == 2 + len(rows)


def test_without_rich_the_text_is_the_same(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with_rich = printed(Terminal(), NAMES, NUMBERS, ROWS)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = Terminal()
    assert printed(terminal, NAMES, NUMBERS, ROWS) == with_rich
    assert "\N{ESCAPE}" not in terminal.getvalue()


def test_words_that_look_like_markup_are_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    Page(terminal).line("[red]:smile: [/x] ", Cell("[1]", "bold"))
    assert terminals.lines_of(terminal.getvalue()) == ["[red]:smile: [/x] [1]", ""]


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [(BENCH, 60), (BENCH, 80), (BENCH, 200), (["demo", "--epochs", "1", "--no-plot"], 60)],
    ids=["bench-60", "bench-80", "bench-200", "demo-60"],
)
def test_commands_fit_the_terminal(arguments, columns):
    shown, status = terminals.run_in_terminal(arguments, columns)
    assert status == 0
    assert max(map(len, terminals.lines_of(shown))) <= columns
    assert "…" not in shown
    assert terminals.COLOUR.search(shown)  # the bar's at least
    assert "\N{ESCAPE}[1m" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_without_colours(environment):
    shown, status = terminals.run_in_terminal(BENCH, **environment)
    assert status == 0
    assert not terminals.COLOUR.search(shown)


def test_a_dumb_terminal_gets_lines():
    shown, _ = terminals.run_in_terminal(BENCH, TERM="dumb")
    assert "\N{ESCAPE}" not in shown
    assert "\r" not in shown
    assert re.search(r"^ +\d+%  test, 1 shape, about", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "environment", [{"LANG": "C"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}], ids=str
)
def test_ascii_terminals_get_ascii(environment):
    shown, status = terminals.run_in_terminal([*BENCH, "--json", "/nowhere-µ/x.json"], **environment)
    assert status == 2  # argparse's own error is ASCII too
    shown, status = terminals.run_in_terminal(BENCH, **environment)
    assert status == 0
    assert shown.isascii()
    assert " us " in shown
    assert "\n  ------" in shown


def test_a_file_gets_what_its_encoding_has(tmp_path):
    command = [sys.executable, "-m", "cbnorm", *BENCH, "--json", str(tmp_path / "Zahlen-µ-数.json")]
    for encoding, unit, path in (("utf-8", "µs", "Zahlen-µ-数.json"), ("latin-1", "us", "Zahlen-\\xb5-\\u6570.json")):
        environment = {"PYTHONIOENCODING": encoding, "PATH": "", "LANG": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.decode(encoding)
        assert f" {unit} " in shown
        assert path in shown.splitlines()[-1]
