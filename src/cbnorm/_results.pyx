"""Arrays on their way into the kernels and out: the dtype to compute in, copies, room for what is computed.

What is given here was checked in _arrays.pyx. Compiled, because a small call spends its time on such steps.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy

from cbnorm._memory cimport new_array
from cbnorm._plan cimport Plan

cnp.import_array()

FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)


def room_for(out, values, given, cnp.dtype computed, cnp.dtype result_dtype, Plan plan not None):
    """Where results go: `out` if the kernels can write it, a copy made of the input, or new memory."""
    cdef cnp.ndarray array = values
    cdef cnp.dtype dtype = computed
    if result_dtype is computed or (is_half(result_dtype) and computed is FLOAT32 and plan.weights is None):
        if out is not None:
            return out
        dtype = result_dtype
    if values is not given and has_dtype(array, dtype):
        return values
    if dtype is FLOAT16 or dtype is FLOAT32 or dtype is FLOAT64:
        return new_array(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), dtype.num)
    return np.empty((<object>array).shape, dtype)


cdef enum:
    OTHERS_TYPES = 256      # NPY_USERDEF: from here on they are not NumPy's own

cdef int bfloat16_number = -1   # of its type, once one has come


cdef bint is_bfloat16(cnp.dtype dtype) except *:
    """Whether it is the dtype of ml_dtypes, which is known by its name: NumPy takes 2 us to say that."""
    global bfloat16_number
    if dtype.num < OTHERS_TYPES:
        return False
    if dtype.num != bfloat16_number and (<object>dtype).name == "bfloat16":
        bfloat16_number = dtype.num
    return dtype.num == bfloat16_number


cdef bint is_half(cnp.dtype dtype) except *:
    return dtype is FLOAT16 or is_bfloat16(dtype)


cpdef stored(cnp.ndarray array, cnp.dtype computed, Plan plan):
    """The array itself if the kernels can read it where they compute in this dtype, however stored; else a copy."""
    cdef int given = cnp.PyArray_TYPE(array)
    cdef bint known = False
    if has_dtype(array, computed) or plan.kinds == 5 or plan.weights is not None:
        return contiguous(array, computed)
    if cnp.PyArray_ISCARRAY_RO(array):
        known = given == cnp.NPY_BOOL or given == cnp.NPY_UINT8 or given == cnp.NPY_INT8
        known = known or given == cnp.NPY_UINT16 or given == cnp.NPY_INT16
        if computed is FLOAT32:
            known = known or is_half(array.dtype)
        else:
            known = known or given == cnp.NPY_UINT32 or given == cnp.NPY_INT32
    return array if known else copy_of(array, computed)


def statistics_for(Plan plan not None):
    """Room for mean, mean_lo, m2 and inv_std of channels or rows, and their counts where they count differently."""
    cdef cnp.npy_intp[2] shape = [plan.kinds, plan.sets]
    return new_array(2, shape, cnp.NPY_DOUBLE)


def gradients_for(Plan plan not None, bint want_dgamma, bint want_dbeta, cnp.dtype dtype not None):
    """Room for dgamma and dbeta, or None."""
    cdef cnp.npy_intp[64] sizes     # NumPy's most axes
    cdef int i, ndim = <int>len(plan.parameter_shape)
    for i in range(ndim):
        sizes[i] = plan.parameter_shape[i]
    return (
        new_array(ndim, sizes, dtype.num) if want_dgamma else None,
        new_array(ndim, sizes, dtype.num) if want_dbeta else None,
    )


cpdef copy_of(cnp.ndarray array, cnp.dtype dtype):
    """The values in one of the float dtypes, C-contiguous. Those beyond its range are infinite."""
    copy = new_array(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), dtype.num)
    copy_into(copy, array)
    return copy


cpdef int copy_into(cnp.ndarray copy, cnp.ndarray array) except -1:
    """Copy as the kernels compute: in silence, so that no warning becomes an error when half is written."""
    cdef int given = cnp.PyArray_TYPE(array), wanted = cnp.PyArray_TYPE(copy)
    cdef bint plain = cnp.PyArray_ISCARRAY_RO(array) and cnp.PyArray_ISCARRAY_RO(copy)
    if given == wanted and plain:      # gamma in each call: NumPy takes 0.1 us to find out
        memcpy(cnp.PyArray_DATA(copy), cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array))
    elif given == wanted or given == cnp.NPY_FLOAT16 or not cnp.PyTypeNum_ISFLOAT(given):    # these never warn
        cnp.PyArray_CopyInto(copy, array)
    elif given == cnp.NPY_DOUBLE and wanted == cnp.NPY_FLOAT and plain:
        convert(<float *>cnp.PyArray_DATA(copy), <const double *>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array))
    elif given == cnp.NPY_FLOAT and wanted == cnp.NPY_DOUBLE and plain:
        convert(<double *>cnp.PyArray_DATA(copy), <const float *>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array))
    else:
        with np.errstate(all="ignore"):     # a microsecond, which the loops above need not
            cnp.PyArray_CopyInto(copy, array)
    return 0


ctypedef fused to_type:
    float
    double

ctypedef fused from_type:
    float
    double


cdef void convert(to_type *copy, const from_type *numbers, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        copy[i] = <to_type>numbers[i]


def as_result(values, dtype, out):
    """Computed values in the dtype of the results, and in `out` if there is one."""
    if has_dtype(values, dtype) or values.dtype == dtype:
        return values
    if out is None:
        return copy_of(values, dtype)
    copy_into(out, values)
    return out


HALF, SINGLE, DOUBLE = (FLOAT32, FLOAT16), (FLOAT32, FLOAT32), (FLOAT64, FLOAT64)


def float_dtypes(array, out=None):
    """The dtype to compute in, and that of the results.

    float16 and bfloat16 are computed in float32; integers in float64, or where `out` is float32 those of 2 bytes in
    that.
    """
    dtype = array.dtype
    if dtype is FLOAT32:
        return SINGLE
    if dtype.kind == "V":
        return FLOAT32, dtype
    if dtype.kind != "f" and isinstance(out, cnp.ndarray) and out.dtype == FLOAT32:
        return SINGLE if dtype.itemsize <= 2 else (FLOAT64, FLOAT32)
    if dtype.kind != "f" or dtype.itemsize == 8:
        return DOUBLE
    return HALF if dtype.itemsize == 2 else SINGLE


cpdef bint is_readable(cnp.ndarray array, cnp.dtype dtype):
    """Whether the kernels can read an array as it is, where they compute in this dtype."""
    return has_dtype(array, dtype) and cnp.PyArray_ISCARRAY_RO(array)


cpdef contiguous(cnp.ndarray array, cnp.dtype dtype):
    """The array itself if the kernels can read it as it is, else a copy that is the caller's to overwrite."""
    return array if is_readable(array, dtype) else copy_of(array, dtype)


def frozen(array, other=None):
    """The array itself, from now on read-only, and another with it; None stays None."""
    if other is not None:
        cnp.PyArray_CLEARFLAGS(<cnp.ndarray?>other, cnp.NPY_ARRAY_WRITEABLE)
    if array is not None:
        cnp.PyArray_CLEARFLAGS(<cnp.ndarray?>array, cnp.NPY_ARRAY_WRITEABLE)
    return array
