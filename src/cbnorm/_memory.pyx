# Questions about arrays that NumPy answers too, in a microsecond each: a small call asks a dozen.

cimport numpy as cnp

cnp.import_array()


def is_ready(cnp.ndarray array not None, cnp.dtype dtype not None):
    """Whether the kernels can read an array as it is: of this dtype, C-contiguous, aligned, in native order."""
    return <void *>cnp.PyArray_DESCR(array) == <void *>dtype and cnp.PyArray_ISCARRAY_RO(array)


def any_negative(cnp.ndarray values not None):
    """Whether a C-contiguous float64 array holds a number below 0; NaN is none."""
    cdef const double *numbers = <const double *>cnp.PyArray_DATA(values)
    cdef Py_ssize_t i
    cdef bint found = False
    for i in range(values.size):
        found |= numbers[i] < 0
    return found


def start_together(cnp.ndarray a not None, cnp.ndarray b not None):
    """Whether two arrays have their first number in the same place."""
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b)


def apart(cnp.ndarray a not None, b):
    """Whether two C-contiguous arrays certainly share no byte; False where that takes a closer look."""
    cdef char *first
    cdef char *second
    if not isinstance(b, cnp.ndarray) or not cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>b):
        return False
    first = <char *>cnp.PyArray_DATA(a)
    second = <char *>cnp.PyArray_DATA(<cnp.ndarray>b)
    return first + cnp.PyArray_NBYTES(a) <= second or second + cnp.PyArray_NBYTES(<cnp.ndarray>b) <= first
