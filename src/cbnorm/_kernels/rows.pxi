# The walk where each row has its own statistics: layer, group, instance and RMS normalization.
#
# Design
# A. The array is `rows` rows of `runs` runs of `inner` numbers, one after the other in memory. Run r of a row
#    has the parameters number (row % groups) * runs + r. Layer normalization has inner = 1: a gamma for each
#    number; instance normalization has one run a row.
# B. A row is read from memory once: its statistics first, then it is normalized from cache. RMS normalization
#    is the same with its mean held at 0 (`centred` false).
# C. dgamma and dbeta add up over chunks of rows, by shape alone, and merge in order: the same bits for any
#    number of threads.

cdef enum:
    ROW_CHUNK = 64      # least rows with sums of their own


cdef struct Rows:
    Py_ssize_t rows
    Py_ssize_t groups
    Py_ssize_t runs
    Py_ssize_t inner
    Py_ssize_t size     # of a row: runs * inner
    Py_ssize_t parameters
    Py_ssize_t chunk    # rows of a chunk
    Py_ssize_t chunks
    bint centred


cdef Rows lay_rows(
    Py_ssize_t rows, Py_ssize_t groups, Py_ssize_t runs, Py_ssize_t inner, bint centred
) noexcept nogil:
    cdef Rows lay
    lay.rows = rows
    lay.groups = groups
    lay.runs = runs
    lay.inner = inner
    lay.size = runs * inner
    lay.parameters = groups * runs
    lay.chunk = max(<Py_ssize_t>ROW_CHUNK, (rows + MOST_CHUNKS - 1) // MOST_CHUNKS)
    lay.chunks = (rows + lay.chunk - 1) // lay.chunk
    lay.centred = centred
    return lay


cdef inline Py_ssize_t first_parameter(const Rows *lay, Py_ssize_t row) noexcept nogil:
    return row % lay.groups * lay.runs


# Forward

cdef void row_moments(
    const floating *x, Py_ssize_t size, bint centred,
    double *sums,               # OUT: count, mean, mean_lo, m2
) noexcept nogil:
    """The moments of a run of any length; around 0 if not centred."""
    cdef double mean, mean_lo, m2
    cdef Py_ssize_t done = 0, piece
    sums[0] = 0
    while done < size:
        piece = min(<Py_ssize_t>PIECE, size - done)
        run_moments(x + done, piece, centred, &mean, &mean_lo, &m2)
        add_moments(sums, piece, mean, mean_lo, m2)
        done += piece


cdef inline floating *room_for(
    Py_ssize_t size, floating *out, Py_ssize_t position, floating *buffer, Py_ssize_t *pending, bint streamed
) noexcept nogil:
    """Where the next `size` results go, at most PIECE: a buffer that is written out when full, so that short rows
    too leave in long stretches. `position` is where they belong in `out`, right behind the pending ones."""
    if pending[0] + size > PIECE:
        write_slab(buffer, out + position - pending[0], 0, 1, pending[0], streamed)
        pending[0] = 0
    pending[0] += size
    return buffer + pending[0] - size


cdef void normalize_part(
    const floating *x,          # IN (size): of the row, from `start` on
    const Rows *lay, Py_ssize_t start, Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating inv_std,
    const floating *gamma, const floating *beta,    # of the row's first run
    floating *y,                # OUT (size)
) noexcept nogil:
    cdef Py_ssize_t run, here, end = start + size
    if lay.inner == 1:
        normalize_scaled(x, size, mean_hi, mean_lo, inv_std, gamma + start, beta + start, y)
        return
    while start < end:
        run = start // lay.inner
        here = min((run + 1) * lay.inner, end) - start
        normalize_run(x, here, mean_hi, mean_lo, gamma[run] * inv_std, beta[run], y)
        x += here
        y += here
        start += here


cdef inline void see_row(
    const double *statistics, const Rows *lay, Py_ssize_t row, floating *mean_hi, floating *mean_lo, floating *inv_std
) noexcept nogil:
    split(statistics[row], statistics[lay.rows + row], mean_hi, mean_lo)
    inv_std[0] = <floating>statistics[3 * lay.rows + row]


cdef void forward_rows(
    const floating *x, floating *y, const Rows *lay, double eps, const floating *gamma, const floating *beta,
    double *statistics,         # OUT (4, rows): mean, mean_lo, m2, inv_std
    bint streamed, int thread, int threads,
) noexcept nogil:
    cdef floating buffer[PIECE]
    cdef floating *out
    cdef bint direct = not (streamed or y == x)
    cdef double sums[4]
    cdef floating mean_hi, mean_lo, inv_std
    cdef Py_ssize_t row, kind, parameter, start, size, position, pending = 0
    cdef Py_ssize_t last = share(lay.rows, thread + 1, threads)
    for row in range(share(lay.rows, thread, threads), last):
        position = row * lay.size
        row_moments(x + position, lay.size, lay.centred, sums)
        for kind in range(3):
            statistics[kind * lay.rows + row] = sums[1 + kind]
        statistics[3 * lay.rows + row] = inverse_std(sums[3] / lay.size, eps)
        see_row(statistics, lay, row, &mean_hi, &mean_lo, &inv_std)
        parameter = first_parameter(lay, row)
        start = 0
        while start < lay.size:
            size = lay.size if direct else min(<Py_ssize_t>PIECE, lay.size - start)
            out = y + position if direct else room_for(size, y, position + start, &buffer[0], &pending, streamed)
            normalize_part(x + position + start, lay, start, size, mean_hi, mean_lo, inv_std,
                           gamma + parameter, beta + parameter, out)
            start += size
    write_slab(buffer, y + last * lay.size - pending, 0, 1, pending, streamed)
    if streamed:
        cbnorm_stream_end()


cdef void rows_forward(
    const floating *x,          # IN (rows, runs, inner)
    floating *y,                # OUT (rows, runs, inner)
    const Rows *lay, double eps,
    const floating *gamma,      # IN (groups * runs)
    const floating *beta,       # IN (groups * runs)
    double *statistics,         # OUT (4, rows)
    bint streamed, int threads,
) noexcept nogil:
    cdef int thread
    with parallel(num_threads=threads, use_threads_if=threads > 1):
        for thread in prange(threads, schedule="static", chunksize=1):
            forward_rows(x, y, lay, eps, gamma, beta, statistics, streamed, thread, threads)


# Backward, with dxhat = dout·gamma and sums over the row:
# dx = (inv_std / size) (size·dxhat - xhat·Σ(dxhat·xhat) - Σ dxhat)

cdef void find_dxhat(
    const floating *dout,       # IN (size): of the row, from `start` on
    const Rows *lay, const floating *gamma, Py_ssize_t start, Py_ssize_t size,
    floating *dxhat,            # OUT (size)
) noexcept nogil:
    cdef Py_ssize_t run, here, end = start + size
    if lay.inner == 1:
        multiply(dout, gamma + start, dxhat, size)
        return
    while start < end:
        run = start // lay.inner
        here = min((run + 1) * lay.inner, end) - start
        multiply_by_one(dout, gamma[run], dxhat, here)
        dout += here
        dxhat += here
        start += here


cdef void differentiate_row(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, Py_ssize_t row,
    const double *statistics, const floating *gamma, floating *buffer, Py_ssize_t *pending, bint streamed,
) noexcept nogil:
    """A first pass for the row's sums, a second for dx; dxhat lies in memory of its own, a piece at a time."""
    cdef floating dxhat[PIECE]
    cdef floating *out
    cdef double total = 0, product = 0
    cdef floating mean_hi, mean_lo, inv_std, slope, offset
    cdef Py_ssize_t start = 0, size, position = row * lay.size
    gamma += first_parameter(lay, row)
    see_row(statistics, lay, row, &mean_hi, &mean_lo, &inv_std)
    while start < lay.size:
        size = min(<Py_ssize_t>PIECE, lay.size - start)
        find_dxhat(dout + position + start, lay, gamma, start, size, &dxhat[0])
        add_run_gradients(&dxhat[0], x + position + start, size, mean_hi, mean_lo, inv_std, &total, &product)
        start += size
    slope = <floating>(inv_std * product / lay.size)
    offset = <floating>(total / lay.size if lay.centred else 0)
    start = 0
    while start < lay.size:
        size = min(<Py_ssize_t>PIECE, lay.size - start)
        if lay.size > PIECE:
            find_dxhat(dout + position + start, lay, gamma, start, size, &dxhat[0])
        out = room_for(size, dx, position + start, buffer, pending, True) if streamed else dx + position + start
        input_gradient_run(&dxhat[0], x + position + start, size, mean_hi, mean_lo, inv_std, slope, offset, out)
        start += size


cdef void add_parameter_gradients(
    const floating *dout, const floating *x, const Rows *lay, Py_ssize_t row, Py_ssize_t height,
    const double *statistics,
    double *partial,            # INOUT (2, parameters): Σ dout, Σ dout·xhat
) noexcept nogil:
    """Rows row to row + height - 1, at most four."""
    cdef floating mean_hi[4]
    cdef floating mean_lo[4]
    cdef floating inv_std[4]
    cdef Py_ssize_t i, run, start, parameter
    for i in range(height):
        see_row(statistics, lay, row + i, &mean_hi[i], &mean_lo[i], &inv_std[i])
    if lay.inner == 1 and lay.groups == 1:
        add_row_gradients(dout + row * lay.size, x + row * lay.size, lay.size, height, &mean_hi[0], &mean_lo[0],
                          &inv_std[0], partial, partial + lay.parameters)
        return
    for i in range(height):
        parameter = first_parameter(lay, row + i)
        start = (row + i) * lay.size
        if lay.inner == 1:
            add_row_gradients(dout + start, x + start, lay.size, 1, &mean_hi[i], &mean_lo[i], &inv_std[i],
                              partial + parameter, partial + lay.parameters + parameter)
        else:
            for run in range(lay.runs):
                add_run_gradients(dout + start + run * lay.inner, x + start + run * lay.inner, lay.inner,
                                  mean_hi[i], mean_lo[i], inv_std[i],
                                  partial + parameter + run, partial + lay.parameters + parameter + run)


cdef void backward_rows(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, const floating *gamma,
    const double *statistics, double *partial, bint streamed, int thread, int threads,
) noexcept nogil:
    cdef floating buffer[PIECE]
    cdef double *sums
    cdef Py_ssize_t chunk, row, last, i, height, pending = 0
    for chunk in range(share(lay.chunks, thread, threads), share(lay.chunks, thread + 1, threads)):
        row = chunk * lay.chunk
        last = min(lay.rows, row + lay.chunk)
        sums = partial + chunk * 2 * lay.parameters
        if partial != NULL:
            memset(sums, 0, 2 * lay.parameters * sizeof(double))
        while row < last:
            height = min(<Py_ssize_t>4, last - row)
            if partial != NULL:
                add_parameter_gradients(dout, x, lay, row, height, statistics, sums)
            if dx != NULL:
                for i in range(row, row + height):
                    differentiate_row(dout, x, dx, lay, i, statistics, gamma, &buffer[0], &pending, streamed)
            row += height
        if pending > 0:
            write_slab(buffer, dx + last * lay.size - pending, 0, 1, pending, streamed)
            pending = 0
    if streamed:
        cbnorm_stream_end()


cdef void merge_parameter_gradients(
    const Rows *lay, double *partial, floating *dgamma, floating *dbeta, int thread, int threads
) noexcept nogil:
    cdef Py_ssize_t chunk, first = share(lay.parameters, thread, threads)
    cdef Py_ssize_t last = share(lay.parameters, thread + 1, threads)
    for chunk in range(2, 2 * lay.chunks, 2):
        add_columns(partial + first, partial + chunk * lay.parameters + first, last - first)
        add_columns(partial + lay.parameters + first, partial + (chunk + 1) * lay.parameters + first, last - first)
    finish_gradients(partial, partial + lay.parameters, dgamma, dbeta, first, last)


cdef void rows_backward(
    const floating *dout,       # IN (rows, runs, inner)
    const floating *x,          # IN (rows, runs, inner)
    floating *dx,               # OUT (rows, runs, inner); may be dout; NULL: not wanted
    const Rows *lay,
    const floating *gamma,      # IN (groups * runs)
    floating *dgamma,           # OUT (groups * runs), or NULL
    floating *dbeta,            # OUT (groups * runs), or NULL
    const double *statistics,   # IN (4, rows)
    double *partial,            # (chunks, 2, groups * runs); NULL: neither dgamma nor dbeta is wanted
    bint streamed, int threads,
) noexcept nogil:
    cdef int thread
    with parallel(num_threads=threads, use_threads_if=threads > 1):
        for thread in prange(threads, schedule="static", chunksize=1):
            backward_rows(dout, x, dx, lay, gamma, statistics, partial, streamed, thread, threads)
        if partial != NULL:
            for thread in prange(threads, schedule="static", chunksize=1):
                merge_parameter_gradients(lay, partial, dgamma, dbeta, thread, threads)
