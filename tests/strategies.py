"""Hypothesis strategies: numbers, forms of arrays, memory that overlaps; wrong arguments are in wrong.py.

Everything is drawn from tables by name, so that an example says what it is.
"""

import array
import math
import mmap
import tempfile
import warnings
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
MOST_NUMBERS = 72  # exact arithmetic takes its time


class Given(NamedTuple):
    """An argument, and the array that it stands for."""

    thing: Any
    means: np.ndarray | None
    form: str = "plain"

    def __repr__(self):
        return f"Given({self.form}: {self.thing!r})"


# Numbers: functions of a generator, a size and the dtype's finfo.
RECIPES = {
    "plain": lambda rng, size, info: rng.normal(2, 3, size),
    "offset": lambda rng, size, info: rng.normal(size=size) + (1e3 if info.bits == 16 else 1e6),
    "constant": lambda rng, size, info: np.full(size, rng.normal()),
    "constant with a large value": lambda rng, size, info: np.full(size, 1.1 * 2.0 ** (info.maxexp // 2)),
    "zeros of both signs": lambda rng, size, info: rng.choice([0.0, -0.0], size),
    "small integers": lambda rng, size, info: rng.integers(-3, 4, size).astype(float),
    "first far away": lambda rng, size, info: np.where(np.arange(size) == 0, 3e4, rng.normal(size=size)),
    "of many scales": lambda rng, size, info: rng.normal(size=size) * 10.0 ** rng.uniform(-4, 4, size),
    "neighbours of 1": lambda rng, size, info: 1 + rng.integers(0, 4, size) * float(info.eps),
    "large": lambda rng, size, info: rng.normal(size=size) * 2.0 ** (info.maxexp * 7 // 8 / (1 + (info.bits == 64))),
    "small": lambda rng, size, info: rng.normal(size=size) * 2.0 ** (info.minexp * 7 // 8 / (1 + (info.bits == 64))),
    "alternating and large": lambda rng, size, info: (
        (1 - 2.0 * (np.arange(size) % 2)) * 2.0 ** (info.maxexp // 2 - 2) + rng.normal(size=size)
    ),
    "largest": lambda rng, size, info: rng.choice([-1.0, 1.0], size) * float(info.max),
    "huge": lambda rng, size, info: rng.normal(size=size) * float(info.max) / 2**6,
    "tiny": lambda rng, size, info: rng.normal(size=size) * float(info.tiny) * 2**6,
    "subnormal": lambda rng, size, info: rng.integers(-9, 10, size) * float(info.smallest_subnormal),
    "one NaN": lambda rng, size, info: np.where(np.arange(size) == size // 2, np.nan, rng.normal(size=size)),
    "one infinity": lambda rng, size, info: np.where(np.arange(size) == size // 3, np.inf, rng.normal(size=size)),
    "infinities of both signs": lambda rng, size, info: np.where(
        rng.random(size) < 0.3, rng.choice([-np.inf, np.inf], size), rng.normal(size=size)
    ),
}


@st.composite
def number_arrays(draw, shape, dtypes=FLOATS, recipes=None):
    """A plain array of this shape."""
    dtype = draw(st.sampled_from(dtypes))
    rng, size = np.random.default_rng(draw(st.integers(0, 999))), math.prod(shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        reach = draw(st.sampled_from(["integers below 2^53", "all integers"]))
        most = min(info.max, 2**52) if reach == "integers below 2^53" else info.max
        least = max(info.min, -(2**52)) if reach == "integers below 2^53" else info.min
        least, most = draw(st.sampled_from([(least, most), (max(least, -5), 5), (most - 3, most)]))
        return rng.integers(least, most, shape, dtype, endpoint=True)
    recipe = draw(st.sampled_from(recipes or list(RECIPES)))
    with np.errstate(all="ignore"):
        return RECIPES[recipe](rng, size, np.finfo(dtype)).astype(dtype).reshape(shape)


ALL_DTYPES = (*FLOATS, *FLOATS, *FLOATS, *INTEGERS, "bool")


@st.composite
def shapes(draw, least_axes=1, most_axes=5, most=MOST_NUMBERS):
    """Lengths of axes, empty ones too."""
    axes = draw(st.integers(least_axes, most_axes))
    lengths, room = [], most
    for _ in range(axes):
        length = draw(
            st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, min(room, draw(st.sampled_from((3, 6, most)))))
        )
        lengths.append(length)
        room //= max(length, 1)
    return tuple(draw(st.permutations(lengths)))


# Forms: functions of a plain array. What they mean is read from what comes out, as some change numbers or dtype.
class Subclass(np.ndarray):
    """As a user may write it: nothing but its own arithmetic, which is not to be called."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        raise AssertionError("the subclass's arithmetic was called")

    def __array_function__(self, function, types, args, options):
        raise AssertionError("the subclass's functions were called")


class Holder:
    """An object that is no array and shows one by the protocols that it is given."""

    def __init__(self, **protocols):
        vars(self).update(protocols)


class HasArray(Holder):
    def __array__(self, dtype=None, copy=None):
        return self.hidden if dtype is None else self.hidden.astype(dtype)


def misaligned(a):
    memory = np.empty(a.nbytes + 1, np.uint8)
    moved = memory[1:].view(a.dtype).reshape(a.shape)
    moved[...] = a
    return moved


def every_second(a):
    memory = np.ones([2 * length + 1 for length in a.shape], a.dtype)
    view = memory[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def in_records(a):
    records = np.zeros(a.shape, [("flag", "u1"), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def windows(a):
    """Rows that overlap in memory: strides shorter than a row."""
    if a.ndim < 2 or not a.size:
        return a
    rows, columns = len(a), a.size // len(a)
    source = np.resize(a, rows + columns - 1)
    view = np.lib.stride_tricks.sliding_window_view(source, columns)
    return (
        np.lib.stride_tricks.as_strided(
            source, a.shape, (source.itemsize, *np.empty(a.shape[1:], a.dtype).strides), writeable=False
        )
        if view.shape == (rows, columns)
        else a
    )


def matrix(a):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asmatrix(a) if a.ndim == 2 else a


def mapped(a):
    if not a.size:
        return a
    with tempfile.TemporaryFile() as file:
        file.write(a.tobytes())
        file.flush()
        return np.memmap(file, a.dtype, "r+", shape=a.shape)


def in_shared_memory(a):
    memory = np.frombuffer(mmap.mmap(-1, max(a.nbytes, 1)), a.dtype, a.size).reshape(a.shape)
    memory[...] = a
    return memory


def in_bytearray(a):
    return np.frombuffer(bytearray(a.tobytes()), a.dtype).reshape(a.shape) if a.size else a


def python_array(a):
    codes = {"float32": "f", "float64": "d", "int8": "b", "uint8": "B", "int16": "h", "int32": "i", "int64": "q"}
    return array.array(codes[a.dtype.name], a.tobytes()) if a.ndim == 1 and a.dtype.name in codes else a


def nested(a, outer=list, inner=list):
    """Sequences of sequences; an empty array has no such form."""
    if not a.size:
        return a
    return (
        outer(nested(each, inner, outer) for each in a) if a.ndim > 1 else outer(a.tolist() if a.ndim else [a.item()])
    )


FORMS = {
    "plain": lambda a: a,
    "Fortran order": np.asfortranarray,
    "axes moved": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0),
    "negative strides": lambda a: np.flip(np.ascontiguousarray(np.flip(a))),
    "a negative stride": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "every second": every_second,
    "zero strides": lambda a: np.broadcast_to(a[:1], a.shape) if a.size else a,
    "all strides zero": lambda a: np.broadcast_to(a.ravel()[:1].reshape([1] * a.ndim), a.shape) if a.size else a,
    "overlapping windows": windows,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "field of records": in_records,
    "read-only": read_only,
    "subclass": lambda a: a.copy().view(Subclass),
    "matrix": matrix,
    "recarray": lambda a: a.copy().view(np.recarray),
    "memmap": mapped,
    "shared memory": in_shared_memory,
    "bytearray": in_bytearray,
    "array.array": python_array,
    "memoryview": lambda a: memoryview(a),
    "__array__": lambda a: HasArray(hidden=a),
    "__array_interface__": lambda a: Holder(hidden=a, __array_interface__=a.__array_interface__),
    "__array_struct__": lambda a: Holder(hidden=a, __array_struct__=a.__array_struct__),
    "lists": nested,
    "tuples": lambda a: nested(a, tuple, tuple),
    "lists of tuples": lambda a: nested(a, list, tuple),
    "list of arrays": lambda a: list(a) if a.size else a,
    "list of memoryviews": lambda a: [memoryview(each) for each in a] if a.size and a.ndim > 1 else a,
    "list of objects": lambda a: [HasArray(hidden=each) for each in a] if a.size and a.ndim > 1 else a,
}
ARRAY_FORMS = [name for name in FORMS if isinstance(FORMS[name](np.ones((2, 2))), np.ndarray)]


@st.composite
def arrays(draw, shape, dtypes=ALL_DTYPES, recipes=None, forms=tuple(FORMS)):
    """An array of real numbers of this shape, in any form."""
    plain = draw(number_arrays(shape, dtypes, recipes))
    form = draw(st.sampled_from(["plain", *forms])) if shape else "plain"
    thing = FORMS[form](plain)
    return Given(thing, np.array(getattr(thing, "hidden", thing), subok=False), form)


@st.composite
def parameters(draw, shape):
    """None, or gamma or beta."""
    if draw(st.integers(0, 3)) == 0:
        return Given(None, None, "none")
    return draw(arrays(shape, (*FLOATS, *FLOATS, "int64", "bool"), PARAMETER_RECIPES))


PARAMETER_RECIPES = ["plain", "small integers", "constant", "zeros of both signs", "of many scales", "one NaN"]
TINY = [1e-12, 1e-30, 1e-300]
OTHER_EPS = [np.float32(1e-5), np.float16(0.5), np.int64(1), Fraction(1, 3)]
EPS = st.sampled_from([1e-5, 0, 0.0, 1e-3, 1, 2.5, 1e30, *OTHER_EPS, *TINY])
MOMENTUM = st.sampled_from([0.9, 0, 1, 0.0, 1.0, 0.5, 0.999, np.float32(0.25), Fraction(1, 3), 5e-324, 1 - 2**-53])


@st.composite
def axes(draw, ndim, kinds=(int, np.int8, np.int64, np.uint8, np.array)):
    """An axis as any kind of integer, counted from either end."""
    axis, kind = draw(st.integers(-ndim, ndim - 1)), draw(st.sampled_from(kinds))
    return kind(axis % ndim if kind is np.uint8 else axis)


# Overlaps: views of one block of memory, for arguments and `out`.
@st.composite
def views(draw, memory, shape):
    """A view of some of the numbers in a flat block: contiguous, reversed, every second, transposed, or repeated."""
    size = math.prod(shape)
    way = draw(st.sampled_from(["contiguous", "contiguous", "reversed", "every second", "Fortran order", "repeated"]))
    step = 2 if way == "every second" else 1
    start = draw(st.integers(0, len(memory) - size * step))
    part = memory[start : start + size * step : step]
    if way == "reversed":
        return part[::-1].reshape(shape)
    if way == "Fortran order":
        return part.reshape(shape[::-1]).T
    if way == "repeated" and size:
        return np.broadcast_to(part[: shape[-1]], shape)
    return part.reshape(shape)
