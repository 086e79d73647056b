# The walk over (rows, channels): each column is a channel.
#
# Design
# A. Narrow rows are folded: `fold` rows side by side make one row of `width` = fold * channels columns, so
#    that one channel or three fill the vector lanes too. Rows that do not fill a folded row are its tail.
# B. Rows are cut into chunks and columns into tiles, by shape alone. Each (chunk, tile) is a task with sums
#    of its own, and sums merge in the order of the chunks: the same bits for any number of threads.
# C. A thread takes the same tasks in the second pass as in the first, last one first: what it read last is
#    still in its cache. Neighbouring tiles make a strip then, which is written in the order of memory.
# D. The factors of a column lie `apart` numbers from each other, which is no multiple of 4096 bytes nor near one:
#    loads whose last 12 bits of the address are alike wait for each other's stores, and share a set of the cache.

from cython.parallel cimport parallel, threadid
from libc.string cimport memcpy, memset

cdef enum:
    FULL_CHUNK = 256    # rows; partial sums then take at most 2.5% of the memory of a float32 array
    LEAST_CHUNK = 64    # rows, where there are few: threads that share rows fight over the cache line between them
    MOST_CHUNKS = 64
    ENOUGH_TASKS = 8
    PAGE = 1024         # numbers: at least the 4096 bytes after which a processor takes addresses to be alike
    SPREAD = 144        # numbers, BURST at least
    STRIP = 8           # most tiles side by side that the second pass goes through together, row by row


cdef struct Columns:
    Py_ssize_t channels
    Py_ssize_t fold
    Py_ssize_t longer   # how many of the folded columns of a channel have one value more, in the tail
    Py_ssize_t width    # columns of the folded array
    Py_ssize_t apart    # numbers from one kind of factors to the next
    Py_ssize_t height   # its whole rows
    Py_ssize_t tail     # numbers after them
    Py_ssize_t chunk    # rows of a chunk
    Py_ssize_t chunks   # of whole rows; the tail is one more
    Py_ssize_t tiles
    Py_ssize_t tasks
    bint far            # more than half of the last cache: read from memory


cdef Columns lay_columns(Py_ssize_t rows, Py_ssize_t channels, size_t itemsize) noexcept nogil:
    """`itemsize` is that of all arrays which are read."""
    cdef Columns lay
    lay.channels = channels
    lay.fold = max(1, min(TILE // channels, rows // 16))
    lay.longer = rows % lay.fold
    lay.width = lay.fold * channels
    lay.apart = (lay.width + PAGE - 1) // PAGE * PAGE + SPREAD
    lay.height = rows // lay.fold
    lay.tail = lay.longer * channels
    lay.tiles = (lay.width + TILE - 1) // TILE
    lay.chunks = (lay.height + FULL_CHUNK - 1) // FULL_CHUNK
    if lay.tiles <= ENOUGH_TASKS:
        lay.chunks = max(lay.chunks, min(<Py_ssize_t>ENOUGH_TASKS, lay.height // LEAST_CHUNK))
    lay.chunks = min(<Py_ssize_t>MOST_CHUNKS, lay.chunks)
    lay.chunk = (lay.height + lay.chunks - 1) // lay.chunks
    lay.chunks = (lay.height + lay.chunk - 1) // lay.chunk
    lay.tasks = (lay.chunks + (lay.tail > 0)) * lay.tiles
    lay.far = rows * channels * <Py_ssize_t>itemsize > cache_bytes // 2
    return lay


cdef struct Task:
    Py_ssize_t chunk
    Py_ssize_t left     # first column
    Py_ssize_t width    # columns; none are left for the tail's last tiles
    Py_ssize_t start    # where its numbers begin
    Py_ssize_t height   # rows
    Py_ssize_t runs     # of neighbouring numbers: one if it takes whole rows
    Py_ssize_t size     # of a run


cdef inline Task columns_task(const Columns *lay, Py_ssize_t number, Py_ssize_t tiles) noexcept nogil:
    """A task, or the tasks of `tiles` neighbouring tiles as one."""
    cdef Task task
    cdef Py_ssize_t top, right
    task.chunk = number // lay.tiles
    task.left = number % lay.tiles * TILE
    if task.chunk < lay.chunks:
        top = task.chunk * lay.chunk
        task.height = min(lay.chunk, lay.height - top)
        right = lay.width
    else:
        top = lay.height
        task.height = 1
        right = lay.tail
    task.start = top * lay.width + task.left
    task.width = max(0, min(tiles * TILE, right - task.left))
    task.runs = 1 if task.width == lay.width else task.height
    task.size = task.height * task.width // task.runs
    return task


cdef inline Py_ssize_t strip_before(const Columns *lay, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Of the tasks first to last - 1, where the strip begins that ends them."""
    return max(first, max(last - STRIP, (last - 1) // lay.tiles * lay.tiles))


# Forward

cdef void collect_columns(
    const floating *x, const Columns *lay, int thread, int threads,
    double *partial,            # OUT (chunks, 3, width): mean, mean_lo, m2
) noexcept nogil:
    cdef double mean[TILE]
    cdef double mean_lo[TILE]
    cdef double m2[TILE]
    cdef double *sums
    cdef Py_ssize_t number, done, height, width = lay.width
    cdef Task task
    for number in range(share(lay.tasks, thread, threads), share(lay.tasks, thread + 1, threads)):
        task = columns_task(lay, number, 1)
        if task.width == 0:
            continue
        sums = partial + task.chunk * 3 * width + task.left
        height = min(<Py_ssize_t>BLOCK, task.height)
        column_moments(x + task.start, width, height, task.width, sums, sums + width, sums + 2 * width,
                       lay.far)
        done = height
        while done < task.height:
            height = min(<Py_ssize_t>BLOCK, task.height - done)
            column_moments(x + task.start + done * width, width, height, task.width, mean, mean_lo, m2,
                           lay.far)
            merge_columns(done, sums, sums + width, sums + 2 * width, height, mean, mean_lo, m2, task.width)
            done += height


cdef void merge_partial_moments(
    const Columns *lay, double *partial, const Channels *channels, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """The moments of channels first to last - 1: over the chunks, the tail, the folded columns."""
    cdef Py_ssize_t chunk, width = lay.width, right = last if lay.fold == 1 else width, fold
    cdef double *mean = partial + first
    cdef double *other
    for chunk in range(1, lay.chunks + (lay.tail > 0)):
        other = partial + chunk * 3 * width + first
        if chunk == lay.chunks:
            merge_columns(lay.height, mean, mean + width, mean + 2 * width,
                          1, other, other + width, other + 2 * width, lay.tail)
        else:
            merge_columns(chunk * lay.chunk, mean, mean + width, mean + 2 * width,
                          min(lay.chunk, lay.height - chunk * lay.chunk), other, other + width, other + 2 * width,
                          right - first)
    for fold in range(1, lay.fold):
        other = partial + fold * lay.channels
        merge_columns(fold * lay.height + min(fold, lay.longer), partial, partial + width, partial + 2 * width,
                      lay.height + (fold < lay.longer), other, other + width, other + 2 * width, lay.channels)
    memcpy(channels.mean + first, mean, (last - first) * sizeof(double))
    memcpy(channels.mean_lo + first, mean + width, (last - first) * sizeof(double))
    memcpy(channels.m2 + first, mean + 2 * width, (last - first) * sizeof(double))


cdef void repeat_factors(
    const Columns *lay, floating *factors, int kinds, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    """Folded columns have the factors of their channel, as have the first columns once more after the last,
    where a burst goes over the end of a row."""
    cdef Py_ssize_t kind, fold, start
    cdef floating *row
    if lay.fold > 1:
        last = lay.width
    for kind in range(kinds):
        row = factors + kind * lay.apart
        for fold in range(1, lay.fold):
            memcpy(row + fold * lay.channels, row, lay.channels * sizeof(floating))
        start = first
        while start < BURST:
            memcpy(row + lay.width + start, row + first, min(last - first, BURST - start) * sizeof(floating))
            start += lay.width


cdef void prepare_columns_forward(
    const Columns *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta, double *partial, floating *factors, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    if channels.m2 == NULL:
        use_given(channels, moving, first, last)
    else:
        merge_partial_moments(lay, partial, channels, first, last)
        use_batch(channels, moving, first, last)
    if factors != NULL:
        prepare_normalize(channels, gamma, beta, factors, lay.apart, first, last)
        repeat_factors(lay, factors, 4, first, last)


cdef void normalize_columns(
    const floating *x, floating *y, const Columns *lay, const floating *factors, bint streamed,
    int thread, int threads,
) noexcept nogil:
    cdef Store store = store_for(y, x, streamed)
    cdef Py_ssize_t begin, row, start, width = lay.width, apart = lay.apart
    cdef Py_ssize_t first = share(lay.tasks, thread, threads), last = share(lay.tasks, thread + 1, threads)
    cdef const floating *mean_hi
    cdef Task task
    while last > first:
        begin = strip_before(lay, first, last)
        task = columns_task(lay, begin, last - begin)
        last = begin
        mean_hi = factors + task.left
        for row in range(task.runs):
            start = task.start + row * width
            store_normalized_rows(x + start, task.size, width, mean_hi, mean_hi + apart, mean_hi + 2 * apart,
                                  mean_hi + 3 * apart, y + start, store)
    end_stores(store)


cdef inline Py_ssize_t first_channel(const Columns *lay, int thread, int threads) noexcept nogil:
    """Where a thread's channels begin between the passes: one thread does all where they are folded."""
    if lay.fold > 1:
        return 0 if thread == 0 else lay.channels
    return share(lay.channels, thread, threads)


cdef void columns_forward_share(
    const floating *x, floating *y, const Columns *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta, double *partial, floating *factors, bint streamed,
    Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    cdef Py_ssize_t first = first_channel(lay, thread, threads), last = first_channel(lay, thread + 1, threads)
    if channels.m2 != NULL:
        collect_columns(x, lay, thread, threads, partial)
        barrier(team, thread)
    if first < last:
        prepare_columns_forward(lay, channels, moving, gamma, beta, partial, factors, first, last)
    barrier(team, thread)
    if y != NULL:
        normalize_columns(x, y, lay, factors, streamed, thread, threads)


cdef void columns_forward(
    const floating *x,          # IN (rows, channels)
    floating *y,                # OUT (rows, channels); may be x; NULL: only the statistics are wanted
    const Columns *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta,
    double *partial, floating *factors, bint streamed, Team *team,
) noexcept nogil:
    if team.threads == 1:
        columns_forward_share(x, y, lay, channels, moving, gamma, beta, partial, factors, streamed, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        columns_forward_share(x, y, lay, channels, moving, gamma, beta, partial, factors, streamed,
                              team, threadid())
        leave_team(team, threadid())


# Backward

cdef void collect_columns_gradients(
    const floating *dout, const floating *x, const Columns *lay, const floating *factors, int thread, int threads,
    double *partial,            # OUT (chunks, 2, width): Σ dout, Σ dout·xhat
) noexcept nogil:
    cdef double *sums
    cdef Py_ssize_t number, width = lay.width, apart = lay.apart
    cdef const floating *mean_hi
    cdef Task task
    for number in range(share(lay.tasks, thread, threads), share(lay.tasks, thread + 1, threads)):
        task = columns_task(lay, number, 1)
        mean_hi = factors + task.left
        sums = partial + task.chunk * 2 * width + task.left
        memset(sums, 0, task.width * sizeof(double))
        memset(sums + width, 0, task.width * sizeof(double))
        add_gradients(dout + task.start, offset(x, task.start), width, task.height, task.width,
                      mean_hi, mean_hi + apart, mean_hi + 2 * apart, sums, sums + width, lay.far)


cdef void add_columns(double *restrict total, const double *restrict other, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        total[j] += other[j]


cdef void prepare_columns_backward(
    const Columns *lay, const Channels *channels, const floating *gamma, floating *dgamma, floating *dbeta,
    double *partial, floating *factors, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t chunk, fold, kind, right, width = lay.width
    if partial != NULL:
        for kind in range(2):
            for chunk in range(1, lay.chunks + (lay.tail > 0)):
                right = lay.tail if chunk == lay.chunks else last if lay.fold == 1 else width
                add_columns(partial + kind * width + first, partial + (2 * chunk + kind) * width + first, right - first)
            for fold in range(1, lay.fold):
                add_columns(partial + kind * width, partial + kind * width + fold * lay.channels, lay.channels)
        finish_gradients(partial, partial + width, dgamma, dbeta, first, last)
    prepare_gradient(channels, gamma, partial, partial + width, factors, lay.apart, first, last)
    repeat_factors(lay, factors, 5, first, last)


cdef void differentiate_columns(
    const floating *dout, const floating *x, floating *dx, const Columns *lay, const floating *factors,
    bint streamed, int thread, int threads,
) noexcept nogil:
    cdef Store store = store_for(dx, dout, streamed)
    cdef Py_ssize_t begin, row, start, width = lay.width, apart = lay.apart
    cdef Py_ssize_t first = share(lay.tasks, thread, threads), last = share(lay.tasks, thread + 1, threads)
    cdef const floating *mean_hi
    cdef Task task
    while last > first:
        begin = strip_before(lay, first, last)
        task = columns_task(lay, begin, last - begin)
        last = begin
        mean_hi = factors + task.left
        for row in range(task.runs):
            start = task.start + row * width
            store_gradient_rows(
                dout + start, x + start, task.size, width, mean_hi, mean_hi + apart, mean_hi + 2 * apart,
                mean_hi + 3 * apart, mean_hi + 4 * apart, dx + start, store)
    end_stores(store)


cdef void columns_backward_share(
    const floating *dout, const floating *x, floating *dx, const Columns *lay, const Channels *channels,
    const floating *gamma, floating *dgamma, floating *dbeta, double *partial, floating *factors, bint streamed,
    Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    cdef Py_ssize_t first = first_channel(lay, thread, threads), last = first_channel(lay, thread + 1, threads)
    if partial != NULL:
        if first < last:
            prepare_xhat(channels, factors, lay.apart, first, last)
            repeat_factors(lay, factors, 3, first, last)
        barrier(team, thread)
        collect_columns_gradients(dout, x, lay, factors, thread, threads, partial)
        barrier(team, thread)
    if first < last:
        prepare_columns_backward(lay, channels, gamma, dgamma, dbeta, partial, factors, first, last)
    barrier(team, thread)
    if dx == NULL:
        return
    if channels.m2 != NULL:
        differentiate_columns(dout, x, dx, lay, factors, streamed, thread, threads)
    else:
        normalize_columns(dout, dx, lay, factors, streamed, thread, threads)


cdef void columns_backward(
    const floating *dout,       # IN (rows, channels)
    const floating *x,          # IN (rows, channels); NULL: dgamma is not wanted
    floating *dx,               # OUT (rows, channels); may be dout; NULL: not wanted
    const Columns *lay, const Channels *channels, const floating *gamma, floating *dgamma, floating *dbeta,
    double *partial,            # NULL: no sums are wanted
    floating *factors, bint streamed, Team *team,
) noexcept nogil:
    if team.threads == 1:
        columns_backward_share(dout, x, dx, lay, channels, gamma, dgamma, dbeta, partial, factors, streamed, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        columns_backward_share(dout, x, dx, lay, channels, gamma, dgamma, dbeta, partial, factors, streamed,
                               team, threadid())
        leave_team(team, threadid())
