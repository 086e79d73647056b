# y = ((x - mean_hi) - mean_lo) * scale + shift, with scale = gamma * inv_std and shift = beta.
#
# The mean is subtracted in two parts of the array's own dtype. The first difference is exact where x is
# near the mean (Sterbenz), so no digit is lost at any offset; folding into x * a + b would lose them all.
# A constant channel has x - mean_hi = mean_lo = 0 and gives exactly beta.


cdef inline floating normalized(
    floating x, floating mean_hi, floating mean_lo, floating scale, floating shift
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * scale + shift


cdef void normalize_row(
    const floating *x,                  # IN (width)
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next three
    const floating *restrict mean_lo,
    const floating *restrict scale,
    const floating *restrict shift,
    floating *y,                        # OUT (width)
    Store store,
) noexcept nogil:
    """Each number is of a column with its own mean and scale."""
    cdef floating burst[BURST]
    cdef Py_ssize_t j = 0, k, size
    while j < width:
        size = stretch(y + j, width - j, store)
        if size == BURST:
            for k in range(BURST):
                burst[k] = normalized(x[j + k], mean_hi[j + k], mean_lo[j + k], scale[j + k], shift[j + k])
            put(y + j, burst, store)
        else:
            for k in range(j, j + size):
                y[k] = normalized(x[k], mean_hi[k], mean_lo[k], scale[k], shift[k])
        j += size


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
