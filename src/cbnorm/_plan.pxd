cdef class Plan:
    cdef readonly Py_ssize_t outer
    cdef readonly Py_ssize_t channels
    cdef readonly Py_ssize_t inner
    cdef readonly Py_ssize_t groups
    cdef readonly Py_ssize_t sets
    cdef readonly Py_ssize_t axis
    cdef readonly tuple shape
    cdef readonly tuple statistics_shape
    cdef readonly tuple parameter_shape
    cdef readonly bint centred
    cdef readonly bint statistics_given
    cdef readonly double count
    cdef readonly double eps
    cdef readonly Py_ssize_t size
