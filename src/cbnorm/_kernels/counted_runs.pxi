# Moments along runs where numbers count differently; for the design see counted.pxi.

cdef inline loop_part add_counted_lanes(
    const floating *restrict x,         # IN (height, size)
    Py_ssize_t stride,
    const double *restrict weights,     # IN (height, size), or NULL: 1
    Py_ssize_t weights_stride,
    Py_ssize_t height,
    Py_ssize_t size,                    # at most LANES
    Py_ssize_t skip,                    # the first lanes do not count
    bint omit,
    bint trusting,                      # what counts 0 is read, and hoped to be a number
    double pivot,
    double *restrict total,             # INOUT (LANES) Σ u·(x - pivot), as are the next two
    double *restrict squares,
    double *restrict counts,
) noexcept nogil:
    """Four rows a turn; the last ones, and those of less than LANES numbers, one by one."""
    cdef Py_ssize_t i, k, fours = height // 4 if size == LANES else 0
    cdef const floating *row
    cdef const double *weight
    cdef double a, b, c, d, ua, ub, uc, ud
    for i in range(fours):
        row = x + 4 * i * stride
        weight = beginning(weights, 4 * i * weights_stride)
        for k in range(LANES):
            ua = what_counts(1.0 if weights == NULL else weight[k], row[k], omit)
            ub = what_counts(1.0 if weights == NULL else weight[weights_stride + k], row[stride + k], omit)
            uc = what_counts(1.0 if weights == NULL else weight[2 * weights_stride + k], row[2 * stride + k], omit)
            ud = what_counts(1.0 if weights == NULL else weight[3 * weights_stride + k], row[3 * stride + k], omit)
            a = row[k] - pivot if trusting else deviation(row[k], pivot, ua)
            b = row[stride + k] - pivot if trusting else deviation(row[stride + k], pivot, ub)
            c = row[2 * stride + k] - pivot if trusting else deviation(row[2 * stride + k], pivot, uc)
            d = row[3 * stride + k] - pivot if trusting else deviation(row[3 * stride + k], pivot, ud)
            counts[k] += (ua + ub) + (uc + ud) if k >= skip else 0
            total[k] += (ua * a + ub * b) + (uc * c + ud * d) if k >= skip else 0
            squares[k] += (ua * a * a + ub * b * b) + (uc * c * c + ud * d * d) if k >= skip else 0
    for i in range(4 * fours, height):
        row = x + i * stride
        weight = beginning(weights, i * weights_stride)
        for k in range(skip, size):
            ua = what_counts(1.0 if weights == NULL else weight[k], row[k], omit)
            a = row[k] - pivot if trusting else deviation(row[k], pivot, ua)
            counts[k] += ua
            total[k] += ua * a
            squares[k] += ua * a * a


cdef inline double first_pivot(
    const floating *x, const double *weights, Py_ssize_t size, Py_ssize_t numbers, bint omit, double *weight
) noexcept nogil:
    """Of a piece of so many numbers, from the first run's first ones, `size`; and the weight behind it, perhaps 0."""
    cdef Lanes deviations
    cdef Lanes counts
    cdef double pivot = 0, most = 0
    cdef Py_ssize_t k
    for k in range(LANES):
        counts[k] = what_counts(1.0 if weights == NULL else weights[k], x[k], omit) if k < size else 0
        if counts[k] > most:
            most = counts[k]
            pivot = x[k]
    weight[0] = most
    if numbers > BLOCK and most > 0:
        for k in range(LANES):
            deviations[k] = counts[k] * deviation(x[k], pivot, counts[k]) if k < size else 0
        weight[0] = sum_of_lanes(counts)
        pivot += sum_of_lanes(deviations) / weight[0]
    return pivot


cdef inline loop_part add_counted_runs(
    const floating *x, Py_ssize_t stride, const double *weights, Py_ssize_t weights_stride, Py_ssize_t height,
    Py_ssize_t size, bint omit, bint trusting, double pivot,
    double *total, double *squares, double *counts,     # OUT (LANES)
) noexcept nogil:
    """The sums of `height` runs, in the order of `run_moments`."""
    cdef Py_ssize_t i, k, skip, whole = size // LANES
    for k in range(LANES):
        total[k] = squares[k] = counts[k] = 0
    if height == 1:
        add_counted_lanes(
            x, LANES, weights, LANES, whole, LANES, 0, omit, trusting, pivot, total, squares, counts)
    else:
        for i in range((height + 3) // 4):
            for k in range(whole):
                add_counted_lanes(
                    x + 4 * i * stride + k * LANES, stride, beginning(weights, 4 * i * weights_stride + k * LANES),
                    weights_stride, min(4, height - 4 * i), LANES, 0, omit, trusting, pivot, total, squares, counts)
    if whole == 0:
        add_counted_lanes(
            x, stride, weights, weights_stride, height, size, 0, omit, False, pivot, total, squares, counts)
    elif size > whole * LANES:          # the last LANES numbers, of which some were counted
        skip = (whole + 1) * LANES - size
        add_counted_lanes(x + size - LANES, stride, beginning(weights, size - LANES), weights_stride, height, LANES,
                          skip, omit, False, pivot, total, squares, counts)


cdef loop counted_run_moments(
    const floating *x,                  # IN (height, size)
    Py_ssize_t stride,
    const double *weights,              # IN (height, size), or NULL: 1
    Py_ssize_t weights_stride,
    Py_ssize_t height,
    Py_ssize_t size,
    bint omit,
    double *sums,                       # OUT mean, mean_lo, m2, count
) noexcept nogil:
    """The moments of all numbers of `height` runs, together 1 to PIECE."""
    cdef Lanes total
    cdef Lanes squares
    cdef Lanes counts
    cdef double weight, count, sum_of_deviations
    cdef double pivot = first_pivot(x, weights, min(size, <Py_ssize_t>LANES), height * size, omit, &weight)
    cdef bint trusting = not omit
    while True:     # again where what counts 0 was no number, or the pivot had too little behind it
        if weights == NULL:
            add_counted_runs(
                x, stride, <const double *>NULL, 0, height, size, True, False, pivot, total, squares, counts)
        elif trusting:
            add_counted_runs(
                x, stride, weights, weights_stride, height, size, False, True, pivot, total, squares, counts)
        else:
            add_counted_runs(
                x, stride, weights, weights_stride, height, size, omit, False, pivot, total, squares, counts)
        count = sum_of_lanes(counts)
        sum_of_deviations = sum_of_lanes(total)
        if trusting and sum_of_deviations - sum_of_deviations != 0:
            trusting = False
        elif count > BLOCK * weight:
            weight = count
            pivot += sum_of_deviations / count
        else:
            break
    sums[0] = sums[1] = sums[2] = 0
    sums[3] = count
    if count > 0:
        centre(1.0 / count, pivot, sum_of_deviations, sum_of_lanes(squares), sums, sums + 1, sums + 2)


cdef loop collect_counted_plane(const Call *call, Py_ssize_t channel, Py_ssize_t chunk) noexcept nogil:
    """The moments of a task: partial (channels, chunks, 4) mean, mean_lo, m2, count."""
    cdef const Facts *facts = &call.facts
    cdef const Planes *planes = &facts.planes
    cdef double[4] found
    cdef double *sums = facts.partial + (channel * planes.chunks + chunk) * 4
    cdef Py_ssize_t number, place, stride = facts.channels * facts.inner
    cdef Part part
    memset(sums, 0, 4 * sizeof(double))
    for number in range(chunk * planes.chunk, min(planes.parts, (chunk + 1) * planes.chunk)):
        part = planes_part(facts, channel, number)
        place = number // planes.pieces * planes.height * facts.inner + number % planes.pieces * PIECE
        counted_run_moments(call.x + part.start, stride, beginning(facts.weights, place), facts.inner, part.height,
                            part.width, facts.omit, found)
        merge_counted(sums, 1, found[3], found[0], found[1], found[2])


cdef void merge_counted_planes_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    cdef double *sums
    cdef double *other
    for channel in range(first, last):
        sums = facts.partial + channel * facts.planes.chunks * 4
        for chunk in range(1, facts.planes.chunks):
            other = sums + chunk * 4
            merge_counted(sums, 1, other[3], other[0], other[1], other[2])
        facts.mean[channel] = sums[0]
        facts.mean_lo[channel] = sums[1]
        facts.m2[channel] = sums[2]
        facts.counts[channel] = sums[3]
