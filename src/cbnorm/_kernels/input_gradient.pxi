# dx = (gamma·inv_std / M) (M·dout - xhat·dgamma - dbeta), computed as
# dx = ((dout - (x - mean)·slope) - mean_dout)·scale,
#      with slope = inv_std·dgamma / M, mean_dout = dbeta / M, scale = gamma·inv_std.


cdef inline floating differentiated(
    floating dout, floating x, floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout
) noexcept nogil:
    return ((dout - ((x - mean_hi) - mean_lo) * slope) - mean_dout) * scale


cdef inline loop_part input_gradient_row(
    const floating *restrict dout,      # IN (width)
    const floating *restrict x,         # IN (width)
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next four
    const floating *restrict mean_lo,
    const floating *restrict scale,
    const floating *restrict slope,
    const floating *restrict mean_dout,
    const floating *restrict gamma,     # where slope and mean_dout are of dout·gamma, else not read
    bint scaled,
    floating *restrict dx,              # OUT (width)
) noexcept nogil:
    """Each number is of a column with its own statistics."""
    cdef Py_ssize_t j
    for j in range(width):
        dx[j] = differentiated(dout[j] * gamma[j] if scaled else dout[j], x[j], mean_hi[j], mean_lo[j], scale[j],
                               slope[j], mean_dout[j])


cdef inline loop_part input_gradient_run(
    const floating *restrict dout,      # IN (size)
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating gamma, floating scale, floating slope, floating mean_dout,
    floating *restrict dx,              # OUT (size)
) noexcept nogil:
    """One mean and scale for all; gamma where slope and mean_dout are of dout·gamma, else 1."""
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = differentiated(dout[i] * gamma, x[i], mean_hi, mean_lo, scale, slope, mean_dout)


cdef inline loop_part input_gradient_scaled(
    const floating *restrict dout,      # IN (size)
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    const floating *restrict gamma,     # IN (size)
    floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout,
    floating *restrict dx,              # OUT (size)
) noexcept nogil:
    """One mean and scale for all, a gamma for each number."""
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = differentiated(dout[i] * gamma[i], x[i], mean_hi, mean_lo, scale, slope, mean_dout)


# The same, stored as `store` says; `factors` are (kinds, factor_stride).

cdef inline loop_part store_gradient_rows(
    const floating *dout,               # IN (size), rows of `width` without a gap
    const floating *x,                  # IN (size)
    Py_ssize_t size,
    Py_ssize_t width,
    const floating *factors,            # IN of each column, and of the first BURST once more at the end
    Py_ssize_t factor_stride,
    bint scaled,                        # by a gamma for each column
    floating *dx,                       # OUT (size)
    Store store,
) noexcept nogil:
    cdef const floating *mean_hi = factors + MEAN_HI * factor_stride
    cdef const floating *mean_lo = factors + MEAN_LO * factor_stride
    cdef const floating *scale = factors + SCALE * factor_stride
    cdef const floating *slope = factors + SLOPE * factor_stride
    cdef const floating *mean_dout = factors + MEAN_DOUT * factor_stride
    cdef const floating *gamma = factors + GAMMA * factor_stride
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, j = 0, here
    while i < size:
        here = stretch(dx + i, min(size - i, max(<Py_ssize_t>BURST, width - j)), store)
        if here == BURST:
            input_gradient_row(dout + i, x + i, BURST, mean_hi + j, mean_lo + j, scale + j, slope + j, mean_dout + j,
                               gamma + j, scaled, burst)
            put(dx + i, burst, store)
        else:
            input_gradient_row(dout + i, x + i, here, mean_hi + j, mean_lo + j, scale + j, slope + j, mean_dout + j,
                               gamma + j, scaled, dx + i if store == DIRECT else burst)
            keep(dx + i, burst, here, store)
        i += here
        j = (j + here) % width if j + here >= width else j + here


cdef inline loop_part store_gradient_run(
    const floating *dout, const floating *x, Py_ssize_t size,
    const floating *factors, Py_ssize_t factor_stride,      # of the channel or row
    floating gamma, floating *dx, Store store,
) noexcept nogil:
    cdef floating mean_hi = factors[MEAN_HI * factor_stride], mean_lo = factors[MEAN_LO * factor_stride]
    cdef floating scale = factors[SCALE * factor_stride], slope = factors[SLOPE * factor_stride]
    cdef floating mean_dout = factors[MEAN_DOUT * factor_stride]
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, here
    if store == DIRECT:             # a run may be short
        input_gradient_run(dout, x, size, mean_hi, mean_lo, gamma, scale, slope, mean_dout, dx)
        return
    while i < size:
        here = stretch(dx + i, size - i, store)
        if here == BURST:
            input_gradient_run(dout + i, x + i, BURST, mean_hi, mean_lo, gamma, scale, slope, mean_dout, burst)
            put(dx + i, burst, store)
        else:
            input_gradient_run(dout + i, x + i, here, mean_hi, mean_lo, gamma, scale, slope, mean_dout, burst)
            keep(dx + i, burst, here, store)
        i += here


cdef inline loop_part store_gradient_scaled(
    const floating *dout, const floating *x, Py_ssize_t size, const floating *gamma,
    const floating *factors, Py_ssize_t factor_stride,      # of the row
    floating *dx, Store store,
) noexcept nogil:
    cdef floating mean_hi = factors[MEAN_HI * factor_stride], mean_lo = factors[MEAN_LO * factor_stride]
    cdef floating scale = factors[SCALE * factor_stride], slope = factors[SLOPE * factor_stride]
    cdef floating mean_dout = factors[MEAN_DOUT * factor_stride]
    cdef floating burst[BURST]
    cdef Py_ssize_t i = 0, here
    while i < size:
        here = stretch(dx + i, size - i, store)
        if here == BURST:
            input_gradient_scaled(dout + i, x + i, BURST, gamma + i, mean_hi, mean_lo, scale, slope, mean_dout, burst)
            put(dx + i, burst, store)
        else:
            input_gradient_scaled(dout + i, x + i, here, gamma + i, mean_hi, mean_lo, scale, slope, mean_dout,
                                  dx + i if store == DIRECT else burst)
            keep(dx + i, burst, here, store)
        i += here
