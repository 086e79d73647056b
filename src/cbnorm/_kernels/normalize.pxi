# y = ((x - mean_hi) - mean_lo) * scale + shift, with scale = gamma * inv_std and shift = beta.
#
# The mean is subtracted in two parts of the array's own dtype. The first difference is exact where x is
# near the mean (Sterbenz), so no digit is lost at any offset; folding into x * a + b would lose them all.
# A constant channel has x - mean_hi = mean_lo = 0 and gives exactly beta.


cdef inline floating normalized(
    floating x, floating mean_hi, floating mean_lo, floating scale, floating shift
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * scale + shift


cdef inline void normalize_row(
    const floating *restrict x,         # IN (width)
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next three
    const floating *restrict mean_lo,
    const floating *restrict scale,
    const floating *restrict shift,
    floating *restrict y,               # OUT (width)
) noexcept nogil:
    """Each number is of a column with its own mean and scale."""
    cdef Py_ssize_t j
    for j in range(width):
        y[j] = normalized(x[j], mean_hi[j], mean_lo[j], scale[j], shift[j])


cdef void normalize_rows(
    const floating *x,                  # IN (size), rows of `width` without a gap
    Py_ssize_t size,
    Py_ssize_t width,
    const floating *mean_hi,            # IN (width), as are the next three, repeated for BURST numbers more
    const floating *mean_lo,
    const floating *scale,
    const floating *shift,
    floating *y,                        # OUT (size)
    Store store,
) noexcept nogil:
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, j = 0, here
    while i < size:
        here = stretch(y + i, min(size - i, max(<Py_ssize_t>BURST, width - j)), store)
        if store == DIRECT:
            normalize_row(x + i, here, mean_hi + j, mean_lo + j, scale + j, shift + j, y + i)
        elif here == BURST:
            normalize_row(x + i, BURST, mean_hi + j, mean_lo + j, scale + j, shift + j, burst)
            put(y + i, burst, store)
        else:
            normalize_row(x + i, here, mean_hi + j, mean_lo + j, scale + j, shift + j, burst)
            memcpy(y + i, burst, here * sizeof(floating))
        i += here
        j = (j + here) % width if j + here >= width else j + here


cdef void normalize_run(
    const floating *x,                  # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating shift,
    floating *y,                        # OUT (size)
    Store store,
) noexcept nogil:
    """One mean and scale for all."""
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, k, here
    while i < size:
        here = stretch(y + i, size - i, store)
        if here == BURST:
            for k in range(BURST):
                burst[k] = normalized(x[i + k], mean_hi, mean_lo, scale, shift)
            put(y + i, burst, store)
        else:
            for k in range(i, i + here):
                y[k] = normalized(x[k], mean_hi, mean_lo, scale, shift)
        i += here


cdef void normalize_scaled(
    const floating *x,                  # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating inv_std,
    const floating *restrict gamma,     # IN (size)
    const floating *restrict beta,      # IN (size)
    floating *y,                        # OUT (size)
    Store store,
) noexcept nogil:
    """One mean and deviation for all, a gamma and beta for each number."""
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, k, here
    while i < size:
        here = stretch(y + i, size - i, store)
        if here == BURST:
            for k in range(BURST):
                burst[k] = normalized(x[i + k], mean_hi, mean_lo, gamma[i + k] * inv_std, beta[i + k])
            put(y + i, burst, store)
        else:
            for k in range(i, i + here):
                y[k] = normalized(x[k], mean_hi, mean_lo, gamma[k] * inv_std, beta[k])
        i += here
