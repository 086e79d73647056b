cimport numpy as cnp

cdef inline bint has_dtype(object array, object dtype):
    """Whether an ndarray has this very dtype object, as all arrays of NumPy's own types do."""
    return <void *>cnp.PyArray_DESCR(<cnp.ndarray>array) == <void *>dtype

cpdef bint is_readable(cnp.ndarray array, cnp.dtype dtype)
cpdef contiguous(cnp.ndarray array, cnp.dtype dtype)
cpdef copy_of(cnp.ndarray array, cnp.dtype dtype)
cpdef int copy_into(cnp.ndarray copy, cnp.ndarray array) except -1
