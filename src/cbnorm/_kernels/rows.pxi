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

from cython.parallel cimport parallel, threadid

cdef enum:
    ROW_CHUNK = 64      # least rows with sums of their own
    LONG_ROW = 1024     # numbers, from which the processor itself looks ahead far enough
    MOST_GROUP = 16     # rows whose square roots, or slopes, are taken together: one at a time would wait for each


cdef struct Rows:
    Py_ssize_t rows
    Py_ssize_t groups
    Py_ssize_t runs
    Py_ssize_t inner
    Py_ssize_t size     # of a row: runs * inner
    Py_ssize_t parameters
    Py_ssize_t chunk    # rows of a chunk
    Py_ssize_t chunks
    Py_ssize_t group    # rows that are read before they are written
    double one_by_size
    bint centred
    bint far            # more than half of the last cache: read from memory, the next rows are asked for early


cdef Rows lay_rows(
    Py_ssize_t rows, Py_ssize_t groups, Py_ssize_t runs, Py_ssize_t inner, bint centred, Py_ssize_t read_bytes
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
    lay.group = max(1, min(<Py_ssize_t>MOST_GROUP, PIECE // lay.size))
    lay.one_by_size = 1.0 / lay.size
    lay.centred = centred
    lay.far = read_bytes > cache_bytes // 2 and lay.size <= LONG_ROW
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
        run_moments(x + done, 0, 1, piece, centred, &mean, &mean_lo, &m2)
        add_moments(sums, piece, mean, mean_lo, m2)
        done += piece


cdef inline void see_row(
    const double *statistics, const Rows *lay, Py_ssize_t row, floating *mean_hi, floating *mean_lo, floating *inv_std
) noexcept nogil:
    split(statistics[row], statistics[lay.rows + row], mean_hi, mean_lo)
    inv_std[0] = <floating>statistics[3 * lay.rows + row]


cdef void normalize_one_row(
    const floating *x,          # IN (runs, inner)
    const Rows *lay,
    floating mean_hi, floating mean_lo, floating inv_std,
    const floating *gamma, const floating *beta,    # of the row's first run
    floating *y,                # OUT (runs, inner)
    Store store,
) noexcept nogil:
    cdef Py_ssize_t run
    if lay.inner == 1:
        store_normalized_scaled(x, lay.size, mean_hi, mean_lo, inv_std, gamma, beta, y, store)
        return
    for run in range(lay.runs):
        store_normalized_run(x + run * lay.inner, lay.inner, mean_hi, mean_lo, gamma[run] * inv_std, beta[run],
                             y + run * lay.inner, store)


cdef void forward_rows(
    const floating *x, floating *y, const Rows *lay, double eps, const floating *gamma, const floating *beta,
    double *statistics,         # OUT (4, rows): mean, mean_lo, m2, inv_std
    bint streamed, Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    cdef Store store = store_for(y, x, streamed)
    cdef double *m2 = statistics + 2 * lay.rows
    cdef double *inv_std = statistics + 3 * lay.rows
    cdef double sums[4]
    cdef floating mean_hi, mean_lo, scale
    cdef Py_ssize_t row, parameter, end
    cdef Py_ssize_t first = share(lay.rows, thread, threads), last = share(lay.rows, thread + 1, threads)
    while first < last:
        end = min(last, first + lay.group)
        if lay.far:
            cbnorm_prefetch(x + end * lay.size, lay.group * lay.size * sizeof(floating))
        for row in range(first, end):
            row_moments(x + row * lay.size, lay.size, lay.centred, sums)
            statistics[row] = sums[1]
            statistics[lay.rows + row] = sums[2]
            m2[row] = sums[3]
        find_inv_std(m2 + first, lay.size, eps, inv_std + first, end - first)
        for row in range(first, end if y != NULL else first):
            see_row(statistics, lay, row, &mean_hi, &mean_lo, &scale)
            parameter = first_parameter(lay, row)
            normalize_one_row(x + row * lay.size, lay, mean_hi, mean_lo, scale, gamma + parameter, beta + parameter,
                              y + row * lay.size, store)
        first = end
    end_stores(store)


cdef void rows_forward(
    const floating *x,          # IN (rows, runs, inner)
    floating *y,                # OUT (rows, runs, inner); NULL: only the statistics are wanted
    const Rows *lay, double eps,
    const floating *gamma,      # IN (groups * runs)
    const floating *beta,       # IN (groups * runs)
    double *statistics,         # OUT (4, rows)
    bint streamed, Team *team,
) noexcept nogil:
    if team.threads == 1:
        forward_rows(x, y, lay, eps, gamma, beta, statistics, streamed, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        forward_rows(x, y, lay, eps, gamma, beta, statistics, streamed, team, threadid())
        leave_team(team, threadid())


# Backward, with dxhat = dout·gamma and sums over the row:
# dx = (inv_std / size) (size·dxhat - xhat·Σ(dxhat·xhat) - Σ dxhat)

cdef inline void find_slope(
    const Rows *lay, double total, double product, floating inv_std, floating *slope, floating *offset
) noexcept nogil:
    slope[0] = <floating>(inv_std * product * lay.one_by_size)
    offset[0] = <floating>(total * lay.one_by_size if lay.centred else 0)


cdef void differentiate_layers(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, Py_ssize_t row, Py_ssize_t height,
    const double *statistics, const floating *gamma,
    double *partial,            # INOUT (2, parameters): Σ dout, Σ dout·xhat; or NULL
    Store store,
) noexcept nogil:
    """Rows row to row + height - 1, at most MOST_GROUP, with a gamma for each number."""
    cdef floating mean_hi[MOST_GROUP]
    cdef floating mean_lo[MOST_GROUP]
    cdef floating inv_std[MOST_GROUP]
    cdef floating slope[MOST_GROUP]
    cdef floating offset[MOST_GROUP]
    cdef double total[MOST_GROUP]
    cdef double product[MOST_GROUP]
    cdef Py_ssize_t i, start, parameter
    if lay.far:
        start = (row + height) * lay.size
        cbnorm_prefetch(dout + start, height * lay.size * sizeof(floating))
        cbnorm_prefetch(x + start, height * lay.size * sizeof(floating))
    for i in range(height):
        see_row(statistics, lay, row + i, &mean_hi[i], &mean_lo[i], &inv_std[i])
    if dx != NULL:
        for i in range(height):
            start = (row + i) * lay.size
            sum_dxhat(dout + start, x + start, gamma + first_parameter(lay, row + i), lay.size,
                      mean_hi[i], mean_lo[i], inv_std[i], &total[i], &product[i])
        for i in range(height):
            find_slope(lay, total[i], product[i], inv_std[i], &slope[i], &offset[i])
    if partial != NULL and lay.groups == 1:
        for i in range(0, height, 4):
            start = (row + i) * lay.size
            add_row_gradients(dout + start, x + start, lay.size, min(<Py_ssize_t>4, height - i),
                              &mean_hi[i], &mean_lo[i], &inv_std[i], partial, partial + lay.parameters)
    for i in range(height):
        start = (row + i) * lay.size
        parameter = first_parameter(lay, row + i)
        if partial != NULL and lay.groups > 1:
            add_row_gradients(dout + start, x + start, lay.size, 1, &mean_hi[i], &mean_lo[i], &inv_std[i],
                              partial + parameter, partial + lay.parameters + parameter)
        if dx != NULL:
            store_gradient_scaled(dout + start, x + start, lay.size, gamma + parameter, mean_hi[i], mean_lo[i],
                                  inv_std[i], slope[i], offset[i], dx + start, store)


cdef void differentiate_group(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, Py_ssize_t row,
    const double *statistics, const floating *gamma,
    double *partial,            # INOUT (2, parameters): Σ dout, Σ dout·xhat; or NULL
    Store store,
) noexcept nogil:
    """A row with a gamma for each run, so that its sums are made of the runs' sums."""
    cdef double run_total, run_product, total = 0, product = 0
    cdef floating mean_hi, mean_lo, inv_std, slope, offset
    cdef Py_ssize_t run, start, parameter = first_parameter(lay, row)
    see_row(statistics, lay, row, &mean_hi, &mean_lo, &inv_std)
    for run in range(lay.runs):
        start = row * lay.size + run * lay.inner
        run_total = run_product = 0
        add_run_gradients(
            dout + start, x + start, 0, 1, lay.inner, mean_hi, mean_lo, inv_std, &run_total, &run_product)
        total += gamma[parameter + run] * run_total
        product += gamma[parameter + run] * run_product
        if partial != NULL:
            partial[parameter + run] += run_total
            partial[lay.parameters + parameter + run] += run_product
    if dx == NULL:
        return
    find_slope(lay, total, product, inv_std, &slope, &offset)
    for run in range(lay.runs):
        start = row * lay.size + run * lay.inner
        store_gradient_run(dout + start, x + start, lay.inner, mean_hi, mean_lo, gamma[parameter + run], inv_std,
                           slope, offset, dx + start, store)


cdef void backward_rows(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, const floating *gamma,
    const double *statistics, double *partial, bint streamed, int thread, int threads,
) noexcept nogil:
    cdef Store store = store_for(dx, dout, streamed)
    cdef double *sums = NULL
    cdef Py_ssize_t chunk, row, height, last
    for chunk in range(share(lay.chunks, thread, threads), share(lay.chunks, thread + 1, threads)):
        last = min(lay.rows, (chunk + 1) * lay.chunk)
        if partial != NULL:
            sums = partial + chunk * 2 * lay.parameters
            memset(sums, 0, 2 * lay.parameters * sizeof(double))
        if lay.inner > 1:
            for row in range(chunk * lay.chunk, last):
                differentiate_group(dout, x, dx, lay, row, statistics, gamma, sums, store)
        else:
            row = chunk * lay.chunk
            while row < last:
                height = min(max(<Py_ssize_t>4, lay.group // 4 * 4), last - row)
                differentiate_layers(dout, x, dx, lay, row, height, statistics, gamma, sums, store)
                row += height
    end_stores(store)


cdef void merge_parameter_gradients(
    const Rows *lay, double *partial, floating *dgamma, floating *dbeta, int thread, int threads
) noexcept nogil:
    cdef Py_ssize_t chunk, first = share(lay.parameters, thread, threads)
    cdef Py_ssize_t last = share(lay.parameters, thread + 1, threads)
    for chunk in range(2, 2 * lay.chunks, 2):
        add_columns(partial + first, partial + chunk * lay.parameters + first, last - first)
        add_columns(partial + lay.parameters + first, partial + (chunk + 1) * lay.parameters + first, last - first)
    finish_gradients(partial, partial + lay.parameters, dgamma, dbeta, first, last)


cdef void rows_backward_share(
    const floating *dout, const floating *x, floating *dx, const Rows *lay, const floating *gamma,
    floating *dgamma, floating *dbeta, const double *statistics, double *partial, bint streamed,
    Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    backward_rows(dout, x, dx, lay, gamma, statistics, partial, streamed, thread, threads)
    if partial != NULL:
        barrier(team, thread)
        merge_parameter_gradients(lay, partial, dgamma, dbeta, thread, threads)


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
    bint streamed, Team *team,
) noexcept nogil:
    if team.threads == 1:
        rows_backward_share(dout, x, dx, lay, gamma, dgamma, dbeta, statistics, partial, streamed, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        rows_backward_share(dout, x, dx, lay, gamma, dgamma, dbeta, statistics, partial, streamed,
                            team, threadid())
        leave_team(team, threadid())
