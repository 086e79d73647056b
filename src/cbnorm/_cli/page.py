"""Where a command prints: sentences and tables of plain text, as wide as the terminal or, elsewhere, as the tables are.

Colours are rich's; the text is the same without it.
"""

import io
import os
import sys
import textwrap
from itertools import chain, zip_longest
from shutil import get_terminal_size
from typing import NamedTuple

PROSE = 80  # columns of a sentence; more are hard to read
INDENT, GAP = "  ", "  "
ASCII_LOCALES = ("C", "POSIX")


def plural(count, word):
    """`1 thread`, `2 threads`."""
    return f"{count} {word}{'s' * (count != 1)}"


class Cell(NamedTuple):
    """Text in a style of rich's: "red", "dim", "bold"."""

    text: str
    style: str = ""


class Page:
    """What a stream shows.

    Parameters
    ----------
    stream : text file, optional
        Standard output by default.
    """

    def __init__(self, stream=None):
        # A process may have been started without standard output.
        self.stream = stream or sys.stdout or io.StringIO()
        self.is_terminal = self.stream.isatty()
        self.ascii = _is_ascii(self.stream)
        self._console = _console(self.stream) if self.is_terminal else None

    @property
    def columns(self):
        """Width of the terminal; None elsewhere."""
        return get_terminal_size().columns if self.is_terminal else None

    def line(self, *pieces):
        """Print one line of strings and Cells, however long it is."""
        pieces = [Cell(piece) if isinstance(piece, str) else piece for piece in pieces]
        pieces = [(self._encodable(text), style) for text, style in pieces]
        if self._console:
            from rich.text import Text

            self._console.print(Text.assemble(*pieces), soft_wrap=True)
        else:
            print("".join(text for text, _ in pieces), file=self.stream, flush=True)

    def sentence(self, words, style=""):
        """Print words, broken into lines where there are many."""
        width = min(PROSE, self.columns or PROSE)
        for line in textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False):
            self.line(Cell(line, style))

    def heading(self, words):
        """Print what stands above a table."""
        self.sentence(words, "bold")

    def table(self, names, numbers, rows):
        """Print columns of names on the left and of numbers on the right; in parts, where the terminal is narrow.

        Parameters
        ----------
        names, numbers : sequence of str
            The headings, of one line or more.
        rows : sequence of sequence of (str or Cell)
            Rows that end early have empty cells.
        """
        headings = [heading.split("\n") for heading in (*names, *numbers)]
        height = max(map(len, headings), default=0)
        above = zip(*([""] * (height - len(lines)) + lines for lines in headings), strict=True)
        above = [[Cell(text, "bold") for text in line] for line in above]
        rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        columns = list(zip_longest(*above, *rows, fillvalue=Cell("")))
        widths = [max(len(self._encodable(cell.text)) for cell in column) for column in columns]
        for part, block in enumerate(_blocks(widths, len(names), self.columns)):
            if part:
                self.line()
            for number, cells in enumerate(zip(*(columns[index] for index in block), strict=True)):
                if number == height:
                    self.line(INDENT, ("-" if self.ascii else "─") * _width(widths, block))
                padded = (_padded(cells[i], widths[index], index < len(names)) for i, index in enumerate(block))
                self.line(INDENT, *_joined(padded))

    def _encodable(self, text):
        text = text.replace(" µs", " us") if self.ascii else text
        encoding = "ascii" if self.ascii else self.stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_ascii(stream):
    """Whether µ and ─ would not be read: the encoding lacks them, or the user's locale is C."""
    try:
        "µ─".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return True
    if "PYTHONIOENCODING" in os.environ or "PYTHONUTF8" in os.environ:
        return False
    # In that locale Python writes UTF-8 all the same, and may have set LC_CTYPE itself.
    return next(filter(None, map(os.environ.get, ("LC_ALL", "LANG"))), "") in ASCII_LOCALES


def _console(stream):
    """Rich's view of a terminal, None where it is not installed."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=stream, highlight=False)


def _width(widths, block):
    return sum(widths[index] for index in block) + len(GAP) * (len(block) - 1)


def _blocks(widths, num_names, room):
    """The columns of each part of a table: names, and as many numbers as there is room for, one at least."""
    names, block = list(range(num_names)), []
    for index in range(num_names, len(widths)):
        if block and room and len(INDENT) + _width(widths, [*names, *block, index]) > room:
            yield [*names, *block]
            block = []
        block.append(index)
    yield [*names, *block]


def _padded(cell, width, is_name):
    blank = " " * (width - len(cell.text))
    return (cell, blank) if is_name else (blank, cell)


def _joined(cells):
    """The pieces of a line, without what is blank at its end."""
    pieces = list(chain.from_iterable((*cell, GAP) for cell in cells))
    while pieces and not (pieces[-1] if isinstance(pieces[-1], str) else pieces[-1].text).strip():
        pieces.pop()
    return pieces
