# The walk over (outer, channels, inner): a channel is `outer` runs of `inner` neighbouring numbers.
#
# Design
# A. A channel is cut into parts of at most PIECE numbers: a number of whole runs, or a piece of a long one.
# B. A task is a chunk of a channel's parts, with sums of its own; chunks depend on the shape alone and
#    merge in order: the same bits for any number of threads.
# C. Where channels fit in cache and there are enough of them, a thread does all of some before the next, so
#    that the second pass reads from there. Else all channels pass together, in the order of memory.

cdef enum:
    CHUNK = 65536           # numbers of a task
    MOST_FUSED = 16         # channels, whose divisions and square roots are taken together


cdef Planes lay_planes(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept nogil:
    cdef Planes planes
    planes.size = outer * channels * inner
    planes.height = max(1, min(<Py_ssize_t>BLOCK, PIECE // inner))
    planes.pieces = (inner + PIECE - 1) // PIECE
    planes.parts = (outer + planes.height - 1) // planes.height * planes.pieces
    planes.chunk = max(1, CHUNK // (planes.height * min(<Py_ssize_t>PIECE, inner)))
    planes.chunks = (planes.parts + planes.chunk - 1) // planes.chunk
    return planes


cdef Py_ssize_t planes_partial(const Facts *facts, Py_ssize_t kinds) noexcept nogil:
    """How many partial sums there are, (channels, chunks, kinds)."""
    return facts.channels * facts.planes.chunks * kinds


cdef Py_ssize_t planes_step(const Facts *facts, size_t itemsize, int threads) noexcept nogil:
    """How many channels a thread takes through both passes at a time: as many as stay in its own cache, or one where
    that stays in the shared cache and the whole array does not; else 0. `itemsize` is that of all arrays read."""
    cdef Py_ssize_t size = facts.outer * facts.inner * itemsize
    if facts.channels < 2 * threads or facts.inner < LANES:
        return 0
    if 5 * size <= 4 * core_cache_bytes:
        return max(1, min(core_cache_bytes // (4 * size), min(facts.channels // threads, <Py_ssize_t>MOST_FUSED)))
    return facts.beyond_cache and size * threads <= cache_bytes // 2


cdef struct Part:
    Py_ssize_t start    # where its numbers begin
    Py_ssize_t height   # runs
    Py_ssize_t width    # numbers of each


cdef inline Part planes_part(const Facts *facts, Py_ssize_t channel, Py_ssize_t number) noexcept nogil:
    cdef const Planes *planes = &facts.planes
    cdef Part part
    cdef Py_ssize_t outer = number // planes.pieces * planes.height, inner = number % planes.pieces * PIECE
    part.height = min(planes.height, facts.outer - outer)
    part.width = min(<Py_ssize_t>PIECE, facts.inner - inner)
    part.start = (outer * facts.channels + channel) * facts.inner + inner
    return part


# Statistics

cdef inline void add_moments(double *sums, double count, double mean, double mean_lo, double m2) noexcept nogil:
    """sums: count, mean, mean_lo, m2; nothing yet where count is 0."""
    if sums[0] == 0:
        sums[1] = mean
        sums[2] = mean_lo
        sums[3] = m2
    else:
        merge(sums[0], sums + 1, sums + 2, sums + 3, count, mean, mean_lo, m2)
    sums[0] += count


cdef loop collect_plane_moments(const Call *call, Py_ssize_t channel, Py_ssize_t chunk) noexcept nogil:
    """The moments of a task: partial (channels, chunks, 4) count, mean, mean_lo, m2."""
    cdef const Planes *planes = &call.facts.planes
    cdef double mean, mean_lo, m2
    cdef double[PIECE] room
    cdef double *sums = call.facts.partial + (channel * planes.chunks + chunk) * 4
    cdef Py_ssize_t number, run_stride, stride = call.facts.channels * call.facts.inner
    cdef Part part
    sums[0] = 0
    for number in range(chunk * planes.chunk, min(planes.parts, (chunk + 1) * planes.chunk)):
        part = planes_part(&call.facts, channel, number)
        x = beginning(call.x, part.start)
        run_stride = stride
        if call.facts.x_storage != NATIVE:
            x = call.x
            gather(&x, part.start, stride, part.height, part.width, call.facts.x_storage, room)
            run_stride = part.width
        run_moments(x, run_stride, part.height, part.width, True, &mean, &mean_lo, &m2)
        add_moments(sums, part.height * part.width, mean, mean_lo, m2)


cdef void merge_planes_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    cdef double *sums
    cdef double *other
    for channel in range(first, last):
        sums = facts.partial + channel * facts.planes.chunks * 4
        for chunk in range(1, facts.planes.chunks):
            other = sums + chunk * 4
            add_moments(sums, other[0], other[1], other[2], other[3])
        facts.mean[channel] = sums[1]
        facts.mean_lo[channel] = sums[2]
        facts.m2[channel] = sums[3]


# The gradient's sums

cdef loop collect_plane_gradients(const Call *call, Py_ssize_t channel, Py_ssize_t chunk) noexcept nogil:
    """The sums of a task: partial (channels, chunks, 2) Σ dout, Σ dout·xhat."""
    cdef const Planes *planes = &call.facts.planes
    cdef double[PIECE] dout_room
    cdef double[PIECE] x_room
    cdef double *sums = call.facts.partial + (channel * planes.chunks + chunk) * 2
    cdef Py_ssize_t number, run_stride, stride = call.facts.channels * call.facts.inner
    cdef Part part
    sums[0] = 0
    sums[1] = 0
    for number in range(chunk * planes.chunk, min(planes.parts, (chunk + 1) * planes.chunk)):
        part = planes_part(&call.facts, channel, number)
        dout = beginning(call.dout, part.start)
        x = beginning(call.x, part.start)
        run_stride = stride
        if call.facts.stored:
            dout = call.dout
            x = call.x
            gather(&dout, part.start, stride, part.height, part.width, call.facts.dout_storage, dout_room)
            gather(&x, part.start, stride, part.height, part.width, call.facts.x_storage, x_room)
            run_stride = part.width
        add_run_gradients(dout, x, run_stride, part.height, part.width, call.factors + channel,
                          call.facts.factor_stride, sums)


cdef void merge_planes_gradients(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t channel, chunk, chunks = facts.planes.chunks
    cdef double *partial
    cdef double sum_dout, sum_dout_xhat
    for channel in range(first, last):
        sum_dout = sum_dout_xhat = 0
        partial = facts.partial + channel * chunks * 2
        for chunk in range(chunks):
            sum_dout += partial[2 * chunk]
            sum_dout_xhat += partial[2 * chunk + 1]
        facts.sum_dout[channel] = sum_dout
        facts.sum_dout_xhat[channel] = sum_dout_xhat


# The second pass

cdef void store_stored_span(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The second pass of numbers first to last - 1, which are widened, a passage at a time."""
    cdef Call own = call[0]
    cdef Passage rooms
    cdef Py_ssize_t size
    own.facts.stored = False
    while first < last:
        size = min(last - first, <Py_ssize_t>PASSAGE)
        see_passage(call, &own, &rooms, first, size)
        own.x = before(own.x, first)
        own.dout = before(own.dout, first)
        own.out -= first
        if call.facts.backward:
            differentiate_span(&own, first, first + size)
        else:
            normalize_span(&own, first, first + size)
        own.out += first
        keep_passage(call, &own, first, size)
        first += size


cdef loop normalize_span(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Call own = call[0]     # so that no store to y makes the loop read its pointers again
    cdef Py_ssize_t channels = own.facts.channels, stride = own.facts.factor_stride, inner = own.facts.inner
    cdef Py_ssize_t channel = first // inner % channels
    cdef Py_ssize_t size, left = inner - first % inner      # of the run
    if own.facts.stored:
        store_stored_span(call, first, last)
        return
    while first < last:
        size = min(left, last - first)
        factors = own.factors + channel
        store_normalized_run(own.x + first, size, factors[MEAN_HI * stride], factors[MEAN_LO * stride],
                             factors[SCALE * stride], factors[SHIFT * stride], own.out + first, own.facts.store)
        first += size
        left -= size
        if left == 0:
            left = inner
            channel = channel + 1 if channel + 1 < channels else 0


cdef loop differentiate_span(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Call own = call[0]     # so that no store to dx makes the loop read its pointers again
    cdef Py_ssize_t channels = own.facts.channels, stride = own.facts.factor_stride, inner = own.facts.inner
    cdef Py_ssize_t channel = first // inner % channels
    cdef Py_ssize_t size, left = inner - first % inner      # of the run
    if own.facts.stored:
        store_stored_span(call, first, last)
        return
    while first < last:
        size = min(left, last - first)
        store_gradient_run(own.dout + first, own.x + first, size, own.factors + channel, stride, 1,
                           own.out + first, own.facts.store)
        first += size
        left -= size
        if left == 0:
            left = inner
            channel = channel + 1 if channel + 1 < channels else 0


# What a thread does where all channels pass together, and with all of some channels, one pass after the other.

cdef inline void collect_plane(const Call *call, Py_ssize_t channel, Py_ssize_t chunk) noexcept nogil:
    if call.facts.backward:
        collect_plane_gradients(call, channel, chunk)
    elif call.facts.counts != NULL:
        collect_counted_plane(call, channel, chunk)
    else:
        collect_plane_moments(call, channel, chunk)


cdef inline void differentiate_planes(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if call.facts.weights != NULL:
        differentiate_counted_span(call, first, last)
    else:
        differentiate_span(call, first, last)


cdef void collect_planes(const Call *call, int thread, int threads) noexcept nogil:
    cdef Py_ssize_t task, channels = call.facts.channels, tasks = channels * call.facts.planes.chunks
    for task in range(share(tasks, thread, threads), share(tasks, thread + 1, threads)):
        collect_plane(call, task % channels, task // channels)


cdef void collect_channels(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    for channel in range(first, last):
        for chunk in range(call.facts.planes.chunks):
            collect_plane(call, channel, chunk)


cdef void store_channels(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t outer, inner = call.facts.inner, start
    for outer in range(call.facts.outer - 1, -1, -1):       # what was read last is still in the cache
        start = outer * call.facts.channels * inner
        if call.facts.backward:
            differentiate_planes(call, start + first * inner, start + last * inner)
        else:
            normalize_span(call, start + first * inner, start + last * inner)
