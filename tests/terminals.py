"""Commands in terminals of any width, and keys pressed there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from time import monotonic, sleep

CTRL_C = b"\x03"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-7][0-9;]*m")
OF_THE_TERMINAL = (
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "LC_ALL",
    "LC_CTYPE",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
)


def processes_of(session):
    """Command lines of all processes that a terminal's session still has."""
    return subprocess.run(["ps", "-s", str(session), "-o", "args="], capture_output=True, text=True).stdout.split("\n")


def run_in_terminal(arguments, columns=80, until=None, **environment):
    """What `cbnorm ARGUMENTS` shows in a terminal of so many columns, and its exit status.

    Standard output and error both are the terminal. Once `until` is shown, a regular expression, Ctrl-C is pressed.
    No process of the terminal may outlive it, but for the minute that all of this may take.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_TERMINAL}
    process = subprocess.Popen(
        # The terminal of a session of its own: Ctrl-C goes to all who run in its foreground, as in a shell.
        [sys.executable, "-c", "import fcntl, termios, sys; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
         "sys.modules |= {'torch': None} if sys.argv[1] == 'bench' else {}; "  # seconds to import, for the limit alone
         "from cbnorm._cli import main; sys.exit(main(sys.argv[1:]))", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=inherited | {"TERM": "xterm", "LANG": "C.UTF-8"} | environment,
    )  # fmt: skip
    os.close(theirs)
    shown, end = b"", monotonic() + 60
    try:
        while monotonic() < end:
            try:
                news = os.read(ours, 1 << 16)
            except OSError:  # Linux: nobody has the other side open any more
                break
            if not news:
                break
            shown += news
            if until and re.search(until, shown.decode(errors="replace")):
                os.write(ours, CTRL_C)
                until = None
        status = process.wait(timeout=10)
        while any(left := processes_of(process.pid)):
            assert monotonic() < end, left
            sleep(0.1)
        return shown.decode().replace("\r\n", "\n"), status
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def lines_of(shown):
    """The lines that stay, without styles and without what a bar has drawn over."""
    text = re.sub(r"\x1b\[[?0-9;]*[A-LN-Za-ln-z]", "", STYLE.sub("", shown))
    return [line.rpartition("\r")[2] for line in text.split("\n")]
