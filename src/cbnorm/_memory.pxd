cimport numpy as cnp

cdef object new_array(int ndim, cnp.npy_intp *shape, int type_number)
cdef void *pool_take(size_t size) noexcept nogil
cdef void pool_give(void *data) noexcept nogil
