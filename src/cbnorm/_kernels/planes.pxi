# The walk over (outer, channels, inner): a channel is `outer` runs of `inner` neighbouring numbers.
#
# Design
# A. A channel is cut into parts of at most PIECE numbers: a number of whole runs, or a piece of a long one.
# B. A task is a chunk of a channel's parts, with sums of its own; chunks depend on the shape alone and
#    merge in order: the same bits for any number of threads.
# C. Where channels fit in cache and there are enough of them, a thread does all of some before the next, so
#    that the second pass reads from there. Else all channels pass together, in the order of memory.

from cython.parallel cimport parallel, threadid

cdef enum:
    CHUNK = 65536           # numbers of a task
    MOST_FUSED = 16         # channels, whose divisions and square roots are taken together


cdef struct Planes:
    Py_ssize_t outer
    Py_ssize_t channels
    Py_ssize_t inner
    Py_ssize_t size             # numbers in all
    Py_ssize_t height           # whole runs of a part, where they are short
    Py_ssize_t pieces           # of a run
    Py_ssize_t parts            # of a channel
    Py_ssize_t chunk            # parts of a task
    Py_ssize_t chunks           # of a channel


cdef Planes lay_planes(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept nogil:
    cdef Planes lay
    lay.outer = outer
    lay.channels = channels
    lay.inner = inner
    lay.size = outer * channels * inner
    lay.height = max(1, min(<Py_ssize_t>BLOCK, PIECE // inner))
    lay.pieces = (inner + PIECE - 1) // PIECE
    lay.parts = (outer + lay.height - 1) // lay.height * lay.pieces
    lay.chunk = max(1, CHUNK // (lay.height * min(<Py_ssize_t>PIECE, inner)))
    lay.chunks = (lay.parts + lay.chunk - 1) // lay.chunk
    return lay


cdef struct Part:
    Py_ssize_t start    # where its numbers begin
    Py_ssize_t height   # runs
    Py_ssize_t width    # numbers of each


cdef inline Part planes_part(const Planes *lay, Py_ssize_t channel, Py_ssize_t number) noexcept nogil:
    cdef Part part
    cdef Py_ssize_t outer = number // lay.pieces * lay.height, inner = number % lay.pieces * PIECE
    part.height = min(lay.height, lay.outer - outer)
    part.width = min(<Py_ssize_t>PIECE, lay.inner - inner)
    part.start = (outer * lay.channels + channel) * lay.inner + inner
    return part


# Forward

cdef void collect_plane_moments(
    const floating *x, const Planes *lay, Py_ssize_t channel, Py_ssize_t chunk,
    double *partial,            # OUT (channels, chunks, 4): count, mean, mean_lo, m2
) noexcept nogil:
    cdef double mean, mean_lo, m2
    cdef double *sums = partial + (channel * lay.chunks + chunk) * 4
    cdef Py_ssize_t number
    cdef Part part
    sums[0] = 0
    for number in range(chunk * lay.chunk, min(lay.parts, (chunk + 1) * lay.chunk)):
        part = planes_part(lay, channel, number)
        run_moments(x + part.start, lay.channels * lay.inner, part.height, part.width, True, &mean, &mean_lo, &m2)
        add_moments(sums, part.height * part.width, mean, mean_lo, m2)


cdef inline void add_moments(double *sums, double count, double mean, double mean_lo, double m2) noexcept nogil:
    """sums: count, mean, mean_lo, m2; nothing yet where count is 0."""
    if sums[0] == 0:
        sums[1] = mean
        sums[2] = mean_lo
        sums[3] = m2
    else:
        merge(sums[0], sums + 1, sums + 2, sums + 3, count, mean, mean_lo, m2)
    sums[0] += count


cdef void prepare_planes_forward(
    const Planes *lay, const Channels *channels, const Moving *moving, const floating *gamma, const floating *beta,
    double *partial, floating *factors, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    cdef double *sums
    cdef double *other
    if channels.m2 == NULL:
        use_given(channels, moving, first, last)
    else:
        for channel in range(first, last):
            sums = partial + channel * lay.chunks * 4
            for chunk in range(1, lay.chunks):
                other = sums + chunk * 4
                add_moments(sums, other[0], other[1], other[2], other[3])
            channels.mean[channel] = sums[1]
            channels.mean_lo[channel] = sums[2]
            channels.m2[channel] = sums[3]
        use_batch(channels, moving, first, last)
    if factors != NULL:
        prepare_normalize(channels, gamma, beta, factors, lay.channels, first, last)


cdef void normalize_span(
    const floating *x, floating *y, const Planes *lay, const floating *factors,
    Py_ssize_t first, Py_ssize_t last, Store store,
) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Py_ssize_t channels = lay.channels, channel = first // lay.inner % channels
    cdef Py_ssize_t size, left = lay.inner - first % lay.inner      # of the run
    while first < last:
        size = min(left, last - first)
        store_normalized_run(x + first, size, factors[channel], factors[channels + channel],
                             factors[2 * channels + channel], factors[3 * channels + channel], y + first, store)
        first += size
        left -= size
        if left == 0:
            left = lay.inner
            channel = channel + 1 if channel + 1 < channels else 0


# A thread's part of each pass over all channels, and of all passes over its channels.

cdef void collect_planes(
    const floating *x, const Planes *lay, double *partial, int thread, int threads
) noexcept nogil:
    cdef Py_ssize_t task, tasks = lay.channels * lay.chunks
    for task in range(share(tasks, thread, threads), share(tasks, thread + 1, threads)):
        collect_plane_moments(x, lay, task % lay.channels, task // lay.channels, partial)


cdef void forward_fused(
    const floating *x, floating *y, const Planes *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta, double *partial, floating *factors, Store store, Py_ssize_t fused,
    int thread, int threads,
) noexcept nogil:
    cdef Py_ssize_t channel, end, chunk, outer, start
    cdef Py_ssize_t first = share(lay.channels, thread, threads), last = share(lay.channels, thread + 1, threads)
    while first < last:
        end = min(last, first + fused)
        for channel in range(first, end):
            for chunk in range(lay.chunks):
                collect_plane_moments(x, lay, channel, chunk, partial)
        prepare_planes_forward(lay, channels, moving, gamma, beta, partial, factors, first, end)
        for outer in range(lay.outer - 1, -1, -1):
            start = outer * lay.channels * lay.inner
            normalize_span(x, y, lay, factors, start + first * lay.inner, start + end * lay.inner, store)
        first = end
    end_stores(store)


cdef inline Py_ssize_t fused_channels(const Planes *lay, size_t itemsize, bint streamed, int threads) noexcept nogil:
    """How many channels a thread takes through both passes at a time: as many as stay in its own cache, or one where
    that stays in the shared cache and the whole array does not; else 0. `itemsize` is that of all arrays read."""
    cdef Py_ssize_t size = lay.outer * lay.inner * itemsize
    if lay.channels < 2 * threads or lay.inner < LANES:
        return 0
    if 5 * size <= 4 * core_cache_bytes:
        return max(1, min(core_cache_bytes // (4 * size), min(lay.channels // threads, <Py_ssize_t>MOST_FUSED)))
    return streamed and size * threads <= cache_bytes // 2


cdef void planes_forward_share(
    const floating *x, floating *y, const Planes *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta, double *partial, floating *factors, bint streamed, Py_ssize_t fused,
    Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    cdef Store store = store_for(y, x, streamed)
    if fused > 0:
        forward_fused(x, y, lay, channels, moving, gamma, beta, partial, factors, store, fused, thread, threads)
        return
    if channels.m2 != NULL:
        collect_planes(x, lay, partial, thread, threads)
        barrier(team, thread)
    prepare_planes_forward(lay, channels, moving, gamma, beta, partial, factors,
                           share(lay.channels, thread, threads), share(lay.channels, thread + 1, threads))
    barrier(team, thread)
    if y != NULL:
        normalize_span(x, y, lay, factors, share(lay.size, thread, threads), share(lay.size, thread + 1, threads),
                       store)
        end_stores(store)


cdef void planes_forward(
    const floating *x,          # IN (outer, channels, inner)
    floating *y,                # OUT (outer, channels, inner); may be x; NULL: only the statistics are wanted
    const Planes *lay, const Channels *channels, const Moving *moving,
    const floating *gamma, const floating *beta,
    double *partial, floating *factors, bint streamed, Team *team,
) noexcept nogil:
    cdef Py_ssize_t fused = 0
    if channels.m2 != NULL and y != NULL:
        fused = fused_channels(lay, sizeof(floating), streamed, team.threads)
    if team.threads == 1:
        planes_forward_share(x, y, lay, channels, moving, gamma, beta, partial, factors, streamed, fused, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        planes_forward_share(x, y, lay, channels, moving, gamma, beta, partial, factors, streamed, fused,
                             team, threadid())
        leave_team(team, threadid())


# Backward

cdef void collect_plane_gradients(
    const floating *dout, const floating *x, const Planes *lay, const floating *factors,
    Py_ssize_t channel, Py_ssize_t chunk,
    double *partial,            # OUT (channels, chunks, 2): Σ dout, Σ dout·xhat
) noexcept nogil:
    cdef double *sums = partial + (channel * lay.chunks + chunk) * 2
    cdef floating mean_hi = factors[channel], mean_lo = factors[lay.channels + channel]
    cdef floating inv_std = factors[2 * lay.channels + channel]
    cdef Py_ssize_t number
    cdef Part part
    sums[0] = 0
    sums[1] = 0
    for number in range(chunk * lay.chunk, min(lay.parts, (chunk + 1) * lay.chunk)):
        part = planes_part(lay, channel, number)
        add_run_gradients(dout + part.start, offset(x, part.start), lay.channels * lay.inner, part.height, part.width,
                          mean_hi, mean_lo, inv_std, sums, sums + 1)


cdef void prepare_planes_backward(
    const Planes *lay, const Channels *channels, const floating *gamma, floating *dgamma, floating *dbeta,
    double *partial,            # (channels, chunks, 2), then the channels' own sums, (2, channels)
    floating *factors, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    cdef double *total = partial + lay.channels * lay.chunks * 2
    cdef double *product = total + lay.channels
    if partial != NULL:
        for channel in range(first, last):
            total[channel] = 0
            product[channel] = 0
            for chunk in range(channel * lay.chunks, (channel + 1) * lay.chunks):
                total[channel] += partial[2 * chunk]
                product[channel] += partial[2 * chunk + 1]
        finish_gradients(total, product, dgamma, dbeta, first, last)
    prepare_gradient(channels, gamma, total, product, factors, lay.channels, first, last)


cdef void differentiate_span(
    const floating *dout, const floating *x, floating *dx, const Planes *lay, const floating *factors,
    Py_ssize_t first, Py_ssize_t last, Store store,
) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Py_ssize_t channels = lay.channels, channel = first // lay.inner % channels
    cdef Py_ssize_t size, left = lay.inner - first % lay.inner      # of the run
    while first < last:
        size = min(left, last - first)
        store_gradient_run(dout + first, x + first, size, factors[channel], factors[channels + channel], 1,
                           factors[2 * channels + channel], factors[3 * channels + channel],
                           factors[4 * channels + channel], dx + first, store)
        first += size
        left -= size
        if left == 0:
            left = lay.inner
            channel = channel + 1 if channel + 1 < channels else 0


# A thread's part of each pass over all channels, and of all passes over its channels.

cdef void collect_planes_gradients(
    const floating *dout, const floating *x, const Planes *lay, const floating *factors, double *partial,
    int thread, int threads,
) noexcept nogil:
    cdef Py_ssize_t task, tasks = lay.channels * lay.chunks
    for task in range(share(tasks, thread, threads), share(tasks, thread + 1, threads)):
        collect_plane_gradients(dout, x, lay, factors, task % lay.channels, task // lay.channels, partial)


cdef void backward_fused(
    const floating *dout, const floating *x, floating *dx, const Planes *lay, const Channels *channels,
    const floating *gamma, floating *dgamma, floating *dbeta, double *partial, floating *factors,
    Store store, Py_ssize_t fused, int thread, int threads,
) noexcept nogil:
    cdef Py_ssize_t channel, end, chunk, outer, start
    cdef Py_ssize_t first = share(lay.channels, thread, threads), last = share(lay.channels, thread + 1, threads)
    while first < last:
        end = min(last, first + fused)
        prepare_xhat(channels, factors, lay.channels, first, end)
        for channel in range(first, end):
            for chunk in range(lay.chunks):
                collect_plane_gradients(dout, x, lay, factors, channel, chunk, partial)
        prepare_planes_backward(lay, channels, gamma, dgamma, dbeta, partial, factors, first, end)
        for outer in range(lay.outer - 1, -1, -1):
            start = outer * lay.channels * lay.inner
            differentiate_span(dout, x, dx, lay, factors, start + first * lay.inner, start + end * lay.inner, store)
        first = end
    end_stores(store)


cdef void planes_backward_share(
    const floating *dout, const floating *x, floating *dx, const Planes *lay, const Channels *channels,
    const floating *gamma, floating *dgamma, floating *dbeta, double *partial, floating *factors,
    bint streamed, Py_ssize_t fused, Team *team, int thread,
) noexcept nogil:
    cdef int threads = team.threads
    cdef Store store = store_for(dx, dout, streamed)
    cdef Py_ssize_t first = share(lay.channels, thread, threads), last = share(lay.channels, thread + 1, threads)
    if fused > 0:
        backward_fused(dout, x, dx, lay, channels, gamma, dgamma, dbeta, partial, factors, store, fused,
                       thread, threads)
        return
    if partial != NULL:
        prepare_xhat(channels, factors, lay.channels, first, last)
        barrier(team, thread)
        collect_planes_gradients(dout, x, lay, factors, partial, thread, threads)
        barrier(team, thread)
    prepare_planes_backward(lay, channels, gamma, dgamma, dbeta, partial, factors, first, last)
    barrier(team, thread)
    if dx == NULL:
        return
    first = share(lay.size, thread, threads)
    last = share(lay.size, thread + 1, threads)
    if channels.m2 != NULL:
        differentiate_span(dout, x, dx, lay, factors, first, last, store)
    else:
        normalize_span(dout, dx, lay, factors, first, last, store)
    end_stores(store)


cdef void planes_backward(
    const floating *dout,       # IN (outer, channels, inner)
    const floating *x,          # IN (outer, channels, inner); NULL: dgamma is not wanted
    floating *dx,               # OUT (outer, channels, inner); may be dout; NULL: not wanted
    const Planes *lay, const Channels *channels, const floating *gamma, floating *dgamma, floating *dbeta,
    double *partial,            # NULL: no sums are wanted
    floating *factors, bint streamed, Team *team,
) noexcept nogil:
    cdef Py_ssize_t fused = 0
    if channels.m2 != NULL and dx != NULL:
        fused = fused_channels(lay, 2 * sizeof(floating), streamed, team.threads)
    if team.threads == 1:
        planes_backward_share(dout, x, dx, lay, channels, gamma, dgamma, dbeta, partial, factors, streamed, fused,
                              team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        planes_backward_share(dout, x, dx, lay, channels, gamma, dgamma, dbeta, partial, factors, streamed, fused,
                              team, threadid())
        leave_team(team, threadid())
