"""The command line: `cbnorm demo` and `cbnorm info`. Heavy imports wait until a command needs them."""

import argparse
import os
import sys
from pathlib import Path

import cbnorm

# What `pip install 'cbnorm[demo]'` adds, by import name.
DEMO_EXTRAS = ("sklearn", "matplotlib", "rich")


def main(arguments=None):
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        The words after `cbnorm`; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 when all went well, 1 when the picture could not be written, 2 when an extra
        is missing, 130 after Ctrl-C. Wrong options end the process with status 2, as argparse does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_EXTRAS:
            raise
        instead = " (or pass --no-plot)" if missing == "matplotlib" else ""
        print(f"cbnorm demo needs {missing}: pip install 'cbnorm[demo]'{instead}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser():
    parser = argparse.ArgumentParser(prog="cbnorm", description="Normalization layers for NumPy on the CPU.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="show the kernel build, the CPU and the threads in use")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits with and without batch normalization",
        description="Train a multilayer perceptron in NumPy on scikit-learn's handwritten digits, with and "
        "without batch normalization, at several learning rates; print what it gains and draw a picture.",
    )
    demo.add_argument("--epochs", type=_at_least(1), default=40, help="passes over the data (default: 40)")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="same seed, same numbers (default: 0)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("cbnorm-demo.png"),
        metavar="FILE",
        help="the picture (default: cbnorm-demo.png); the ending sets the format",
    )
    demo.add_argument("--no-plot", action="store_true", help="no picture: matplotlib is not needed")
    demo.set_defaults(run=_demo, fail=demo.error)
    return parser


def _at_least(lowest):
    def integer(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < lowest:
            raise argparse.ArgumentTypeError(f"expected an integer of {lowest} or more, got {text!r}")
        return value

    return integer


def _info(options):
    cbnorm.show_config()
    return 0


def _demo(options):
    # Everything that can go wrong with the picture is told before the training, not after it.
    if not options.no_plot:
        from cbnorm.cli import picture

        problem = _cannot_write(options.output) or picture.unknown_format(options.output)
        if problem:
            options.fail(f"argument --output: {problem}")

    from cbnorm.cli import demo, report

    results = report.with_progress(demo.run, epochs=options.epochs, seed=options.seed)
    report.print_tables(results)
    if options.no_plot:
        return 0
    try:
        picture.draw(results, options.output)
    except OSError as error:
        print(f"cbnorm demo: cannot write {options.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"Picture: {options.output}")
    return 0


def _cannot_write(path):
    """Say why a file cannot be written at `path`, or None."""
    if not path.parent.is_dir():
        return f"no such directory: {path.parent}"
    if path.is_dir():
        return f"is a directory: {path}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"no permission to write {path}"
    return None
