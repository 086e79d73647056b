# The passes of a call over its array, and what happens between them: the only file that starts threads.
#
# Design
# A. Forward: collect the moments, prepare the factors, normalize. Backward: collect the gradient's sums, prepare,
#    differentiate. What is given is not collected, what is not wanted not written.
# B. Either all channels go through a pass together, with a barrier before the next; or each thread takes a few
#    channels, or rows, through all passes while they are in its cache (`step` of them), and needs no barrier.
# C. Where numbers lie, and how the work falls into tasks, the walks know: columns.pxi, planes.pxi, rows.pxi.

from cython.parallel cimport parallel, threadid


cdef inline Py_ssize_t first_channel(const Facts *facts, int thread, int threads) noexcept nogil:
    """Where the channels begin that a thread prepares between the passes."""
    if facts.walk == COLUMNS and facts.columns.rows_per_line > 1:   # few, and merged with their neighbours
        return 0 if thread == 0 else facts.channels
    return share(facts.channels, thread, threads)


cdef inline void store_step(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """y or dx of the rows or channels that a thread has in its cache, if it is wanted."""
    if call.out == NULL:
        return
    if call.facts.walk == ROWS:
        store_rows(call, first, last)
    else:
        store_channels(call, first, last)


# Forward

cdef void prepare_forward(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The statistics of channels or rows first to last - 1, from what was collected, and their factors."""
    cdef const Facts *facts = &call.facts
    cdef bint beyond = False
    if facts.collecting:
        if facts.counts != NULL:
            merge_counted_moments(facts, first, last)
        elif facts.walk == COLUMNS:
            merge_columns_moments(facts, first, last)
        elif facts.walk == PLANES:
            merge_planes_moments(facts, first, last)
    if facts.counts != NULL:
        use_counted_moments(facts, first, last)
    else:
        use_moments(facts, first, last)
    if facts.statistics_given:
        beyond = look_at_given(facts, first, last)
    else:
        beyond = look_again(call, first, last)
        if facts.walk != ROWS:
            update_averages(facts, first, last)
    if call.out == NULL:
        return
    if facts.walk == ROWS:
        factor_xhat(call, first, last, 0)
        return
    factor_y(call, first, last)
    if beyond and (facts.statistics_given or facts.store == IN_PLACE):
        keep_beyond(call, first, last)
    if facts.walk == COLUMNS:
        repeat_factors(call, Y_KINDS, first, last)


cdef void normalize_all(const Call *call, int thread, int threads) noexcept nogil:
    cdef Py_ssize_t size = call.facts.planes.size
    if call.facts.walk == COLUMNS:
        normalize_columns(call, thread, threads)
    else:
        normalize_span(call, share(size, thread, threads), share(size, thread + 1, threads))


cdef void forward_together(const Call *call, Team *team, int thread) noexcept nogil:
    cdef const Facts *facts = &call.facts
    cdef int threads = team_size(team)
    cdef Py_ssize_t first = first_channel(facts, thread, threads), last = first_channel(facts, thread + 1, threads)
    if facts.collecting:
        if facts.walk == PLANES:
            collect_planes(call, thread, threads)
        elif facts.counts != NULL:
            collect_counted_columns(call, thread, threads)
        else:
            collect_columns(call, thread, threads)
        barrier(team, thread)
    if first < last:
        prepare_forward(call, first, last)
    barrier(team, thread)
    if call.out != NULL:
        normalize_all(call, thread, threads)


cdef inline void forward_step(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if call.facts.walk == ROWS:
        collect_rows(call, first, last)
    else:
        collect_channels(call, first, last)
    prepare_forward(call, first, last)
    store_step(call, first, last)


cdef void forward_by_steps(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own
    cdef Py_ssize_t end
    while first < last:
        end = min(last, first + call.facts.step)
        if call.facts.row_room > 0:
            see_rows(call, &own, first, end)
            forward_step(&own, first, end)
            keep_rows(call, &own, first, end)
        else:
            forward_step(call, first, end)
        first = end


# Backward

cdef void prepare_backward(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The sums of channels first to last - 1, from what was collected, and their factors."""
    cdef const Facts *facts = &call.facts
    if facts.collecting:
        if facts.walk == COLUMNS:
            merge_columns_gradients(facts, first, last)
        else:
            merge_planes_gradients(facts, first, last)
        look_at_sums(facts, facts.sum_dout + first, last - first)
        look_at_sums(facts, facts.sum_dout_xhat + first, last - first)
        finish_gradients(call, first, last)
    if call.out == NULL:
        return
    factor_gradient(call, first, last)
    if facts.walk == COLUMNS:
        repeat_factors(call, DX_KINDS, first, last)


cdef void scale_all(const Call *call, int thread, int threads) noexcept nogil:
    """dx = dout·scale, which is the y of dout with a mean and beta of 0."""
    cdef Call scaled = call[0]
    scaled.x = call.dout
    scaled.facts.x_storage = call.facts.dout_storage
    scaled.dout = NULL
    scaled.facts.backward = False
    normalize_all(&scaled, thread, threads)


cdef void differentiate_all(const Call *call, int thread, int threads) noexcept nogil:
    cdef Py_ssize_t size = call.facts.planes.size
    if call.facts.statistics_given:
        scale_all(call, thread, threads)
    elif call.facts.walk == PLANES:
        differentiate_planes(call, share(size, thread, threads), share(size, thread + 1, threads))
    elif call.facts.weights != NULL:
        differentiate_counted_columns(call, thread, threads)
    else:
        differentiate_columns(call, thread, threads)


cdef void backward_together(const Call *call, Team *team, int thread) noexcept nogil:
    cdef const Facts *facts = &call.facts
    cdef int threads = team_size(team)
    cdef Py_ssize_t first = first_channel(facts, thread, threads), last = first_channel(facts, thread + 1, threads)
    if facts.collecting:
        if first < last:
            factor_xhat(call, first, last, first)
            if facts.walk == COLUMNS:
                repeat_factors(call, XHAT_KINDS, first, last)
        barrier(team, thread)
        if facts.walk == COLUMNS:
            collect_columns_gradients(call, thread, threads)
        else:
            collect_planes(call, thread, threads)
        barrier(team, thread)
    if first < last:
        prepare_backward(call, first, last)
    barrier(team, thread)
    if call.out != NULL:
        differentiate_all(call, thread, threads)


cdef inline void backward_step(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if call.facts.walk == ROWS:
        collect_rows_gradients(call, first, last)
    else:
        factor_xhat(call, first, last, first)
        collect_channels(call, first, last)
        prepare_backward(call, first, last)
    store_step(call, first, last)


cdef void backward_by_steps(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Call own
    cdef Py_ssize_t end
    while first < last:
        end = min(last, first + call.facts.step)
        if call.facts.row_room > 0:
            see_rows(call, &own, first, end)
            backward_step(&own, first, end)
            keep_rows(call, &own, first, end)
        else:
            backward_step(call, first, end)
        first = end


cdef void backward_by_chunks(Call *own, Team *team, int thread) noexcept nogil:
    """Rows, whose parameter gradients add up over chunks of them and merge at the end."""
    cdef Facts *facts = &own.facts
    cdef double *partial = facts.partial
    cdef int threads = team_size(team)
    cdef Py_ssize_t chunk, first, end
    for chunk in range(share(facts.rows.chunks, thread, threads), share(facts.rows.chunks, thread + 1, threads)):
        first = chunk * facts.rows.chunk
        begin_row_chunk(own, partial, chunk)
        backward_by_steps(own, first, min(facts.sets, first + facts.rows.chunk))
    if facts.collecting:
        facts.partial = partial
        barrier(team, thread)
        first = share(facts.channels, thread, threads)
        end = share(facts.channels, thread + 1, threads)
        merge_parameter_gradients(facts, first, end)
        look_at_sums(facts, facts.sum_dout + first, end - first)
        look_at_sums(facts, facts.sum_dout_xhat + first, end - first)
        finish_gradients(own, first, end)


# Both

cdef void run_by_steps(const Call *call, Team *team, int thread) noexcept nogil:
    cdef Call own = call[0]     # where rows keep their sums and factors is each thread's own
    cdef Py_ssize_t first = share(call.facts.sets, thread, team_size(team))
    cdef Py_ssize_t last = share(call.facts.sets, thread + 1, team_size(team))
    if call.facts.walk == ROWS:
        take_row_room(&own, thread)
    if not call.facts.backward:
        forward_by_steps(&own, first, last)
    elif call.facts.walk == ROWS:
        backward_by_chunks(&own, team, thread)
    else:
        backward_by_steps(&own, first, last)


# Samples

cdef void forward_sample(const Call *call, Py_ssize_t sample, int worker, Team *team, int thread) noexcept nogil:
    """A sample through all passes: by all threads of a team, or by a thread alone, of a team of one."""
    cdef Call own
    see_sample(call, &own, sample, worker)
    collect_columns(&own, thread, team_size(team))
    barrier(team, thread)
    if thread == 0:
        prepare_sample(call, &own, sample)
    barrier(team, thread)
    if call.out != NULL:
        normalize_columns(&own, thread, team_size(team))


cdef void backward_sample(const Call *call, Py_ssize_t sample, int worker, Team *team, int thread) noexcept nogil:
    cdef Call own
    see_sample(call, &own, sample, worker)
    if thread == 0:
        factor_sample(call, &own, sample, False)
        repeat_factors(&own, XHAT_KINDS, 0, call.facts.channels)
    barrier(team, thread)
    collect_columns_gradients(&own, thread, team_size(team))
    barrier(team, thread)
    if thread == 0:
        prepare_sample_gradient(call, &own, sample)
    barrier(team, thread)
    if call.out != NULL:
        differentiate_columns(&own, thread, team_size(team))
    barrier(team, thread)           # before the factors are those of the next sample


cdef void run_samples(const Call *call, Team *team, int thread) noexcept nogil:
    cdef const Samples *samples = &call.facts.samples
    cdef int threads = team_size(team)
    cdef bint alone = samples.workers > 1
    cdef Team one = new_team(1)
    cdef Team *with_others = team
    cdef Py_ssize_t sample, first = 0, last = samples.count
    if alone:                       # chunks of samples
        with_others = &one
        first = share(samples.chunks, thread, threads) * samples.chunk
        last = min(samples.count, share(samples.chunks, thread + 1, threads) * samples.chunk)
    for sample in range(first, last):
        if call.facts.backward:
            backward_sample(call, sample, thread if alone else 0, with_others, 0 if alone else thread)
        else:
            forward_sample(call, sample, thread if alone else 0, with_others, 0 if alone else thread)
    if call.facts.backward:
        barrier(team, thread)
        finish_samples(call, share(call.facts.channels, thread, threads),
                       share(call.facts.channels, thread + 1, threads))


cdef void run_share(const Call *call, Team *team, int thread) noexcept nogil:
    if call.facts.walk == SAMPLES:
        run_samples(call, team, thread)
    elif call.facts.step > 0:
        run_by_steps(call, team, thread)
    elif call.facts.backward:
        backward_together(call, team, thread)
    else:
        forward_together(call, team, thread)
    end_stores(call.facts.store)


cdef void launch(const Call *call, Team *team) noexcept nogil:
    if team.threads > 1:
        team.threads = threads_there(team.threads)
    if team.threads == 1:       # even a region of one thread costs a microsecond
        run_share(call, team, 0)
        return
    with parallel(num_threads=team.threads):
        enter_team(team, threadid())
        run_share(call, team, threadid())
        leave_team(team, threadid())
