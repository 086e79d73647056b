"""The command line: `cbnorm demo`, `cbnorm bench` and `cbnorm info`. Heavy imports wait until a command needs them."""

import argparse
import math
import sys
from pathlib import Path

import cbnorm
from cbnorm._cli import output
from cbnorm._cli.demo.network import NORMS
from cbnorm._threads import MOST_THREADS

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
        The exit status: 0 when all went well, 1 when a file could not be written or cbnorm failed the
        check of `bench`, 2 when an extra is missing, 130 after Ctrl-C. Wrong options end the process with
        status 2, as argparse does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_EXTRAS:
            raise
        instead = f" (or {options.without_picture})" if missing == "matplotlib" else ""
        print(f"cbnorm {options.command} needs {missing}: pip install 'cbnorm[demo]'{instead}", file=sys.stderr)
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
    demo.set_defaults(run=_demo, fail=demo.error, command="demo", without_picture="pass --no-plot")

    _add_bench(commands)
    return parser


def _add_bench(commands):
    from cbnorm._cli.bench.cases import OPERATIONS

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
    bench.set_defaults(run=_bench, fail=bench.error, command="bench", without_picture="leave out --plot")


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
    from cbnorm._cli.bench.cases import Shape

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


def _info(options):
    cbnorm.show_config()
    return 0


def _demo(options):
    # Everything that can go wrong with the picture is told before the training, not after it.
    if not options.no_plot and (problem := output.cannot_draw(options.output)):
        options.fail(f"argument --output: {problem}")

    from cbnorm._cli.demo import experiment, report

    results = output.with_progress(
        experiment.run, epochs=options.epochs, seed=options.seed, norms=dict.fromkeys(options.norm)
    )
    report.print_tables(results)
    if options.no_plot:
        return 0

    from cbnorm._cli.demo import picture

    return 0 if output.write("demo", "Picture", picture.draw, results, options.output) else 1


def _bench(options):
    # As for the demo: nothing that can be told before the measurement is told after it.
    plan = _plan(options)
    if options.json and (problem := output.cannot_write(options.json)):
        options.fail(f"argument --json: {problem}")
    if options.plot and options.company is not None:
        options.fail("argument --plot: not with --company")
    if options.plot and (problem := output.cannot_draw(options.plot)):
        options.fail(f"argument --plot: {problem}")

    from cbnorm._cli.bench import company, measure, report
    from cbnorm._cli.bench.peers import installed_peers

    settings = {
        "plan": plan,
        "peers": list(dict.fromkeys(options.against or installed_peers())),
        "dtype": options.dtype,
        "num_threads": options.threads or cbnorm.get_num_threads(),
        "budget": options.budget,
    }
    if options.company is None:
        results = output.with_progress(measure.run, **settings)
        report.print_tables(results)
        agrees = results.agrees
    else:
        if not options.against:
            settings["peers"] = [name for name in ("torch", "numpy") if name in settings["peers"]]
        results = output.with_progress(company.run, **settings, busy=options.company or (1, 2))
        report.print_company(results)
        agrees = True  # nobody is checked
    written = [True]
    if options.json:
        written.append(output.write("bench", "Numbers", report.write_json, results, options.json))
    if options.plot:
        from cbnorm._cli.bench import picture

        written.append(output.write("bench", "Picture", picture.draw, results, options.plot))
    return 0 if all(written) and agrees else 1


def _plan(options):
    """The lines to measure, (operation, shape); a shape that an operation cannot take is left out for it."""
    from cbnorm._cli.bench.cases import COMPANY, OPERATIONS

    in_company = options.company is not None
    plan = []
    for name in dict.fromkeys(options.operation or (["train"] if in_company else OPERATIONS)):
        shapes = options.shape or (COMPANY if in_company else OPERATIONS[name].shapes)
        problems = {shape: OPERATIONS[name].unsuitable(shape) for shape in shapes}
        if all(problems.values()) and options.operation:
            options.fail(f"argument --shape: {name}: {problems[shapes[0]]}")
        plan += [(name, shape) for shape, problem in problems.items() if not problem]
    return plan
