"""The command line: `cbnorm demo`, `cbnorm bench` and `cbnorm info`. Heavy imports wait until a command needs them."""

import json
import os
import sys
from contextlib import suppress

import cbnorm
from cbnorm._cli import output
from cbnorm._cli.arguments import parse
from cbnorm._cli.bench.cases import COMPANY, OPERATIONS

# What `pip install 'cbnorm[demo]'` and 'cbnorm[bench]' add, by import name; rich is done without.
EXTRAS = ("sklearn", "threadpoolctl", "matplotlib")


def main(arguments=None):
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        The words after `cbnorm`; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 when all went well; 1 when a file or the output could not be written, memory was short,
        or `bench` had to leave out a line or found cbnorm wrong; 2 when an extra is missing; 130 after Ctrl-C.
        Wrong options end the process with status 2, as argparse does.
    """
    options = parse(arguments)
    command = options.command
    try:
        if command is None:
            print(options.help(), end="")
            return 0
        status = COMMANDS[command](options)
        if sys.stdout:
            sys.stdout.flush()  # what cannot be written is told below
        return status
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        instead = f" (or {options.without_picture})" if missing == "matplotlib" else ""
        output.complain(command, f"needs {missing}: pip install 'cbnorm[{command}]'{instead}")
        return 2
    except MemoryError as error:
        output.complain(command, str(error) or "out of memory")
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        _let_output_go()
        return 1
    except OSError as error:
        _let_output_go()
        output.complain(command, f"cannot go on: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _let_output_go():
    """Keep the interpreter from writing, at its end, what could not be written."""
    with suppress(OSError, ValueError, AttributeError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _info(options):
    if options.json:
        print(json.dumps(cbnorm.show_config("dicts"), indent=2))
    else:
        cbnorm.show_config()
    return 0


def _demo(options):
    # Everything that can go wrong with the picture is told before the training, not after it.
    if not options.no_plot and (problem := output.cannot_draw(options.output)):
        options.fail(f"argument --output: {problem}")

    from cbnorm._cli.demo import experiment, report
    from cbnorm._cli.progress import Progress

    with Progress() as progress:
        norms = dict.fromkeys(options.norm)
        results = experiment.run(epochs=options.epochs, seed=options.seed, norms=norms, progress=progress)
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

    from cbnorm._cli.bench import company, measure, report, session
    from cbnorm._cli.bench.peers import installed_peers

    peers = list(dict.fromkeys(options.against or installed_peers()))
    files = [("Numbers", report.write_json, options.json)] if options.json else []
    common = options.dtype, options.threads or cbnorm.get_num_threads(), options.budget
    if options.company is not None:
        peers = peers if options.against else [name for name in ("torch", "numpy") if name in peers]
        contest = company.Company(peers, *common, options.company or (1, 2))
        return session.run(plan, contest, report.IN_COMPANY, files)
    if options.plot:
        from cbnorm._cli.bench import picture

        files.append(("Picture", picture.draw, options.plot))
    return session.run(plan, measure.Measurement(peers, *common), report.ALONE, files)


def _plan(options):
    """The lines to measure, (operation, shape); a shape that an operation cannot take is left out for it."""
    in_company = options.company is not None
    plan = []
    for name in dict.fromkeys(options.operation or (["train"] if in_company else OPERATIONS)):
        shapes = options.shape or (COMPANY if in_company else OPERATIONS[name].shapes)
        problems = {shape: OPERATIONS[name].unsuitable(shape) for shape in shapes}
        if all(problems.values()) and options.operation:
            options.fail(f"argument --shape: {name}: {problems[shapes[0]]}")
        plan += [(name, shape) for shape, problem in problems.items() if not problem]
    return plan


COMMANDS = {"info": _info, "demo": _demo, "bench": _bench}
