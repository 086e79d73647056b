# How results are stored. A loop that writes an array computes `stretch(...)` numbers at a time: all of them where
# they go straight to the array, else BURST numbers, which stay in registers until all are computed and then go
# past the caches, or over their own input. So the loops themselves take inputs and outputs to be apart.

from libc.string cimport memcpy

cdef extern from "loop.h":      # what a function returns that is never inlined, or always
    ctypedef void loop "CBNORM_LOOP"
    ctypedef void loop_part "CBNORM_LOOP_PART"
    ctypedef double[16] Sixteen "cbnorm_sixteen"        # sums, from the beginning of a cache line; as are the others
    ctypedef double[32] Lanes "cbnorm_lanes"
    ctypedef float[32] FloatLanes "cbnorm_float_lanes"
    ctypedef double[256] Tile "cbnorm_tile"

cdef extern from "stream.h" nogil:
    size_t cbnorm_to_line(const void *address)
    void cbnorm_stream(void *to, const void *values, size_t size)
    void cbnorm_stream_end()
    void cbnorm_prefetch(const void *values, size_t size)

cdef enum:
    BURST = 32          # numbers: whole cache lines

cdef enum Store:
    DIRECT
    IN_PLACE            # over the input
    STREAMED            # past the caches


cdef inline Store store_for(const void *output, const void *values, bint streamed) noexcept nogil:
    """Input that is overwritten is in the cache already, so nothing is won past it."""
    return IN_PLACE if output == values else STREAMED if streamed else DIRECT


cdef inline Py_ssize_t stretch(const floating *output, Py_ssize_t left, Store store) noexcept nogil:
    """How many of the `left` numbers to compute next: BURST of them go through `put`, others straight to memory."""
    cdef Py_ssize_t ahead = 0
    if store == DIRECT:
        return left
    if store == STREAMED:
        ahead = cbnorm_to_line(output) // sizeof(floating)
    return min(left, ahead if ahead > 0 else <Py_ssize_t>BURST)


cdef inline void put(floating *output, const floating *burst, Store store) noexcept nogil:
    """BURST numbers."""
    if store == STREAMED:
        cbnorm_stream(output, burst, BURST * sizeof(floating))
    else:
        memcpy(output, burst, BURST * sizeof(floating))


cdef inline void keep(floating *output, const floating *piece, Py_ssize_t size, Store store) noexcept nogil:
    """A piece that is no burst, unless it went straight to the array."""
    if store != DIRECT:
        memcpy(output, piece, size * sizeof(floating))


cdef inline void end_stores(Store store) noexcept nogil:
    if store == STREAMED:
        cbnorm_stream_end()
