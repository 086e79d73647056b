cimport numpy as cnp

from cbnorm._plan cimport Plan

cdef inline bint has_dtype(object array, object dtype):
    """Whether an ndarray has this very dtype object, as all arrays of NumPy's own types do."""
    return <void *>cnp.PyArray_DESCR(<cnp.ndarray>array) == <void *>dtype

cdef bint is_bfloat16(cnp.dtype dtype) except *

cpdef bint is_readable(cnp.ndarray array, cnp.dtype dtype)
cpdef stored(cnp.ndarray array, cnp.dtype computed, Plan plan)
cpdef contiguous(cnp.ndarray array, cnp.dtype dtype)
cpdef copy_of(cnp.ndarray array, cnp.dtype dtype)
cpdef int copy_into(cnp.ndarray copy, cnp.ndarray array) except -1
