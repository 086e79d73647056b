# The walk where each row has its own statistics: layer, group, instance and RMS normalization.
#
# Design
# A. The array is rows of `runs` runs of `inner` numbers, one after the other in memory. Run r of a row has the
#    parameters number (row % groups) * runs + r. Layer normalization has inner = 1: a gamma for each number;
#    instance normalization has one run a row.
# B. A row is read from memory once: its statistics first, then it is normalized from cache. RMS normalization
#    is the same with its mean held at 0 (`centred` false).
# C. dgamma and dbeta add up over chunks of rows, by shape alone, and merge in order: the same bits for any
#    number of threads.
# D. With dxhat = dout·gamma and sums over the row,
#        dx = (inv_std / size) (size·dxhat - xhat·Σ(dxhat·xhat) - Σ dxhat).

cdef enum:
    ROW_CHUNK = 64      # least rows with sums of their own
    LONG_ROW = 1024     # numbers, from which the processor itself looks ahead far enough
    MOST_STEP = 16      # rows whose square roots, or slopes, are taken together: one at a time would wait for each


cdef Rows lay_rows(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t inner) noexcept nogil:
    cdef Rows geometry
    geometry.runs = runs
    geometry.size = runs * inner
    geometry.one_by_size = 1.0 / geometry.size
    geometry.chunk = max(<Py_ssize_t>ROW_CHUNK, (rows + MOST_CHUNKS - 1) // MOST_CHUNKS)
    geometry.chunks = (rows + geometry.chunk - 1) // geometry.chunk
    return geometry


cdef Py_ssize_t rows_partial(const Facts *facts) noexcept nogil:
    """How many partial sums of parameter gradients there are, (chunks, 2, channels)."""
    return facts.rows.chunks * 2 * facts.channels


cdef Py_ssize_t rows_step(const Facts *facts) noexcept nogil:
    """How many rows a thread reads before it writes them; in the gradient, which adds four at a time, by fours, or as
    many as leave room in the first-level cache where the sums are of runs."""
    cdef Py_ssize_t numbers = PIECE // 4 if facts.backward and facts.inner > 1 else PIECE
    cdef Py_ssize_t step = max(1, min(<Py_ssize_t>MOST_STEP, numbers // facts.rows.size))
    return max(<Py_ssize_t>4, step // 4 * 4) if facts.backward and facts.inner == 1 else step


cdef enum:
    ROW_SUMS = 2 * MOST_STEP                # of a thread, as is the next
    ROW_FACTORS = DX_KINDS * MOST_STEP


cdef inline void take_row_room(Call *call, int thread) noexcept nogil:
    """Let a thread's own call have the sums and factors of its own rows."""
    call.facts.row_sums += thread * ROW_SUMS
    call.factors += thread * ROW_FACTORS
    call.rooms += thread * 3 * call.facts.row_room


cdef inline Py_ssize_t first_parameter(const Facts *facts, Py_ssize_t row) noexcept nogil:
    return row % facts.groups * facts.rows.runs


cdef inline Py_ssize_t next_parameter(const Facts *facts, Py_ssize_t parameter) noexcept nogil:
    """Of the next row."""
    parameter += facts.rows.runs
    return parameter if parameter < facts.channels else 0


# Rows that are stored otherwise

cdef void see_rows(const Call *call, Call *own, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Let a call see rows first to last - 1 widened, and write their results beside them."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t start = first * facts.rows.size, size = (last - first) * facts.rows.size
    own[0] = call[0]
    own.x = before(widened(place(call.x, start, facts.x_storage), 0, 1, size, facts.x_storage, call.rooms, 0), start)
    own.dout = before(
        widened(place(call.dout, start, facts.dout_storage), 0, 1, size, facts.dout_storage,
                call.rooms + facts.row_room, 0), start)
    own.facts.x_storage = own.facts.dout_storage = NATIVE
    if call.out != NULL and facts.out_storage != NATIVE:
        own.out = call.rooms + 2 * facts.row_room - start
        own.facts.store = DIRECT


cdef void keep_rows(const Call *call, const Call *own, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Write what such a call wrote."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t start = first * facts.rows.size, size = (last - first) * facts.rows.size
    if call.out != NULL and facts.out_storage != NATIVE:
        narrow(own.out + start, place_out(call.out, start, facts.out_storage), facts.out_storage, size,
               facts.store == STREAMED)


# Statistics

cdef void row_moments(
    const floating *x, Py_ssize_t size, bint centred,
    double *mean, double *mean_lo, double *m2,      # OUT
) noexcept nogil:
    """The moments of a run of any length, 1 at least; around 0 if not centred."""
    cdef double piece_mean, piece_mean_lo, piece_m2
    cdef Py_ssize_t done = min(<Py_ssize_t>PIECE, size), piece
    run_moments(x, 0, 1, done, centred, mean, mean_lo, m2)
    while done < size:
        piece = min(<Py_ssize_t>PIECE, size - done)
        run_moments(x + done, 0, 1, piece, centred, &piece_mean, &piece_mean_lo, &piece_m2)
        merge(done, mean, mean_lo, m2, piece, piece_mean, piece_mean_lo, piece_m2)
        done += piece


cdef loop collect_rows(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t row, size = facts.rows.size
    if facts.from_memory:
        cbnorm_prefetch(call.x + last * size, (last - first) * size * sizeof(call.x[0]))
    for row in range(first, last):
        row_moments(call.x + row * size, size, facts.centred, facts.mean + row, facts.mean_lo + row, facts.m2 + row)


# The gradient's sums

cdef inline void factor_rows_xhat(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t row, stride = facts.factor_stride
    factors = call.factors
    for row in range(first, last):
        split(facts.mean[row], facts.mean_lo[row], factors + MEAN_HI * stride, factors + MEAN_LO * stride)
        factors[SCALE * stride] = facts.inv_std[row]
        factors += 1


cdef inline void factor_rows_gradient(const Call *call, Py_ssize_t height) noexcept nogil:
    """What `factor_gradient` finds for channels, from row_sums."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t i, stride = facts.factor_stride
    cdef double one_by_size = facts.rows.one_by_size
    factors = call.factors
    for i in range(height):
        factors[SLOPE * stride + i] = factors[SCALE * stride + i] * facts.row_sums[MOST_STEP + i] * one_by_size
        factors[MEAN_DOUT * stride + i] = facts.row_sums[i] * one_by_size if facts.centred else 0


cdef void sum_layers_dxhat(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Into row_sums, of rows with a gamma for each number."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t i, start = first * facts.rows.size, parameter = first_parameter(facts, first)
    for i in range(last - first):
        sum_dxhat(call.dout + start, call.x + start, call.gamma + parameter, facts.rows.size,
                  call.factors + i, facts.factor_stride, facts.row_sums + i, facts.row_sums + MOST_STEP + i)
        start += facts.rows.size
        parameter = next_parameter(facts, parameter)


cdef loop add_layers_gradients(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Into partial, (2, channels): four rows at a time, if they have the same parameters."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t i = 0, start, height, parameter = first_parameter(facts, first)
    while i < last - first:
        height = min(last - first - i, <Py_ssize_t>4 if facts.groups == 1 else <Py_ssize_t>1)
        start = (first + i) * facts.rows.size
        add_row_gradients(call.dout + start, call.x + start, facts.rows.size, height, call.factors + i,
                          facts.factor_stride, facts.partial + parameter, facts.partial + facts.channels + parameter)
        i += height
        parameter = next_parameter(facts, parameter)


cdef loop collect_groups_gradients(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Into row_sums and partial, of rows with a gamma for each run: their sums are made of the runs' sums."""
    cdef const Facts *facts = &call.facts
    cdef double sums[2]
    cdef double sum_dxhat, sum_dxhat_xhat
    cdef Py_ssize_t i, run, start = first * facts.rows.size, parameter = first_parameter(facts, first)
    for i in range(last - first):
        sum_dxhat = sum_dxhat_xhat = 0
        for run in range(parameter, parameter + facts.rows.runs):
            sums[0] = 0
            sums[1] = 0
            add_run_gradients(
                call.dout + start, call.x + start, 0, 1, facts.inner, call.factors + i, facts.factor_stride, sums)
            sum_dxhat += call.gamma[run] * sums[0]
            sum_dxhat_xhat += call.gamma[run] * sums[1]
            if facts.collecting:
                facts.partial[run] += sums[0]
                facts.partial[facts.channels + run] += sums[1]
            start += facts.inner
        facts.row_sums[i] = sum_dxhat
        facts.row_sums[MOST_STEP + i] = sum_dxhat_xhat
        parameter = next_parameter(facts, parameter)


cdef inline void collect_rows_gradients(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The sums of rows of one chunk, and their factors."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t size = facts.rows.size
    factor_rows_xhat(call, first, last)
    if facts.inner > 1:
        collect_groups_gradients(call, first, last)
    else:
        if facts.from_memory:
            cbnorm_prefetch(call.dout + last * size, (last - first) * size * sizeof(call.x[0]))
            cbnorm_prefetch(call.x + last * size, (last - first) * size * sizeof(call.x[0]))
        if call.out != NULL:
            sum_layers_dxhat(call, first, last)
        if facts.collecting:
            add_layers_gradients(call, first, last)
    if call.out != NULL:
        look_at_sums(facts, facts.row_sums, last - first)
        look_at_sums(facts, facts.row_sums + MOST_STEP, last - first)
        factor_rows_gradient(call, last - first)


cdef inline void begin_row_chunk(Call *own, double *partial, Py_ssize_t chunk) noexcept nogil:
    """Let a thread's own call add to the sums of this chunk."""
    cdef Py_ssize_t size = 2 * own.facts.channels
    if own.facts.collecting:
        own.facts.partial = partial + chunk * size
        memset(own.facts.partial, 0, size * sizeof(double))


cdef void merge_parameter_gradients(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t chunk, kind
    cdef double *sums
    for kind in range(2):
        sums = facts.partial + kind * facts.channels + first
        for chunk in range(1, facts.rows.chunks):
            add_sums(sums, sums + 2 * chunk * facts.channels, last - first)


# The second pass

cdef loop normalize_layers(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own = call[0]     # so that no store to y makes the loop read its pointers again
    cdef Py_ssize_t i, size = own.facts.rows.size, start = first * size, parameter = first_parameter(&call.facts, first)
    for i in range(last - first):
        store_normalized_scaled(own.x + start, size, own.factors + i, own.facts.factor_stride, own.gamma + parameter,
                                own.beta + parameter, own.out + start, own.facts.store)
        start += size
        parameter = next_parameter(&call.facts, parameter)


cdef loop normalize_groups(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own = call[0]     # so that no store to y makes the loop read its pointers again
    cdef Py_ssize_t i, run, inner = own.facts.inner, stride = own.facts.factor_stride
    cdef Py_ssize_t start = first * own.facts.rows.size, parameter = first_parameter(&call.facts, first)
    for i in range(last - first):
        factors = own.factors + i
        for run in range(parameter, parameter + own.facts.rows.runs):
            store_normalized_run(own.x + start, inner, factors[MEAN_HI * stride], factors[MEAN_LO * stride],
                                 own.gamma[run] * factors[SCALE * stride], own.beta[run], own.out + start,
                                 own.facts.store)
            start += inner
        parameter = next_parameter(&call.facts, parameter)


cdef loop differentiate_layers(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own = call[0]     # so that no store to dx makes the loop read its pointers again
    cdef Py_ssize_t i, size = own.facts.rows.size, start = first * size, parameter = first_parameter(&call.facts, first)
    for i in range(last - first):
        store_gradient_scaled(own.dout + start, own.x + start, size, own.gamma + parameter, own.factors + i,
                              own.facts.factor_stride, own.out + start, own.facts.store)
        start += size
        parameter = next_parameter(&call.facts, parameter)


cdef loop differentiate_groups(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own = call[0]     # so that no store to dx makes the loop read its pointers again
    cdef Py_ssize_t i, run, inner = own.facts.inner
    cdef Py_ssize_t start = first * own.facts.rows.size, parameter = first_parameter(&call.facts, first)
    for i in range(last - first):
        for run in range(parameter, parameter + own.facts.rows.runs):
            store_gradient_run(own.dout + start, own.x + start, inner, own.factors + i, own.facts.factor_stride,
                               own.gamma[run], own.out + start, own.facts.store)
            start += inner
        parameter = next_parameter(&call.facts, parameter)


cdef inline void store_rows(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if call.facts.backward:
        if call.facts.inner == 1:
            differentiate_layers(call, first, last)
        else:
            differentiate_groups(call, first, last)
    elif call.facts.inner == 1:
        normalize_layers(call, first, last)
    else:
        normalize_groups(call, first, last)
