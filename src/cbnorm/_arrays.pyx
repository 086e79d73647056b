"""The only input checks: every argument is seen here, before anything is computed or written.

Each function returns what the kernels take, or raises a ValueError or TypeError that names the argument,
what was expected and what came. Compiled, because a small call spends most of its time here.
"""

import math
from collections.abc import Mapping, Set
from itertools import islice
from numbers import Real

import numpy as np

cimport numpy as cnp
from cpython.number cimport PyNumber_Index
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.type cimport PyType_IsSubtype

from cbnorm._plan cimport Plan
from cbnorm._results cimport contiguous, copy_of, has_dtype, is_bfloat16, stored

from cbnorm._results import FLOAT16, FLOAT32, FLOAT64

cnp.import_array()

cdef enum:
    MOST_AXES = 64      # NumPy's
MOST_NUMBERS = PY_SSIZE_T_MAX // 64     # as many as a plan takes
cdef object ndarray = np.ndarray
cdef object numpy_bool = np.bool_
cdef type MaskedArray = np.ma.MaskedArray


cdef inline bint is_vector(object value, Py_ssize_t size, object dtype):
    """Whether a value is a plain array of this length that the kernels can read as it is."""
    return (
        type(value) is ndarray and cnp.PyArray_NDIM(<cnp.ndarray>value) == 1
        and cnp.PyArray_DIM(<cnp.ndarray>value, 0) == size and has_dtype(value, dtype)
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>value)
    )


def shown(value):
    """How an error shows what came: its own words where it has any, and not all of a long text."""
    try:
        text = repr(value)
    except Exception:
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


# What a caller's object may raise when it is asked for numbers is about the object: it becomes our error, which names
# the argument and has the other as its cause. Not these: they are about the process, or the depth of the call.
NOT_OURS = (MemoryError, RecursionError)


cdef int search(sequence, void **path, int depth) except -1:
    """Refuse masked arrays at any depth of lists and tuples, as NumPy drops their masks; and lists in themselves."""
    cdef int i
    if depth == MOST_AXES:
        return 0
    for i in range(depth):
        if path[i] == <void *>sequence:
            raise ValueError("it holds itself")
    path[depth] = <void *>sequence
    for item in sequence:
        if type(item) is float or type(item) is int or type(item) is ndarray:
            continue
        if isinstance(item, list | tuple):
            search(item, path, depth + 1)
        elif PyType_IsSubtype(type(item), MaskedArray):
            raise TypeError("a masked array in it: fill or drop its values")
    return 0


def as_numbers(name, value):
    """Any array or nested sequence of real numbers as an ndarray, not copied if it is one."""
    if type(value) is ndarray and (has_dtype(value, FLOAT32) or has_dtype(value, FLOAT64)):
        return value
    if type(value) is not ndarray and PyType_IsSubtype(type(value), MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a masked array (fill or drop its values)")
    cdef void *path[MOST_AXES]
    try:
        if isinstance(value, list | tuple):
            search(value, path, 0)
        elif type(value) is not ndarray:
            value = np.asanyarray(value)  # what __array__ gave may have a mask
            if PyType_IsSubtype(type(value), MaskedArray):
                raise TypeError("it has a mask")
        array = np.asarray(value)
    except NOT_OURS:
        raise
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name}: expected an array of numbers, got {type(value).__name__} ({shown(error)})") from error
    if (array.dtype.kind not in "biuf" or array.dtype.itemsize > 8) and not is_bfloat16(array.dtype):
        raise TypeError(
            f"{name}: expected real numbers of at most 64 bits (float16, bfloat16, float32, float64, integers), "
            f"got dtype {array.dtype}"
        )
    return array


def as_array(x, least_ndim, name="x"):
    """X, which must have that many axes."""
    array = as_numbers(name, x)
    if array.ndim < least_ndim:
        raise ValueError(
            f"{name}: expected at least {least_ndim} dimension{'s' * (least_ndim > 1)}, got shape {array.shape}"
        )
    return array


def as_input(x, least_ndim, axis, shape, name="x"):
    """X, which must have these lengths from `axis` on."""
    x = as_array(x, least_ndim, name)
    begin = axis + x.ndim if axis < 0 else axis
    if begin < 0 or x.shape[begin : begin + len(shape)] != shape:
        where = f"{shape[0]} on axis {axis}" if len(shape) == 1 else f"{shape} on the axes from {axis} on"
        raise ValueError(f"{name}: expected length {where}, got shape {x.shape}")
    return x


def as_seen(cnp.ndarray x not None, Plan plan not None, dtype, cnp.dtype computed not None):
    """The x of a cache as the kernels take it, if it is still what the forward call saw."""
    if not has_shape(x, plan.shape) or not (has_dtype(x, dtype) or x.dtype == dtype):
        got = f"{x.dtype} of shape {(<object>x).shape}"
        raise ValueError(f"cache: expected x as forward saw it, {dtype} of shape {plan.shape}, got {got}")
    if x.size and not has_memory(x):
        raise ValueError("cache: expected x as forward saw it, got a view of an array that was resized since")
    return stored(x, computed, plan)


cdef bint has_memory(cnp.ndarray array):
    """Whether an array lies in the memory of the one that it is a view of, which `resize` may have given back."""
    cdef cnp.ndarray owner = array
    cdef char *first = <char *>cnp.PyArray_DATA(array)
    cdef char *last = first + cnp.PyArray_ITEMSIZE(array)
    cdef Py_ssize_t reach
    cdef int i
    while isinstance(cnp.get_array_base(owner), cnp.ndarray):
        owner = cnp.get_array_base(owner)
    if owner is array or not cnp.PyArray_CHKFLAGS(owner, cnp.NPY_ARRAY_OWNDATA):
        return True
    for i in range(cnp.PyArray_NDIM(array)):
        reach = (cnp.PyArray_DIM(array, i) - 1) * cnp.PyArray_STRIDE(array, i)
        if reach < 0:
            first += reach
        else:
            last += reach
    start = <char *>cnp.PyArray_DATA(owner)
    return start <= first and last <= start + cnp.PyArray_NBYTES(owner)


cpdef check_integer(name, value, low=None, high=None):
    """A whole number of any integer type but bool, at least `low` and at most `high` where these are given."""
    try:
        if is_bool(value):
            raise TypeError("True and False are no numbers here")
        number = value if type(value) is int else PyNumber_Index(value)
    except NOT_OURS:
        raise
    except Exception as error:
        raise TypeError(f"{name}: expected an integer, got {shown(value)}") from error
    if (low is not None and number < low) or (high is not None and number > high):
        expected = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: expected {expected}, got {shown(number)}")
    return number


cdef bint is_bool(value):
    return value is True or value is False or type(value) is numpy_bool


def check_flag(name, value):
    """A bool, Python's or NumPy's, and nothing that merely counts as one."""
    if not is_bool(value):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def check_axis(axis, ndim, name="axis"):
    """A channel axis as 0 to ndim - 1."""
    index = check_integer(name, axis)
    if not -ndim <= index < ndim:
        raise ValueError(f"{name}: expected {-ndim} to {ndim - 1} for {ndim} dimensions, got {shown(index)}")
    return index % ndim


def check_channels_axis(axis, ndim):
    """The second axis or the last, as 0 to ndim - 1."""
    index = check_axis(axis, ndim)
    if index != 1 and index != ndim - 1:
        raise ValueError(f"axis: expected 1 or -1, the second or the last of {ndim} dimensions, got {axis}")
    return index


def check_divisor(name, value, channels):
    """A number of groups of so many channels each; without channels, of none each, as far as numbers go."""
    groups = check_integer(name, value)
    if groups < 1 or channels % groups or groups > MOST_NUMBERS:
        raise ValueError(f"{name}: expected a divisor of {channels} channels, got {shown(groups)}")
    return groups


def check_length(name, value):
    """The length of an axis that memory can hold."""
    length = check_integer(name, value, low=1)
    if length > MOST_NUMBERS:
        raise ValueError(f"{name}: expected at most {MOST_NUMBERS}, got {shown(length)}")
    return length


def check_lengths(name, value):
    """Lengths of axes: one, or several."""
    lengths = value if isinstance(value, tuple | list) else (value,)
    if not lengths:
        raise ValueError(f"{name}: expected at least one length, got ()")
    checked = tuple(check_length(name, length) for length in lengths)
    if len(checked) > MOST_AXES or math.prod(checked) > MOST_NUMBERS:
        raise ValueError(f"{name}: expected lengths of an array that memory can hold, got {shown(value)}")
    return checked


def check_dtype(dtype):
    """One of the dtypes that parameters may have."""
    expected = "dtype: expected float16, float32 or float64"
    try:
        known = np.dtype(dtype)
    except NOT_OURS:
        raise
    except Exception as error:
        raise TypeError(f"{expected}, got {shown(dtype)}") from error
    if known not in (FLOAT16, FLOAT32, FLOAT64):
        raise TypeError(f"{expected}, got {shown(dtype)}")
    return known


cdef bint has_shape(cnp.ndarray array, tuple shape):
    cdef int i, ndim = cnp.PyArray_NDIM(array)
    if ndim != len(shape):
        return False
    for i in range(ndim):
        if cnp.PyArray_DIM(array, i) != <Py_ssize_t>shape[i]:
            return False
    return True


def check_shape(name, value, tuple shape not None):
    """An array of numbers in one shape."""
    array = as_numbers(name, value)
    if not has_shape(array, shape):
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def check_parameter(name, value, Plan plan not None, dtype):
    """`gamma` or `beta` in the dtype of the computation; None stays None."""
    cdef tuple shape = plan.parameter_shape
    if value is None or (len(shape) == 1 and is_vector(value, shape[0], dtype)):
        return value
    return contiguous(check_along(name, value, plan), dtype)


cdef check_along(name, value, Plan plan):
    """One number a channel, or a number of a row; the axes may stand as in x, with 1 for the others: (1, C, 1, 1)."""
    cdef tuple shape = plan.parameter_shape
    array = as_numbers(name, value)
    if not has_shape(array, shape):
        after = len(plan.shape) - plan.axis - len(shape)
        if array.shape == (1,) * plan.axis + shape + (1,) * after:
            return array.reshape(shape)
        hint = ""
        if plan.groups == 0 and array.ndim == 1 and array.size in plan.shape:
            hint = f"; x has that length on axis {plan.shape.index(array.size)}, say `axis=`"
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}{hint}")
    return array


def check_nonnegative(name, cnp.ndarray values not None):
    """An array without a number below 0; NaN is none."""
    cdef cnp.ndarray array = contiguous(values, FLOAT64)
    cdef const double *numbers = <const double *>cnp.PyArray_DATA(array)
    cdef Py_ssize_t i
    cdef bint found = False
    for i in range(cnp.PyArray_SIZE(array)):
        found |= numbers[i] < 0
    if found:
        raise ValueError(f"{name}: expected no negative number, got {np.nanmin(values)}")


cdef copy_moving(name, value, Plan plan):
    """A moving average as a new float64 array; None stays None in training."""
    if is_vector(value, plan.channels, FLOAT64):
        return copy_of(value, FLOAT64)
    if value is not None:
        return copy_of(check_along(name, value, plan), FLOAT64)
    if plan.statistics_given:
        raise ValueError(f"{name}: expected an array of shape ({plan.channels},) in test mode, got None")
    return None


def check_moving(Plan plan not None, tuple averages not None):
    """Moving mean and variance, momentum and ddof as the kernels take them: the averages are new arrays."""
    mean, var, momentum, ddof = averages
    momentum = check_number("momentum", momentum, 0.0, 1.0)
    mean = copy_moving("moving_mean", mean, plan)
    var = copy_moving("moving_var", var, plan)
    if var is not None:
        check_nonnegative("moving_var", var)
    ddof = check_choice("ddof", ddof, (0, 1))
    if ddof == 1 and 0 < plan.count <= 1 and plan.channels and not plan.statistics_given:
        few = "one value a channel" if plan.weights is None else f"weights with a sum of {plan.count:g}"
        raise ValueError(f"ddof: expected 0 for {few}, got 1 with x of shape {plan.shape}")
    return mean, var, momentum, ddof


def check_number(name, value, low, high):
    """A real number from low to high."""
    if type(value) is not float:
        try:
            if is_bool(value) or not isinstance(value, Real):
                raise TypeError("no real number")
            try:
                value = float(value)
            except OverflowError:  # an integer or fraction that no float holds
                value = math.inf if value > 0 else -math.inf
        except NOT_OURS:
            raise
        except Exception as error:
            raise TypeError(f"{name}: expected a number, got {shown(value)}") from error
    if not low <= value <= high:  # NaN too
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return value


def check_eps(eps, name="eps"):
    """The small number added to the variance."""
    return check_number(name, eps, 0.0, 1.7976931348623157e308)


def check_choice(name, value, choices):
    """One of a few strings or integers, such as a mode."""
    if value is choices[0]:
        return value
    cause = None
    try:
        if isinstance(value, str | int | np.integer) and not isinstance(value, bool):
            for choice in choices:
                if value == choice:
                    return choice
    except NOT_OURS:
        raise
    except Exception as error:
        cause = error
    raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {shown(value)}") from cause


def check_affine(affine, tuple names not None):
    """The parameters that a layer has, of these: all for True, none for False, or the one that is named."""
    if isinstance(affine, str) and affine in names:
        return (affine,)
    if is_bool(affine):
        return names if affine else ()
    error = ValueError if isinstance(affine, str) else TypeError
    raise error(f"affine: expected {', '.join(['True', 'False', *map(repr, names)])}, got {shown(affine)}")


def check_need(need, tuple names not None):
    """Whether dx, dgamma and dbeta are wanted; those that have no name here are not."""
    try:
        if type(need) is tuple:
            wanted = need
        elif isinstance(need, Set | Mapping):
            raise TypeError("these have no order, or names of their own")
        else:
            wanted = tuple(islice(need, len(names) + 1))  # an iterator may have no end
    except NOT_OURS:
        raise
    except Exception as error:
        raise TypeError(f"need: expected a bool each for {', '.join(names)}, got {shown(need)}") from error
    if len(wanted) != len(names) or not all([is_bool(want) for want in wanted]):
        raise ValueError(f"need: expected a bool each for {', '.join(names)}, got {shown(need)}")
    return wanted if len(wanted) == 3 else (*wanted, False)


cdef bint has_no_gaps(array):
    """Whether its numbers fill their memory, in any order of the axes."""
    return array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis])).flags.c_contiguous


def check_out(out, shape, dtype, may_be, tuple names not None, tuple inputs not None, bint any_order=False):
    """An array for the results. It may be the input named `may_be`, and overlap none of the others."""
    cdef Py_ssize_t i
    if not isinstance(out, cnp.ndarray) or PyType_IsSubtype(type(out), MaskedArray):
        raise TypeError(f"out: expected an array without a mask, got {type(out).__name__}")
    if type(out) is not ndarray:
        out = np.asarray(out)  # a subclass may have another idea of its shape
    if not has_shape(out, shape):
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not (has_dtype(out, dtype) or out.dtype == dtype):
        raise TypeError(f"out: expected dtype {dtype}, got {out.dtype}")
    if not cnp.PyArray_ISBEHAVED(out) or not (cnp.PyArray_IS_C_CONTIGUOUS(out) or any_order and has_no_gaps(out)):
        raise ValueError(
            f"out: expected {'an' if any_order else 'a C-contiguous,'} aligned and writeable array, "
            f"got strides {out.strides}, aligned {out.flags.aligned}, writeable {out.flags.writeable}"
        )
    for i in range(len(inputs)):
        array = inputs[i]
        if array is None or is_apart(out, array) or not may_overlap(out, array):
            continue
        if names[i] == may_be and isinstance(array, cnp.ndarray) and same_memory(out, array):
            continue
        raise ValueError(
            f"out: expected memory of its own{f' or {may_be} itself' if may_be else ''}, got some of {names[i]}"
        )


cdef bint may_overlap(out, array):
    """NumPy's answer; yes where it finds none in a second, or the object says no more what it is."""
    try:
        return np.shares_memory(out, array, max_work=10_000_000)
    except NOT_OURS:
        raise
    except Exception:
        return True


cdef bint is_apart(cnp.ndarray a, b):
    """Whether two arrays certainly share no byte; False where that takes a closer look, NumPy's."""
    cdef char *first
    cdef char *second
    if not isinstance(b, cnp.ndarray) or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>b):
        return False
    first = <char *>cnp.PyArray_DATA(a)
    second = <char *>cnp.PyArray_DATA(<cnp.ndarray>b)
    return first + cnp.PyArray_NBYTES(a) <= second or second + cnp.PyArray_NBYTES(<cnp.ndarray>b) <= first


def same_memory(cnp.ndarray a not None, cnp.ndarray b not None):
    """Whether two arrays are the same numbers in the same place."""
    return a is b or (
        cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)
        and a.dtype == b.dtype
        and (<object>a).shape == (<object>b).shape
        and (<object>a).strides == (<object>b).strides
    )


def copy_numbers(name, value, shape=None, like=None):
    """A float64 copy of numbers, in the shape that the argument `like` has."""
    array = copy_of(as_numbers(name, value), FLOAT64)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: expected the shape of {like}, {shape}, got {array.shape}")
    return array


def check_merged(name, value, kind, attribute, tuple shape not None, Py_ssize_t axis, count=None):
    """Moments or sums of all parts, one a channel: over `count` values if given, else at least one if x has any."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    if isinstance(value.count, ndarray):
        raise ValueError(f"{name}: expected one count for all channels, got an array (of nan_policy='omit')")
    got = getattr(value, attribute).shape
    if got != (shape[axis],):
        raise ValueError(f"{name}: expected shape ({shape[axis]},), got {got}")
    if count is None:
        if value.count == 0 and 0 not in shape:
            raise ValueError(f"{name}: expected a count of at least 1 for x of shape {shape}, got 0")
    elif not math.isclose(value.count, count, rel_tol=1e-9):  # of one part, moments of all: dx would be wrong
        raise ValueError(f"{name}: expected the count of moments, {count}, got {value.count}")
