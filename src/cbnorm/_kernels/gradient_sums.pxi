# dbeta = Σ dout;  dgamma = Σ dout·xhat, with xhat = ((x - mean_hi) - mean_lo)·inv_std.
#
# Four numbers are added in the array's own dtype, all else in float64.


cdef inline floating normalized_input(
    floating x, floating mean_hi, floating mean_lo, floating inv_std
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * inv_std


cdef loop add_gradients(
    const floating *restrict dout,      # IN (height, width)
    const floating *restrict x,         # IN (height, width), or NULL: only dout is summed
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next two
    const floating *restrict mean_lo,
    const floating *restrict inv_std,
    double *restrict sum_dout,             # INOUT (width) Σ dout
    double *restrict sum_dout_xhat,           # INOUT (width) Σ dout·xhat
    bint from_memory,                   # ask for rows ahead
) noexcept nogil:
    """Sums over the rows of a tile: four rows in the array's dtype, all else in float64."""
    cdef Py_ssize_t i, j
    cdef const floating *row
    cdef const floating *grad
    cdef floating a, b, c, d, xhat_a, xhat_b, xhat_c, xhat_d
    for i in range(height // 4):
        grad = dout + 4 * i * stride
        row = x + 4 * i * stride
        if from_memory:
            prefetch_rows(grad + 4 * stride, stride, width)
            prefetch_rows(row + 4 * stride, stride, width)
        if x == NULL:
            for j in range(width):
                sum_dout[j] += (grad[j] + grad[stride + j]) + (grad[2 * stride + j] + grad[3 * stride + j])
            continue
        for j in range(width):
            a = grad[j]
            b = grad[stride + j]
            c = grad[2 * stride + j]
            d = grad[3 * stride + j]
            xhat_a = normalized_input(row[j], mean_hi[j], mean_lo[j], inv_std[j])
            xhat_b = normalized_input(row[stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            xhat_c = normalized_input(row[2 * stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            xhat_d = normalized_input(row[3 * stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            sum_dout[j] += (a + b) + (c + d)
            sum_dout_xhat[j] += (a * xhat_a + b * xhat_b) + (c * xhat_c + d * xhat_d)
    for i in range(height // 4 * 4, height):
        grad = dout + i * stride
        for j in range(width):
            sum_dout[j] += grad[j]
        if x != NULL:
            row = x + i * stride
            for j in range(width):
                sum_dout_xhat[j] += grad[j] * normalized_input(row[j], mean_hi[j], mean_lo[j], inv_std[j])


cdef inline floating sum_of_four(const floating *dout, Py_ssize_t stride) noexcept nogil:
    return (dout[0] + dout[stride]) + (dout[2 * stride] + dout[3 * stride])


cdef inline floating product_of_four(
    const floating *dout, const floating *x, Py_ssize_t stride, floating mean_hi, floating mean_lo, floating inv_std
) noexcept nogil:
    cdef floating a = dout[0] * normalized_input(x[0], mean_hi, mean_lo, inv_std)
    cdef floating b = dout[stride] * normalized_input(x[stride], mean_hi, mean_lo, inv_std)
    cdef floating c = dout[2 * stride] * normalized_input(x[2 * stride], mean_hi, mean_lo, inv_std)
    cdef floating d = dout[3 * stride] * normalized_input(x[3 * stride], mean_hi, mean_lo, inv_std)
    return (a + b) + (c + d)


cdef inline loop_part add_gradient_lanes(
    const floating *restrict dout,      # IN (height, LANES)
    const floating *restrict x,         # IN (height, LANES), or NULL: only dout is summed
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t skip,                    # the first lanes do not count
    floating mean_hi, floating mean_lo, floating inv_std,
    double *restrict sum_dout,             # INOUT (LANES) Σ dout
    double *restrict sum_dout_xhat,           # INOUT (LANES) Σ dout·xhat
) noexcept nogil:
    """Sums of four float32 are an array first: in one loop with the float64 sums Clang takes half as many at a time."""
    cdef Py_ssize_t i, k
    cdef floating a
    cdef FloatLanes four
    cdef const floating *row
    cdef const floating *grad
    for i in range(height // 4):
        grad = dout + 4 * i * stride
        if floating is float:
            for k in range(LANES):
                four[k] = sum_of_four(grad + k, stride)
            for k in range(LANES):
                sum_dout[k] += four[k] if k >= skip else 0
            if x != NULL:
                row = x + 4 * i * stride
                for k in range(LANES):
                    four[k] = product_of_four(grad + k, row + k, stride, mean_hi, mean_lo, inv_std)
                for k in range(LANES):
                    sum_dout_xhat[k] += four[k] if k >= skip else 0
        else:
            for k in range(LANES):
                a = sum_of_four(grad + k, stride)
                sum_dout[k] += a if k >= skip else 0
            if x != NULL:
                row = x + 4 * i * stride
                for k in range(LANES):
                    a = product_of_four(grad + k, row + k, stride, mean_hi, mean_lo, inv_std)
                    sum_dout_xhat[k] += a if k >= skip else 0
    for i in range(height // 4 * 4, height):
        grad = dout + i * stride
        for k in range(LANES):
            a = grad[k]
            sum_dout[k] += a if k >= skip else 0
        if x != NULL:
            row = x + i * stride
            for k in range(LANES):
                a = grad[k] * normalized_input(row[k], mean_hi, mean_lo, inv_std)
                sum_dout_xhat[k] += a if k >= skip else 0


cdef loop add_last_gradients(
    const floating *dout, const floating *x, Py_ssize_t stride, Py_ssize_t height, Py_ssize_t skip,
    floating mean_hi, floating mean_lo, floating inv_std, double *sum_dout, double *sum_dout_xhat,
) noexcept nogil:
    """Not inlined: Clang would give each of the LANES sums a register, and take them one by one."""
    add_gradient_lanes(dout, x, stride, height, skip, mean_hi, mean_lo, inv_std, sum_dout, sum_dout_xhat)


cdef inline loop_part add_few_gradients(
    const floating *restrict dout,      # IN (height, size)
    const floating *restrict x,         # IN (height, size), or NULL: only dout is summed
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t size,                    # less than LANES
    floating mean_hi, floating mean_lo, floating inv_std,
    double *restrict sum_dout,             # INOUT (LANES) Σ dout
    double *restrict sum_dout_xhat,           # INOUT (LANES) Σ dout·xhat
) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(height):
        for k in range(size):
            sum_dout[k] += dout[i * stride + k]
        if x != NULL:
            for k in range(size):
                sum_dout_xhat[k] += (
                    dout[i * stride + k] * normalized_input(x[i * stride + k], mean_hi, mean_lo, inv_std))


cdef loop add_run_gradients(
    const floating *dout,               # IN (height, size)
    const floating *x,                  # IN (height, size), or NULL: only dout is summed
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t size,
    const floating *factors,            # IN (kinds, factor_stride), of the channel or row
    Py_ssize_t factor_stride,
    double *sums,                       # INOUT Σ dout, Σ dout·xhat
) noexcept nogil:
    """Sums over runs with one mean."""
    cdef floating mean_hi = factors[MEAN_HI * factor_stride], mean_lo = factors[MEAN_LO * factor_stride]
    cdef floating inv_std = factors[SCALE * factor_stride]
    cdef Lanes lanes
    cdef Lanes lanes_xhat
    cdef Py_ssize_t i, k, start, whole = size // LANES
    for k in range(LANES):
        lanes[k] = 0
        lanes_xhat[k] = 0
    if height == 1:
        add_gradient_lanes(dout, x, LANES, whole, 0, mean_hi, mean_lo, inv_std, lanes, lanes_xhat)
    else:
        for i in range((height + 3) // 4):
            for k in range(whole):
                start = 4 * i * stride + k * LANES
                add_gradient_lanes(dout + start, beginning(x, start), stride, min(4, height - 4 * i), 0,
                                   mean_hi, mean_lo, inv_std, lanes, lanes_xhat)
    if whole == 0:
        add_few_gradients(dout, x, stride, height, size, mean_hi, mean_lo, inv_std, lanes, lanes_xhat)
    elif size > whole * LANES:          # the last LANES numbers, of which some were counted
        add_last_gradients(dout + size - LANES, beginning(x, size - LANES), stride, height,
                           (whole + 1) * LANES - size, mean_hi, mean_lo, inv_std, lanes, lanes_xhat)
    add_lanes_to(lanes, sums)
    add_lanes_to(lanes_xhat, sums + 1)


# Where each row has its own statistics: parameter gradients down the columns, and sums of dxhat = dout·gamma.

cdef enum:
    QUARTER = 16        # LANES / 2: rows are short

cdef inline loop_part add_row_gradients(
    const floating *restrict dout,      # IN (height, width)
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t width,
    Py_ssize_t height,                  # at most 4
    const floating *factors,            # IN (kinds, factor_stride), of each row
    Py_ssize_t factor_stride,
    double *restrict sum_dout,             # INOUT (width) Σ dout
    double *restrict sum_dout_xhat,           # INOUT (width) Σ dout·xhat
) noexcept nogil:
    cdef const floating *mean_hi = factors + MEAN_HI * factor_stride
    cdef const floating *mean_lo = factors + MEAN_LO * factor_stride
    cdef const floating *inv_std = factors + SCALE * factor_stride
    cdef Py_ssize_t i, j
    cdef floating a, b, c, d
    if height < 4:
        for i in range(height):
            for j in range(width):
                a = dout[i * width + j]
                sum_dout[j] += a
                sum_dout_xhat[j] += a * normalized_input(x[i * width + j], mean_hi[i], mean_lo[i], inv_std[i])
        return
    for j in range(width):
        a = dout[j]
        b = dout[width + j]
        c = dout[2 * width + j]
        d = dout[3 * width + j]
        sum_dout[j] += (a + b) + (c + d)
        sum_dout_xhat[j] += (
            (a * normalized_input(x[j], mean_hi[0], mean_lo[0], inv_std[0])
             + b * normalized_input(x[width + j], mean_hi[1], mean_lo[1], inv_std[1]))
            + (c * normalized_input(x[2 * width + j], mean_hi[2], mean_lo[2], inv_std[2])
               + d * normalized_input(x[3 * width + j], mean_hi[3], mean_lo[3], inv_std[3])))


cdef inline loop_part add_dxhat_quarters(
    const floating *restrict dout,      # IN (4 * QUARTER)
    const floating *restrict x,         # IN (4 * QUARTER)
    const floating *restrict gamma,     # IN (4 * QUARTER)
    floating mean_hi, floating mean_lo, floating inv_std,
    double *restrict sum_dxhat,             # INOUT (QUARTER) Σ dxhat
    double *restrict sum_dxhat_xhat,           # INOUT (QUARTER) Σ dxhat·xhat
) noexcept nogil:
    """Sums of four float32 are arrays first, as in `add_gradient_lanes`."""
    cdef Py_ssize_t k
    cdef floating a, b, c, d, four, four_xhat
    cdef FloatLanes fours
    cdef FloatLanes fours_xhat
    for k in range(QUARTER):
        a = dout[k] * gamma[k]
        b = dout[QUARTER + k] * gamma[QUARTER + k]
        c = dout[2 * QUARTER + k] * gamma[2 * QUARTER + k]
        d = dout[3 * QUARTER + k] * gamma[3 * QUARTER + k]
        four = (a + b) + (c + d)
        a *= normalized_input(x[k], mean_hi, mean_lo, inv_std)
        b *= normalized_input(x[QUARTER + k], mean_hi, mean_lo, inv_std)
        c *= normalized_input(x[2 * QUARTER + k], mean_hi, mean_lo, inv_std)
        d *= normalized_input(x[3 * QUARTER + k], mean_hi, mean_lo, inv_std)
        four_xhat = (a + b) + (c + d)
        if floating is float:
            fours[k] = four
            fours_xhat[k] = four_xhat
        else:
            sum_dxhat[k] += four
            sum_dxhat_xhat[k] += four_xhat
    if floating is float:
        for k in range(QUARTER):
            sum_dxhat[k] += fours[k]
            sum_dxhat_xhat[k] += fours_xhat[k]


cdef inline loop_part add_dxhat_rest(
    const floating *dout, const floating *x, const floating *gamma, Py_ssize_t size,    # less than 4 * QUARTER
    floating mean_hi, floating mean_lo, floating inv_std,
    double *sum_dxhat,              # INOUT (QUARTER) Σ dxhat
    double *sum_dxhat_xhat,            # INOUT (QUARTER) Σ dxhat·xhat
) noexcept nogil:
    """Filled up with numbers that add nothing."""
    cdef floating padded[3 * 4 * QUARTER]
    cdef const floating *filled = padded
    cdef Py_ssize_t k, full = 4 * QUARTER
    for k in range(full):
        padded[k] = 0
        padded[full + k] = mean_hi
        padded[2 * full + k] = 0
    memcpy(padded, dout, size * sizeof(floating))
    memcpy(padded + full, x, size * sizeof(floating))
    memcpy(padded + 2 * full, gamma, size * sizeof(floating))
    add_dxhat_quarters(filled, filled + full, filled + 2 * full, mean_hi, mean_lo, inv_std, sum_dxhat, sum_dxhat_xhat)


cdef loop sum_dxhat(
    const floating *dout,               # IN (size)
    const floating *x,                  # IN (size)
    const floating *gamma,              # IN (size)
    Py_ssize_t size,
    const floating *factors,            # IN (kinds, factor_stride), of the row
    Py_ssize_t factor_stride,
    double *sum_of_dxhat,                      # OUT Σ dxhat
    double *sum_of_dxhat_xhat,                    # OUT Σ dxhat·xhat
) noexcept nogil:
    """Sums over a row with a gamma for each number, whose quarters are added side by side."""
    cdef floating mean_hi = factors[MEAN_HI * factor_stride], mean_lo = factors[MEAN_LO * factor_stride]
    cdef floating inv_std = factors[SCALE * factor_stride]
    cdef Sixteen lanes
    cdef Sixteen lanes_xhat
    cdef Py_ssize_t k, start = 0
    for k in range(QUARTER):
        lanes[k] = 0
        lanes_xhat[k] = 0
    while start + 4 * QUARTER <= size:
        add_dxhat_quarters(dout + start, x + start, gamma + start, mean_hi, mean_lo, inv_std, lanes, lanes_xhat)
        start += 4 * QUARTER
    if start < size:
        add_dxhat_rest(dout + start, x + start, gamma + start, size - start, mean_hi, mean_lo, inv_std,
                       lanes, lanes_xhat)
    sum_of_dxhat[0] = sum_of_half(lanes)
    sum_of_dxhat_xhat[0] = sum_of_half(lanes_xhat)
