# Arrays whose numbers are stored in 2 bytes, or as integers: they are widened where a pass reads them, a few thousand
# at a time, into the first-level cache, and results are rounded once where they are written. All arithmetic is that of
# float32 (or of float64, for integers), with the same bits.

cdef extern from "half.h" nogil:
    size_t cbnorm_storage_size(int storage, size_t native)
    void cbnorm_widen_float(const void *numbers, int storage, float *to, Py_ssize_t size)
    void cbnorm_widen_double(const void *numbers, int storage, double *to, Py_ssize_t size)
    void cbnorm_narrow(const float *numbers, int storage, void *to, Py_ssize_t size)
    cdef enum Storage "cbnorm_storage":
        NATIVE "CBNORM_NATIVE"
        HALF "CBNORM_HALF"
        BRAIN "CBNORM_BRAIN"            # bfloat16
        UINT8 "CBNORM_UINT8"
        INT8 "CBNORM_INT8"
        UINT16 "CBNORM_UINT16"
        INT16 "CBNORM_INT16"
        UINT32 "CBNORM_UINT32"
        INT32 "CBNORM_INT32"
        BOOL "CBNORM_BOOL"

cdef enum:
    PASSAGE = 2048      # most numbers that the second pass widens at a time


cdef inline const floating *place(const floating *numbers, Py_ssize_t start, Storage storage) noexcept nogil:
    """Where a number lies; NULL stays NULL."""
    if storage == NATIVE or numbers == NULL:
        return beginning(numbers, start)
    return <const floating *>(<const char *>numbers + start * cbnorm_storage_size(storage, sizeof(floating)))


cdef inline floating *place_out(floating *numbers, Py_ssize_t start, Storage storage) noexcept nogil:
    """The same where results go."""
    return <floating *>place(<const floating *>numbers, start, storage)


cdef inline const floating *before(const floating *numbers, Py_ssize_t start) noexcept nogil:
    """Where number 0 would lie, if number `start` lies here; NULL stays NULL."""
    return numbers if numbers == NULL else numbers - start


cdef inline void widen(const floating *numbers, Storage storage, floating *to, Py_ssize_t size) noexcept nogil:
    if floating is float:
        cbnorm_widen_float(numbers, storage, to, size)
    else:
        cbnorm_widen_double(numbers, storage, to, size)


cdef inline const floating *widened(
    const floating *numbers, Py_ssize_t stride, Py_ssize_t height, Py_ssize_t width, Storage storage, floating *room,
    Py_ssize_t room_stride,
) noexcept nogil:
    """The numbers of (height, width) themselves, or in a room; NULL stays NULL."""
    cdef Py_ssize_t i
    if storage == NATIVE or numbers == NULL:
        return numbers
    for i in range(height):
        widen(place(numbers, i * stride, storage), storage, room + i * room_stride, width)
    return room


cdef inline double number_at(const floating *numbers, Py_ssize_t i, Storage storage) noexcept nogil:
    cdef floating value
    if storage == NATIVE:
        return numbers[i]
    widen(place(numbers, i, storage), storage, &value, 1)
    return value


cdef inline void gather(
    const floating **numbers, Py_ssize_t start, Py_ssize_t stride, Py_ssize_t height, Py_ssize_t width, Storage storage,
    double *room,
) noexcept nogil:
    """Bring (height, width) numbers into a room, without gaps, however they are stored."""
    cdef Py_ssize_t i
    to = <floating *>room
    if numbers[0] == NULL:
        return
    for i in range(height):
        widen(place(numbers[0], start + i * stride, storage), storage, to + i * width, width)
    numbers[0] = to


cdef void narrow(const floating *values, floating *out, Storage storage, Py_ssize_t size, bint streamed) noexcept nogil:
    """Round results to where they go: past the caches if so wanted, a line of them at a time."""
    cdef char *to = <char *>out
    cdef double[8] line
    cdef Py_ssize_t done = 0
    if floating is float:
        if streamed:
            done = min(size, <Py_ssize_t>(cbnorm_to_line(to) // 2))
            cbnorm_narrow(values, storage, to, done)
            while done + 32 <= size:
                cbnorm_narrow(values + done, storage, line, 32)
                cbnorm_stream(to + 2 * done, line, 64)
                done += 32
        cbnorm_narrow(values + done, storage, to + 2 * done, size - done)
