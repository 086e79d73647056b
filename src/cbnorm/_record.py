"""Results that own their arrays: nobody changes them from outside, and parts of a whole add up."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Self

import numpy as np

from cbnorm._arrays import as_numbers, check_integer, check_nonnegative, check_number, copy_numbers, shown

MOST_VALUES = 2**63 - 1  # of a set: more than any stream holds, and few enough to compute with in floats


class Record:
    """What frozen dataclasses of counts and read-only arrays share; each defines its own ``+``."""

    __slots__ = ()
    __array_ufunc__: None = None  # an array does not add a record to each of its numbers

    @classmethod
    def _of(cls, **values: Any) -> Self:
        """A record of arrays that nobody else has: without checks and copies."""
        return object.__new__(cls)._fill(**values)

    def _fill(self, **values: Any) -> Self:
        for name, value in values.items():
            if isinstance(value, np.ndarray) or name != "count":
                value = np.asarray(value)  # arithmetic on arrays without axes gives scalars
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made by the constructor: their arrays are read-only too."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        """Name the class, and show its fields shortly."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        shown = (f"{name}={short(value) if isinstance(value, np.ndarray) else value}" for name, value in values.items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __radd__(self, other: object) -> Self:
        """Return this record: `sum` begins with 0."""
        return self if is_start_of_sum(other) else NotImplemented


def check_counts(count: Any, shape: tuple[int, ...]) -> Any:
    """A count, or an array of them, one for each mean."""
    if not isinstance(count, list | tuple | np.ndarray):
        return check_count(count)
    given = as_numbers("count", count)
    if given.dtype.kind == "b":
        raise TypeError(f"count: expected an integer or numbers, got {shown(count)}")
    counts = copy_numbers("count", given, shape, "mean")
    check_nonnegative("count", counts)
    if not np.isfinite(counts).all():
        raise ValueError("count: expected finite numbers, got NaN or infinity")
    return counts if given.dtype.kind == "f" else counts.astype(np.int64)


def check_count(count: Any) -> int | float:
    """An integer, or a sum of weights."""
    if isinstance(count, float | np.floating):
        return check_number("count", count, 0.0, float(MOST_VALUES))
    return check_integer("count", count, 0, MOST_VALUES)


def is_start_of_sum(value: object) -> bool:
    """Whether this is the 0 that `sum` begins with."""
    return type(value) is int and value == 0


def short(array: np.ndarray[Any, Any]) -> str:
    """Some numbers of an array, in one line."""
    with np.printoptions(precision=6, threshold=6, edgeitems=2):
        return " ".join(np.array2string(array, separator=", ").split())
