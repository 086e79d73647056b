"""The words after `cbnorm`: options, their types, and help. Heavy imports wait until a command needs them."""

import argparse
import math
from pathlib import Path

import cbnorm
from cbnorm._cli.bench.cases import OPERATIONS, Shape
from cbnorm._cli.demo.network import NORMS
from cbnorm._threads import MOST_THREADS


def parse(arguments=None):
    """Options as attributes, and the `command`, None where none is given; `fail` ends the process for a wrong option.

    So do `--help`, `--version` and what argparse itself finds wrong.
    """
    parser = argparse.ArgumentParser(prog="cbnorm", description="Normalization layers for NumPy on the CPU.")
    parser.add_argument("--version", action="version", version=f"cbnorm {cbnorm.__version__}")
    parser.set_defaults(command=None, help=parser.format_help)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_info(commands)
    _add_demo(commands)
    _add_bench(commands)
    return parser.parse_args(arguments)


def _add_info(commands):
    info = commands.add_parser(
        "info",
        help="show what a bug report needs: versions, platform, CPU, kernels, OpenMP, threads, settings",
        description="Show what a bug report needs: versions, platform, CPU, kernel build, OpenMP, caches, threads "
        "and the environment variables in force.",
    )
    info.add_argument("--json", action="store_true", help="the same as JSON, as show_config('dicts') gives it")
    info.set_defaults(command="info", fail=info.error)


def _add_demo(commands):
    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits with and without normalization",
        description="Train a multilayer perceptron in NumPy on scikit-learn's handwritten digits, with and "
        "without normalization, at several learning rates; print what it gains and draw a picture.",
    )
    demo.add_argument("--epochs", type=_at_least(1), default=40, help="passes over the data (default: 40)")
    demo.add_argument(
        "--norm",
        nargs="+",
        choices=list(NORMS),
        default=["none", "batch"],
        help=f"the normalizations to compare: {', '.join(NORMS)} (default: none batch)",
        metavar="NORM",
    )
    demo.add_argument("--seed", type=_at_least(0), default=0, help="same seed, same numbers (default: 0)")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("cbnorm-demo.png"),
        metavar="FILE",
        help="the picture (default: cbnorm-demo.png); the ending sets the format",
    )
    demo.add_argument("--no-plot", action="store_true", help="no picture: matplotlib is not needed")
    demo.set_defaults(command="demo", fail=demo.error, without_picture="pass --no-plot")


def _add_bench(commands):
    bench = commands.add_parser(
        "bench",
        help="time cbnorm, the NumPy formulas and other libraries on the same arrays",
        description="Time cbnorm, the NumPy reference formulas and whichever of the other libraries are "
        "installed, in turn on the same arrays, each checked against float64 first; beside a plain copy of "
        "the same bytes, which is the limit.",
    )
    bench.add_argument(
        "--operation",
        action="append",
        choices=OPERATIONS,
        metavar="NAME",
        help=f"what to time; may be repeated (default: all of {', '.join(OPERATIONS)})",
    )
    bench.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="SHAPE",
        help="4096x1024; 64x224x224x3@-1, where @ gives the axis of the channels (or of the first "
        "normalized axis of layernorm and rmsnorm); 16x256x28x28/32, where / gives the number of groups; "
        "may be repeated (default: small to large ones for each operation)",
    )
    bench.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    bench.add_argument(
        "--threads",
        type=_threads,
        default=None,
        metavar="N",
        help=f"for everyone who can use more than one (default: {cbnorm.get_num_threads()})",
    )
    bench.add_argument(
        "--budget",
        type=_seconds,
        default=0.5,
        metavar="SECONDS",
        help="time for each line of the table, at least five calls of everyone (default: 0.5)",
    )
    bench.add_argument(
        "--against",
        nargs="+",
        type=_peer,
        metavar="PEER",
        help="numpy, torch, sklearn, ... (default: all that are installed)",
    )
    bench.add_argument(
        "--company",
        nargs="*",
        type=_at_least(1),
        metavar="N",
        help="instead of everyone's fastest call, the mean of calls alone, between matmuls and beside N processes "
        "that keep a core busy each (default: 1 2); --budget is then for one of three turns of each contestant, and "
        "train on four shapes, against numpy and torch, the default",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every number measured")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios; the ending sets the format")
    bench.set_defaults(command="bench", fail=bench.error, without_picture="leave out --plot")


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


def _threads(text):
    count = _at_least(1)(text)
    if count > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_THREADS}, got {text!r}")
    return count


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def _shape(text):
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _peer(text):
    from cbnorm._cli.bench.peers import PEERS, installed_peers

    installed = installed_peers()
    if text in installed:
        return text
    problem = "is not installed" if text in PEERS else "is no peer of cbnorm"
    raise argparse.ArgumentTypeError(f"{text} {problem}, expected one of {', '.join(installed)}")
