# The walk over (rows, channels): each column is a channel.
#
# Design
# A. Narrow rows stand side by side: `rows_per_line` of them are one line of `width` columns, so that one channel or
#    three fill the vector lanes too. Rows that do not fill a line are the tail.
# B. Lines are cut into chunks and columns into tiles, by shape alone. Each (chunk, tile) is a task with sums
#    of its own, and sums merge in the order of the chunks: the same bits for any number of threads.
# C. A thread takes the same tasks in the second pass as in the first, last one first: what it read last is
#    still in its cache. Neighbouring tiles make a strip then, which is written in the order of memory.
# D. The kinds of factors lie `factor_stride` numbers from each other, which is no multiple of 4096 bytes nor near one:
#    loads whose last 12 bits of the address are alike wait for each other's stores, and share a set of the cache.

from libc.string cimport memcpy, memset

cdef enum:
    FULL_CHUNK = 256    # lines; partial sums then take at most 2.5% of the memory of a float32 array
    LEAST_CHUNK = 64    # lines, where there are few: threads that share rows fight over the cache line between them
    ENOUGH_TASKS = 8
    PAGE = 1024         # numbers: at least the 4096 bytes after which a processor takes addresses to be alike
    SPREAD = 144        # numbers, BURST at least
    STRIP = 8           # most tiles side by side that the second pass goes through together, row by row


cdef Columns lay_columns(Py_ssize_t rows, Py_ssize_t channels) noexcept nogil:
    cdef Columns columns
    columns.rows_per_line = max(1, min(TILE // channels, rows // 16))
    columns.tail_rows = rows % columns.rows_per_line
    columns.tail = columns.tail_rows * channels
    columns.width = columns.rows_per_line * channels
    columns.height = rows // columns.rows_per_line
    columns.tiles = (columns.width + TILE - 1) // TILE
    columns.chunks = (columns.height + FULL_CHUNK - 1) // FULL_CHUNK
    if columns.tiles <= ENOUGH_TASKS:
        columns.chunks = max(columns.chunks, min(<Py_ssize_t>ENOUGH_TASKS, columns.height // LEAST_CHUNK))
    columns.chunks = min(<Py_ssize_t>MOST_CHUNKS, columns.chunks)
    columns.chunk = (columns.height + columns.chunks - 1) // columns.chunks
    columns.chunks = (columns.height + columns.chunk - 1) // columns.chunk
    columns.tasks = (columns.chunks + (columns.tail > 0)) * columns.tiles
    return columns


cdef Py_ssize_t columns_partial(const Columns *columns, Py_ssize_t kinds) noexcept nogil:
    """How many partial sums there are, (chunks, kinds, width)."""
    return (columns.chunks + 1) * kinds * columns.width


cdef Py_ssize_t columns_factor_stride(const Columns *columns) noexcept nogil:
    """Room for the factors of all columns and once more of the first BURST."""
    return (columns.width + PAGE - 1) // PAGE * PAGE + SPREAD


cdef struct Task:
    Py_ssize_t chunk
    Py_ssize_t left     # first column
    Py_ssize_t width    # columns; none are left for the tail's last tiles
    Py_ssize_t start    # where its numbers begin
    Py_ssize_t height   # lines
    Py_ssize_t runs     # of neighbouring numbers: one if it takes whole lines
    Py_ssize_t size     # of a run


cdef inline Task columns_task(const Columns *columns, Py_ssize_t number, Py_ssize_t tiles) noexcept nogil:
    """A task, or the tasks of `tiles` neighbouring tiles as one."""
    cdef Task task
    cdef Py_ssize_t top, right
    task.chunk = number // columns.tiles
    task.left = number % columns.tiles * TILE
    if task.chunk < columns.chunks:
        top = task.chunk * columns.chunk
        task.height = min(columns.chunk, columns.height - top)
        right = columns.width
    else:
        top = columns.height
        task.height = 1
        right = columns.tail
    task.start = top * columns.width + task.left
    task.width = max(0, min(tiles * TILE, right - task.left))
    task.runs = 1 if task.width == columns.width else task.height
    task.size = task.height * task.width // task.runs
    return task


cdef inline Task strip_before(const Columns *columns, Py_ssize_t first, Py_ssize_t *last) noexcept nogil:
    """The strip that ends the tasks first to last - 1, as one task; `last` becomes where it begins."""
    cdef Py_ssize_t begin = max(first, max(last[0] - STRIP, (last[0] - 1) // columns.tiles * columns.tiles))
    cdef Task strip = columns_task(columns, begin, last[0] - begin)
    last[0] = begin
    return strip


# Statistics

cdef loop collect_columns(const Call *call, int thread, int threads) noexcept nogil:
    """The moments of a thread's tasks: partial (chunks, 3, width) mean, mean_lo, m2."""
    cdef const Columns *columns = &call.facts.columns
    cdef double mean[TILE]
    cdef double mean_lo[TILE]
    cdef double m2[TILE]
    cdef double *sums
    cdef Py_ssize_t number, done, height, width = columns.width
    cdef bint from_memory = call.facts.from_memory
    cdef Storage storage = call.facts.x_storage
    cdef Task task
    for number in range(share(columns.tasks, thread, threads), share(columns.tasks, thread + 1, threads)):
        task = columns_task(columns, number, 1)
        if task.width == 0:
            continue
        sums = call.facts.partial + task.chunk * 3 * width + task.left
        height = min(<Py_ssize_t>BLOCK, task.height)
        column_moments(place(call.x, task.start, storage), width, height, task.width, sums, sums + width,
                       sums + 2 * width, from_memory, storage)
        done = height
        while done < task.height:
            height = min(<Py_ssize_t>BLOCK, task.height - done)
            column_moments(place(call.x, task.start + done * width, storage), width, height, task.width, mean, mean_lo,
                           m2, from_memory, storage)
            merge_columns(done, sums, sums + width, sums + 2 * width, height, mean, mean_lo, m2, task.width)
            done += height


cdef void merge_line_moments(
    const Columns *columns, double count, double *moments, double other_count, const double *other, Py_ssize_t size
) noexcept nogil:
    """Moments of neighbouring columns, each (3, width) mean, mean_lo, m2."""
    cdef Py_ssize_t width = columns.width
    merge_columns(count, moments, moments + width, moments + 2 * width,
                  other_count, other, other + width, other + 2 * width, size)


cdef void merge_columns_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The moments of channels first to last - 1: over the chunks, the tail, the rows of a line."""
    cdef const Columns *columns = &facts.columns
    cdef Py_ssize_t chunk, row, height, width = columns.width
    cdef Py_ssize_t size = (last if columns.rows_per_line == 1 else width) - first
    cdef double *moments = facts.partial + first
    for chunk in range(1, columns.chunks):
        height = min(columns.chunk, columns.height - chunk * columns.chunk)
        merge_line_moments(columns, chunk * columns.chunk, moments, height, moments + chunk * 3 * width, size)
    if columns.tail > 0:
        merge_line_moments(columns, columns.height, moments, 1, moments + columns.chunks * 3 * width, columns.tail)
    for row in range(1, columns.rows_per_line):
        merge_line_moments(columns, row * columns.height + min(row, columns.tail_rows), moments,
                           columns.height + (row < columns.tail_rows), moments + row * facts.channels, facts.channels)
    memcpy(facts.mean + first, moments, (last - first) * sizeof(double))
    memcpy(facts.mean_lo + first, moments + width, (last - first) * sizeof(double))
    memcpy(facts.m2 + first, moments + 2 * width, (last - first) * sizeof(double))


# The gradient's sums

cdef loop collect_columns_gradients(const Call *call, int thread, int threads) noexcept nogil:
    """The sums of a thread's tasks: partial (chunks, 2, width) Σ dout, Σ dout·xhat."""
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t number, width = columns.width, stride = call.facts.factor_stride
    cdef double *sums
    cdef Task task
    for number in range(share(columns.tasks, thread, threads), share(columns.tasks, thread + 1, threads)):
        task = columns_task(columns, number, 1)
        factors = call.factors + task.left
        sums = call.facts.partial + task.chunk * 2 * width + task.left
        memset(sums, 0, task.width * sizeof(double))
        memset(sums + width, 0, task.width * sizeof(double))
        if call.facts.stored:
            add_stored_gradients(call, &task, sums)
        else:
            add_gradients(call.dout + task.start, beginning(call.x, task.start), width, task.height, task.width,
                          factors + MEAN_HI * stride, factors + MEAN_LO * stride, factors + SCALE * stride,
                          sums, sums + width, call.facts.from_memory)


cdef loop add_stored_gradients(const Call *call, const Task *task, double *sums) noexcept nogil:
    """The same of lines that are widened, four at a time."""
    cdef double[FOUR_TILES] dout_room
    cdef double[FOUR_TILES + SPREAD] x_room     # (see D of the design)
    cdef Py_ssize_t line, height, width = call.facts.columns.width, stride = call.facts.factor_stride
    factors = call.factors + task.left
    for line in range(0, task.height, 4):
        height = min(4, task.height - line)
        dout = call.dout
        x = call.x
        gather(&dout, task.start + line * width, width, height, task.width, call.facts.dout_storage, dout_room)
        gather(&x, task.start + line * width, width, height, task.width, call.facts.x_storage, x_room + SPREAD)
        add_gradients(dout, x, task.width, height, task.width, factors + MEAN_HI * stride, factors + MEAN_LO * stride,
                      factors + SCALE * stride, sums, sums + width, False)


cdef void merge_columns_gradients(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The sums of channels first to last - 1: over the chunks, the tail, the rows of a line."""
    cdef const Columns *columns = &facts.columns
    cdef Py_ssize_t chunk, row, kind, width = columns.width
    cdef Py_ssize_t size = (last if columns.rows_per_line == 1 else width) - first
    cdef double *sums
    for kind in range(2):
        sums = facts.partial + kind * width + first
        for chunk in range(1, columns.chunks):
            add_sums(sums, sums + 2 * chunk * width, size)
        if columns.tail > 0:
            add_sums(sums, sums + 2 * columns.chunks * width, columns.tail)
        for row in range(1, columns.rows_per_line):
            add_sums(sums, sums + row * facts.channels, facts.channels)
        memcpy((facts.sum_dout if kind == 0 else facts.sum_dout_xhat) + first, sums, (last - first) * sizeof(double))


# The second pass

cdef void repeat_factors(const Call *call, Py_ssize_t kinds, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The rows of a line have the factors of their channels, as have the first columns once more after the last,
    where a burst goes over the end of a line."""
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t kind, row, start, channels = call.facts.channels
    cdef size_t itemsize = sizeof(call.factors[0])
    if columns.rows_per_line > 1:
        last = columns.width
    for kind in range(kinds):
        factors = call.factors + kind * call.facts.factor_stride
        for row in range(1, columns.rows_per_line):
            memcpy(factors + row * channels, factors, channels * itemsize)
        start = first
        while start < BURST:
            memcpy(factors + columns.width + start, factors + first, min(last - first, BURST - start) * itemsize)
            start += columns.width


cdef void see_passage(const Call *call, Call *own, Passage *rooms, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    """Let a call see some of its numbers, PASSAGE at most, widened, and write others there."""
    own.x = call.x
    own.dout = call.dout
    gather(&own.x, start, 0, 1, size, call.facts.x_storage, rooms.x)
    gather(&own.dout, start, 0, 1, size, call.facts.dout_storage, rooms.dout)
    own.out = call.out + start
    own.facts.store = DIRECT if call.facts.store == IN_PLACE else call.facts.store
    if call.facts.out_storage != NATIVE:
        place_factors(&own.out, rooms.out)
        own.facts.store = DIRECT


cdef void keep_passage(const Call *call, const Call *own, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    """Write what such a call wrote."""
    cdef Storage storage = call.facts.out_storage
    if storage != NATIVE:
        out = place_out(call.out, start, storage)
        narrow(own.out, out, storage, size, call.facts.store == STREAMED)


cdef loop store_stored_columns(const Call *call, int thread, int threads) noexcept nogil:
    """The second pass of columns that are widened: whole narrow lines of a strip, or a part of a wide one."""
    cdef Call own = call[0]
    cdef Passage rooms
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t row, start, done, size, left, lines, width = columns.width, stride = call.facts.factor_stride
    cdef Py_ssize_t first = share(columns.tasks, thread, threads), last = share(columns.tasks, thread + 1, threads)
    cdef Task strip
    while last > first:
        strip = strip_before(columns, first, &last)
        lines = PASSAGE // width * width if strip.runs == 1 else 0
        for row in range(strip.runs):
            done = 0
            while done < strip.size:
                left = done % width if lines == 0 else 0        # of the columns of the strip
                size = min(strip.size - done, lines if lines > 0 else min(<Py_ssize_t>PASSAGE, width - left))
                start = strip.start + row * width + done
                factors = call.factors + strip.left + left
                see_passage(call, &own, &rooms, start, size)
                if not call.facts.backward:
                    store_normalized_rows(own.x, size, width, factors, stride, own.out, own.facts.store)
                elif call.facts.walk == SAMPLES:
                    store_gradient_rows(own.dout, own.x, size, width, factors, stride, True, own.out, own.facts.store)
                else:
                    store_gradient_rows(own.dout, own.x, size, width, factors, stride, False, own.out, own.facts.store)
                keep_passage(call, &own, start, size)
                done += size


cdef loop normalize_columns(const Call *call, int thread, int threads) noexcept nogil:
    cdef Call own = call[0]     # so that no store to y makes the loop read its pointers again
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t row, start, width = columns.width
    cdef Py_ssize_t first = share(columns.tasks, thread, threads), last = share(columns.tasks, thread + 1, threads)
    cdef Task strip
    if own.facts.stored:
        store_stored_columns(call, thread, threads)
        return
    while last > first:
        strip = strip_before(columns, first, &last)
        for row in range(strip.runs):
            start = strip.start + row * width
            store_normalized_rows(own.x + start, strip.size, width, own.factors + strip.left, own.facts.factor_stride,
                                  own.out + start, own.facts.store)


cdef loop differentiate_columns(const Call *call, int thread, int threads) noexcept nogil:
    cdef Call own = call[0]     # so that no store to dx makes the loop read its pointers again
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t row, start, width = columns.width
    cdef Py_ssize_t first = share(columns.tasks, thread, threads), last = share(columns.tasks, thread + 1, threads)
    cdef Task strip
    if own.facts.stored:
        store_stored_columns(call, thread, threads)
        return
    while last > first:
        strip = strip_before(columns, first, &last)
        for row in range(strip.runs):
            start = strip.start + row * width
            if own.facts.walk == SAMPLES:
                store_gradient_rows(own.dout + start, own.x + start, strip.size, width, own.factors + strip.left,
                                    own.facts.factor_stride, True, own.out + start, own.facts.store)
            else:
                store_gradient_rows(own.dout + start, own.x + start, strip.size, width, own.factors + strip.left,
                                    own.facts.factor_stride, False, own.out + start, own.facts.store)
