"""Calls that are watched: a result or a named error, nothing changed that is not the call's to change."""

import array
import ctypes
import functools
import inspect
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

import cbnorm

CALLS = Counter()  # by function, for the summary of a run

try:
    libm = ctypes.CDLL("libm.so.6")
    environment = ctypes.create_string_buffer(64)
    libm.fegetenv(environment)
except (OSError, AttributeError):
    libm = None


class Outcome(NamedTuple):
    """What a call returned, or the error it raised."""

    result: Any = None
    error: Exception | None = None

    @property
    def names(self):
        """The first word of the error: the argument that it is about."""
        return "" if self.error is None else str(self.error).split(":")[0].split("[")[0].split(".")[0].split(" ")[0]


def process_state():
    """What a call must leave as it is: how floats are rounded, flushed and printed, warned of, drawn; threads."""
    rounding = None
    if libm is not None:
        libm.fegetenv(environment)
        control = int.from_bytes(environment.raw[28:32], "little") & ~0x3F  # MXCSR without its flags
        rounding = libm.fegetround(), control, environment.raw[:2]
    return (
        rounding,
        np.geterr(),
        np.geterrcall(),
        str(np.get_printoptions()),
        np.getbufsize(),
        len(warnings.filters),
        cbnorm.get_num_threads(),
        cbnorm.get_pool_limit(),
    )


def arrays_in(value, depth=0):
    """Every array among the arguments: inside sequences, mappings, caches and what they are views of."""
    if isinstance(value, np.ndarray):
        while value is not None:
            if isinstance(value, np.ndarray):
                yield value
            value = getattr(value, "base", None)
    elif isinstance(value, bytearray | memoryview | array.array):
        yield np.frombuffer(value, np.uint8)
    elif depth < 3 and isinstance(value, list | tuple):
        for each in value:
            yield from arrays_in(each, depth + 1)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()), depth + 1)
    elif isinstance(value, cbnorm.Cache):
        yield from arrays_in([value.x, value.gamma, value._statistics], depth + 1)
    elif isinstance(value, cbnorm.Moments):
        yield from arrays_in([value.mean, value.m2, value.mean_lo], depth + 1)
    elif isinstance(value, cbnorm.parts.GradientSums):
        yield from arrays_in([value.dout, value.dout_xhat], depth + 1)
    elif hasattr(value, "hidden"):  # our own objects with an __array__ or its kin
        yield from arrays_in(value.hidden, depth + 1)


def snapshot(value):
    return [(each, each.shape, each.strides, each.dtype, bytes_of(each)) for each in arrays_in(value)]


def bytes_of(value):
    return np.ndarray.tobytes(value)


def assert_unchanged(before, what):
    for each, shape, strides, dtype, content in before:
        assert (each.shape, each.strides, each.dtype) == (shape, strides, dtype), f"{what}: an array has a new form"
        assert bytes_of(each) == content, f"{what}: an array has changed"


@functools.lru_cache(512)
def parameters_of(function):
    return frozenset(inspect.signature(function).parameters)


def attempt(function, /, **arguments):
    """Call by keywords. Other errors than a ValueError or TypeError that begins with a parameter's name fail."""
    name = getattr(function, "__qualname__", str(function))
    CALLS[name] += 1
    out = arguments.get("out")
    writes = isinstance(out, np.ndarray)
    before, state = snapshot(list(arguments.values())), process_state()
    saved = np.array(out, subok=False) if writes else None
    try:
        outcome = Outcome(function(**arguments))
    except (ValueError, TypeError) as error:
        outcome = Outcome(error=error)
    assert process_state() == state, f"{name} left another state of the process"
    if outcome.error is not None:
        allowed = {*parameters_of(function), name, name.rpartition(".")[2], name.partition(".")[0]}
        if inspect.ismethod(function):  # the constructor's arguments hold for every call of an object
            owner = function.__self__
            allowed |= parameters_of(owner if isinstance(owner, type) else type(owner))
        assert outcome.names in allowed, f"{name}: {type(outcome.error).__name__}: {outcome.error}"
        assert_unchanged(before, f"{name} that failed")
        return outcome
    if writes:  # back to what it was, so that all that lies around it must be as it was
        written = np.array(out, subok=False)
        out[...] = saved
        assert_unchanged(before, name)
        out[...] = written
    else:
        assert_unchanged(before, name)
    assert_apart(outcome.result, before, out, name)
    return outcome


def assert_apart(result, before, out, name):
    """Results are new memory, or `out`."""
    for each in result if isinstance(result, tuple) else (result,):
        if isinstance(each, np.ndarray) and each is not out:
            for other, *_ in before:
                assert not np.may_share_memory(each, other.view(np.ndarray)), (
                    f"{name}: a result is a view of an argument"
                )


def call(function, /, **arguments):
    """A call that must succeed: its result."""
    outcome = attempt(function, **arguments)
    if outcome.error is not None:
        raise AssertionError(f"{function.__name__} refused: {outcome.error}") from outcome.error
    return outcome.result


def refuse(function, culprits, /, **arguments):
    """A call that must fail, naming one of these arguments."""
    outcome = attempt(function, **arguments)
    assert outcome.error is not None, f"{function.__name__}: took a wrong {' or '.join(culprits)}"
    assert outcome.names in culprits, f"{function.__name__}: blames another argument: {outcome.error}"
    return outcome.error


def summary():
    return f"hostile calls: {sum(CALLS.values()):,} ({', '.join(f'{n} {c:,}' for n, c in CALLS.most_common())})"
