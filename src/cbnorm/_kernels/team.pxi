# A call's threads: one parallel region, with barriers between the passes; none at all for one thread, since even
# that costs a microsecond.

cdef extern from "team.h" nogil:
    int cbnorm_team_size()
    void cbnorm_barrier()
    const bint CBNORM_OPENMP


cdef inline void barrier(int threads) noexcept nogil:
    """Wait for the others of a parallel region; alone, there may be one of the caller's around us."""
    if threads > 1:
        cbnorm_barrier()


cdef inline Py_ssize_t share(Py_ssize_t work, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    """Where a thread's share of the work begins; it ends where the next thread's begins."""
    return work * thread // threads
