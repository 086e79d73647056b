"""Arguments of every wrong kind, by name: functions of the array or value that would be right."""

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from strategies import Given, HasArray, every_second, misaligned, read_only


class Raises:
    """Raises whatever way it is looked at."""

    def __init__(self, error):
        self.error = error

    def fail(self, *_, **__):
        raise self.error

    __array__ = __index__ = __float__ = __iter__ = __len__ = __getitem__ = fail


class Lies:
    """Says that it is an array and is none."""

    __array_interface__ = {"shape": (2, -3), "typestr": "<f8", "data": (0, False), "version": 3}  # noqa: RUF012


def holding_itself():
    loop = []
    loop.append(loop)
    return loop


def deep(levels=80):
    value = 1.0
    for _ in range(levels):
        value = [value]
    return value


def masked(a):
    return np.ma.array(a, mask=np.arange(a.size).reshape(a.shape) % 2 == 0)


WRONG_ARRAYS = {
    "a string": lambda a: "text",
    "bytes": lambda a: b"bytes",
    "strings": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
    "fractions": lambda a: [Fraction(1, 2)] * 3,
    "decimals": lambda a: [[Decimal(1)] * 3] * 2,
    "complex": lambda a: a.astype(complex),
    "long doubles": lambda a: a.astype(np.longdouble),
    "dates": lambda a: np.zeros(a.shape, "M8[ns]"),
    "durations": lambda a: np.zeros(a.shape, "m8[s]"),
    "records": lambda a: np.zeros(a.shape, "f8,f8"),
    "raw memory": lambda a: np.zeros(a.shape, "V8"),
    "masked": masked,
    "masked nowhere": lambda a: np.ma.array(a),
    "np.ma.masked": lambda a: np.ma.masked,
    "list of masked arrays": lambda a: [masked(np.ones(3)), masked(np.ones(3))],
    "tuple of lists of masked arrays": lambda a: ([masked(np.ones(3))], [np.ones(3)]),
    "list of masked numbers": lambda a: [[np.ma.masked, 1.0], [2.0, 3.0]],
    "ragged lists": lambda a: [[1.0, 2.0], [3.0]],
    "a list with None": lambda a: [[1.0, None], [2.0, 3.0]],
    "a list with text": lambda a: [[1.0, "2"], [2.0, 3.0]],
    "a dictionary": lambda a: {"x": a},
    "a set": lambda a: {1.0, 2.0},
    "a generator": lambda a: (each for each in [[1.0], [2.0]]),
    "a type": lambda a: np.ndarray,
    "a function": lambda a: np.ones,
    "an object": lambda a: object(),
    "an integer beyond 64 bits": lambda a: [[2**70, 1], [2, 3]],
    "a list in itself": lambda a: holding_itself(),
    "a list 80 deep": lambda a: deep(),
    "a wrong interface": lambda a: Lies(),
    "an array that raises ValueError": lambda a: Raises(ValueError("from the caller's object")),
    "an array that raises TypeError": lambda a: Raises(TypeError("from the caller's object")),
    "an array that raises RuntimeError": lambda a: Raises(RuntimeError("from the caller's object")),
    "an array that raises KeyError": lambda a: Raises(KeyError("from the caller's object")),
    "an array that raises UnicodeDecodeError": lambda a: Raises(UnicodeDecodeError("utf-8", b"", 0, 1, "reason")),
    "an __array__ that returns a list": lambda a: HasArray(hidden=[1.0]),
    "an __array__ that returns nothing": lambda a: HasArray(hidden=None),
}
WRONG_SHAPES = {
    "one axis more": lambda a: np.ones((*a.shape, 2)),
    "one number more": lambda a: np.ones([length + 1 for length in a.shape] or 2),
    "a vector of other length": lambda a: np.ones(a.size + 1),
    "a lone number": lambda a: 1.0 if a.ndim else [1.0],
}
WRONG_NUMBERS = {
    "None": lambda a: None,
    "text": lambda a: "1e-5",
    "a complex number": lambda a: 1j,
    "NaN": lambda a: math.nan,
    "minus one": lambda a: -1,
    "a little below zero": lambda a: -1e-300,
    "infinity": lambda a: math.inf,
    "a huge integer": lambda a: 10**400,
    "a huge negative integer": lambda a: -(10**400),
    "a huge fraction": lambda a: Fraction(10**400, 3),
    "a decimal": lambda a: Decimal("0.5"),
    "a list": lambda a: [0.5],
    "an array": lambda a: np.array([0.5]),
    "an array without axes": lambda a: np.array(0.5),
    "a long double": lambda a: np.longdouble("1e400"),
    "an object": lambda a: object(),
    "a bool": lambda a: True,
    "a NumPy bool": lambda a: np.True_,
    "a date": lambda a: np.datetime64(1, "s"),
    "a number that raises": lambda a: Raises(RuntimeError("from the caller's object")),
}
WRONG_INTEGERS = {
    "None": lambda a: None,
    "a float": lambda a: 1.0,
    "a NumPy float": lambda a: np.float32(1),
    "text": lambda a: "1",
    "far too large": lambda a: 10**30,
    "far too small": lambda a: -(10**30),
    "just beyond 64 bits": lambda a: 2**63,
    "100": lambda a: 100,
    "-100": lambda a: -100,
    "NaN": lambda a: math.nan,
    "a list": lambda a: [1],
    "an array": lambda a: np.array([1]),
    "a fraction": lambda a: Fraction(1),
    "an object": lambda a: object(),
    "a bool": lambda a: True,
    "a NumPy bool": lambda a: np.True_,
    "an integer that raises TypeError": lambda a: Raises(TypeError("from the caller's object")),
    "an integer that raises": lambda a: Raises(RuntimeError("from the caller's object")),
}
WRONG_CHOICES = {
    "None": lambda a: None,
    "text": lambda a: "TRAIN",
    "bytes": lambda a: b"train",
    "a bool": lambda a: True,
    "2": lambda a: 2,
    "-1": lambda a: -1,
    "a float": lambda a: 1.5,
    "NaN": lambda a: math.nan,
    "a list": lambda a: ["train"],
    "an array": lambda a: np.array(["train", "test"]),
    "an array of numbers": lambda a: np.array([0, 1]),
    "an object": lambda a: object(),
}
WRONG_NEEDS = {
    "None": lambda a: None,
    "a bool": lambda a: True,
    "too many": lambda a: (True,) * 4,
    "one": lambda a: (True,),
    "integers": lambda a: (1, 1, 1),
    "text": lambda a: "yes",
    "a string of bools": lambda a: ("True",) * 3,
    "nothings": lambda a: (None,) * 3,
    "arrays": lambda a: (np.ones(2, bool),) * 3,
    "endless": lambda a: itertools.repeat(True, 1000),
    "an iterable that raises": lambda a: Raises(RuntimeError("from the caller's object")),
}
WRONG_OUTS = {
    "a list": lambda a: a.tolist(),
    "a memoryview": lambda a: memoryview(np.empty(a.shape)),
    "a number": lambda a: 1.0,
    "text": lambda a: "out",
    "a type": lambda a: np.ndarray,
    "masked": lambda a: np.ma.empty(a.shape, a.dtype),
    "one axis more": lambda a: np.empty((*a.shape, 1), a.dtype),
    "another length": lambda a: np.empty([length + 1 for length in a.shape], a.dtype),
    "flat": lambda a: np.empty(a.size + 1, a.dtype),
    "integers": lambda a: np.empty(a.shape, np.int32),
    "complex": lambda a: np.empty(a.shape, complex),
    "long doubles": lambda a: np.empty(a.shape, np.longdouble),
    "objects": lambda a: np.empty(a.shape, object),
    "another float": lambda a: np.empty(a.shape, np.float32 if a.dtype == np.float64 else np.float64),
    "other byte order": lambda a: np.empty(a.shape, a.dtype.newbyteorder()),
    "read-only": lambda a: read_only(np.empty(a.shape, a.dtype)),
    "an object with __array__": lambda a: HasArray(hidden=np.empty(a.shape, a.dtype)),
}
WRONG_OUT_FORMS = {  # where they have two numbers at least on each of two axes, or memory at all
    "Fortran order": lambda a: np.empty(a.shape, a.dtype, "F"),
    "negative strides": lambda a: np.flip(np.empty(a.shape, a.dtype)),
    "every second": lambda a: every_second(np.empty(a.shape, a.dtype)),
    "misaligned": lambda a: misaligned(np.empty(a.shape, a.dtype)),
    "zero strides": lambda a: np.lib.stride_tricks.as_strided(np.empty(1, a.dtype), a.shape, [0] * a.ndim),
}


def wrong(table, right):
    """One of a table's wrong values, with its name, in place of this right one."""
    return st.sampled_from(list(table)).map(lambda name: Given(table[name](right), None, name))
