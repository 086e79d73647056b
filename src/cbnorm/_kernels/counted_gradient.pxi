# The second pass of the gradient with weights: dx = ((dout - w·((x - mean)·slope)) - w·mean_dout)·scale, with
# slope = inv_std·dgamma / W and mean_dout = dbeta / W. Where w is 0, x does not matter.

cdef inline floating differentiated_counted(
    floating dout, floating x, floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout,
    floating weight
) noexcept nogil:
    return (
        ((dout - weight * (((x - mean_hi) - mean_lo) * slope)) - weight * mean_dout) * scale
        if weight > 0 else dout * scale)


cdef inline loop_part counted_gradient_row(
    const floating *restrict dout,      # IN (width)
    const floating *restrict x,         # IN (width)
    Py_ssize_t width,
    const floating *restrict factors,   # IN (kinds, stride), of each column
    Py_ssize_t stride,
    const floating *restrict weights,   # IN (width), or one for all of them
    bint one_weight,
    floating *restrict dx,              # OUT (width)
) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(width):
        dx[j] = differentiated_counted(
            dout[j], x[j], factors[MEAN_HI * stride + j], factors[MEAN_LO * stride + j], factors[SCALE * stride + j],
            factors[SLOPE * stride + j], factors[MEAN_DOUT * stride + j], weights[0 if one_weight else j])


cdef inline loop_part counted_gradient_run(
    const floating *restrict dout,      # IN (size), as are x and weights
    const floating *restrict x,
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout,
    const double *restrict weights,
    floating *restrict dx,              # OUT (size)
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = differentiated_counted(
            dout[i], x[i], mean_hi, mean_lo, scale, slope, mean_dout, <floating>weights[i])


cdef loop store_counted_row(
    const floating *dout, const floating *x, Py_ssize_t width, const floating *factors, Py_ssize_t stride,
    const floating *weights, bint one_weight, floating *dx, Store store,
) noexcept nogil:
    cdef floating[BURST] burst
    cdef Py_ssize_t j = 0, here
    while j < width:
        here = stretch(dx + j, width - j, store)
        out = dx + j if store == DIRECT else burst
        if here == BURST:
            if one_weight:
                counted_gradient_row(dout + j, x + j, BURST, factors + j, stride, weights, True, burst)
            else:
                counted_gradient_row(dout + j, x + j, BURST, factors + j, stride, weights + j, False, burst)
            put(dx + j, burst, store)
        else:
            if one_weight:
                counted_gradient_row(dout + j, x + j, here, factors + j, stride, weights, True, out)
            else:
                counted_gradient_row(dout + j, x + j, here, factors + j, stride, weights + j, False, out)
            keep(dx + j, burst, here, store)
        j += here


cdef loop store_counted_run(
    const floating *dout, const floating *x, Py_ssize_t size, const floating *factors, Py_ssize_t stride,
    const double *weights, floating *dx, Store store,
) noexcept nogil:
    cdef floating mean_hi = factors[MEAN_HI * stride], mean_lo = factors[MEAN_LO * stride]
    cdef floating scale = factors[SCALE * stride], slope = factors[SLOPE * stride]
    cdef floating mean_dout = factors[MEAN_DOUT * stride]
    cdef floating[BURST] burst
    cdef Py_ssize_t i = 0, here
    while i < size:
        here = stretch(dx + i, size - i, store)
        if here == BURST:
            counted_gradient_run(dout + i, x + i, BURST, mean_hi, mean_lo, scale, slope, mean_dout, weights + i, burst)
            put(dx + i, burst, store)
        else:
            counted_gradient_run(dout + i, x + i, here, mean_hi, mean_lo, scale, slope, mean_dout, weights + i,
                                 dx + i if store == DIRECT else burst)
            keep(dx + i, burst, here, store)
        i += here


cdef loop differentiate_counted_columns(const Call *call, int thread, int threads) noexcept nogil:
    """A line of a strip at a time."""
    cdef Call own = call[0]
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t line, start, stride = own.facts.factor_stride, size = columns.width
    cdef Py_ssize_t first = share(columns.tasks, thread, threads), last = share(columns.tasks, thread + 1, threads)
    cdef Weights weights
    cdef Task strip
    cdef bint one_weight = columns.rows_per_line == 1
    weights.rows_per_line = columns.rows_per_line
    weights.channels = own.facts.channels
    while last > first:
        strip = strip_before(columns, first, &last)
        weights.first = own.facts.weights + strip.start // size * columns.rows_per_line
        for line in range(strip.height if strip.width > 0 else 0):
            start = strip.start + line * size
            if one_weight and weights.first[line] == 1:
                store_gradient_rows(own.dout + start, own.x + start, strip.width, size, own.factors + strip.left,
                                    stride, False, own.out + start, own.facts.store)
            else:
                store_counted_line(&own, &weights, line, &strip)


cdef void store_counted_line(
    const Call *call, const Weights *weights, Py_ssize_t line, const Task *strip
) noexcept nogil:
    cdef Py_ssize_t j, start = strip.start + line * call.facts.columns.width
    cdef Tile of_columns
    cdef double[TILE] room
    cdef bint one_weight = weights.rows_per_line == 1
    of_line = call.factors
    place_factors(&of_line, room)
    if one_weight:
        of_line[0] = weights.first[line]
    else:
        weights_of_line(weights, line, strip.width, of_columns)
        for j in range(strip.width):
            of_line[j] = of_columns[j]
    store_counted_row(call.dout + start, call.x + start, strip.width, call.factors + strip.left,
                      call.facts.factor_stride, of_line, one_weight, call.out + start, call.facts.store)


cdef loop differentiate_counted_span(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Call own = call[0]
    cdef Py_ssize_t channels = own.facts.channels, inner = own.facts.inner
    cdef Py_ssize_t run, place, size
    while first < last:
        run = first // inner
        place = first % inner
        size = min(inner - place, last - first)
        store_counted_run(own.dout + first, own.x + first, size, own.factors + run % channels, own.facts.factor_stride,
                          own.facts.weights + run // channels * inner + place, own.out + first, own.facts.store)
        first += size
