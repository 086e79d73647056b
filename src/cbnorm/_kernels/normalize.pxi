# y = ((x - mean_hi) - mean_lo) * scale + shift, with scale = gamma * inv_std and shift = beta.
#
# The mean is subtracted in two parts of the array's own dtype. The first difference is exact where x is
# near the mean (Sterbenz), so no digit is lost at any offset; folding into x * a + b would lose them all.
# A constant channel has x - mean_hi = mean_lo = 0 and gives exactly beta.


cdef inline floating normalized(
    floating x, floating mean_hi, floating mean_lo, floating scale, floating shift
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * scale + shift


cdef inline loop_part normalize_row(
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


cdef inline loop_part normalize_run(
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating shift,
    floating *restrict y,               # OUT (size)
) noexcept nogil:
    """One mean and scale for all."""
    cdef Py_ssize_t i
    for i in range(size):
        y[i] = normalized(x[i], mean_hi, mean_lo, scale, shift)


cdef inline loop_part normalize_scaled(
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating inv_std,
    const floating *restrict gamma,     # IN (size)
    const floating *restrict beta,      # IN (size)
    floating *restrict y,               # OUT (size)
) noexcept nogil:
    """One mean and deviation for all, a gamma and beta for each number."""
    cdef Py_ssize_t i
    for i in range(size):
        y[i] = normalized(x[i], mean_hi, mean_lo, gamma[i] * inv_std, beta[i])


# The same, stored as `store` says; `factors` are (kinds, factor_stride).

cdef inline loop_part store_normalized_rows(
    const floating *x,                  # IN (size), rows of `width` without a gap
    Py_ssize_t size,
    Py_ssize_t width,
    const floating *factors,            # IN of each column, and of the first BURST once more at the end
    Py_ssize_t factor_stride,
    floating *y,                        # OUT (size)
    Store store,
) noexcept nogil:
    cdef const floating *mean_hi = factors + MEAN_HI * factor_stride
    cdef const floating *mean_lo = factors + MEAN_LO * factor_stride
    cdef const floating *scale = factors + SCALE * factor_stride
    cdef const floating *shift = factors + SHIFT * factor_stride
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, j = 0, here
    while i < size:
        here = stretch(y + i, min(size - i, max(<Py_ssize_t>BURST, width - j)), store)
        if here == BURST:
            normalize_row(x + i, BURST, mean_hi + j, mean_lo + j, scale + j, shift + j, burst)
            put(y + i, burst, store)
        else:
            normalize_row(x + i, here, mean_hi + j, mean_lo + j, scale + j, shift + j,
                          y + i if store == DIRECT else burst)
            keep(y + i, burst, here, store)
        i += here
        j = (j + here) % width if j + here >= width else j + here


cdef inline loop_part store_normalized_run(
    const floating *x, Py_ssize_t size, floating mean_hi, floating mean_lo, floating scale, floating shift, floating *y,
    Store store,
) noexcept nogil:
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, here
    if store == DIRECT:             # a run may be short
        normalize_run(x, size, mean_hi, mean_lo, scale, shift, y)
        return
    while i < size:
        here = stretch(y + i, size - i, store)
        if here == BURST:
            normalize_run(x + i, BURST, mean_hi, mean_lo, scale, shift, burst)
            put(y + i, burst, store)
        else:
            normalize_run(x + i, here, mean_hi, mean_lo, scale, shift, burst)
            keep(y + i, burst, here, store)
        i += here


cdef inline loop_part store_normalized_scaled(
    const floating *x, Py_ssize_t size,
    const floating *factors, Py_ssize_t factor_stride,      # of the row
    const floating *gamma, const floating *beta, floating *y, Store store,
) noexcept nogil:
    cdef floating mean_hi = factors[MEAN_HI * factor_stride], mean_lo = factors[MEAN_LO * factor_stride]
    cdef floating inv_std = factors[SCALE * factor_stride]
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, here
    while i < size:
        here = stretch(y + i, size - i, store)
        if here == BURST:
            normalize_scaled(x + i, BURST, mean_hi, mean_lo, inv_std, gamma + i, beta + i, burst)
            put(y + i, burst, store)
        else:
            normalize_scaled(x + i, here, mean_hi, mean_lo, inv_std, gamma + i, beta + i,
                             y + i if store == DIRECT else burst)
            keep(y + i, burst, here, store)
        i += here
