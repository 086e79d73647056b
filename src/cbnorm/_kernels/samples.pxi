# The walk where channels come last and each sample has statistics of its own: group and instance normalization of
# (samples, positions, channels).
#
# Design
# A. A sample is columns: its channels' moments and sums are found as those of a batch, with its geometry. They merge
#    over the channels of a group, in order: the same bits for any number of threads.
# B. A thread takes samples through all passes by itself; where there are fewer samples than threads, all take one
#    together.
# C. dgamma and dbeta add up over chunks of samples, by shape alone, and merge in order.
# D. With dxhat = dout·gamma and sums over the group's `size` numbers,
#        dx = (inv_std / size) (size·dxhat - xhat·Σ(dxhat·xhat) - Σ dxhat).

cdef enum:
    SAMPLE_SUMS = 6         # doubles a channel: mean, mean_lo, m2, inv_std, Σ dout, Σ dout·xhat


cdef Samples lay_samples(Py_ssize_t samples, Py_ssize_t positions) noexcept nogil:
    cdef Samples geometry
    geometry.count = samples
    geometry.workers = 1
    geometry.positions = positions
    geometry.chunk = (samples + MOST_CHUNKS - 1) // MOST_CHUNKS
    geometry.chunks = (samples + geometry.chunk - 1) // geometry.chunk
    return geometry


cdef Py_ssize_t sample_room(const Facts *facts) noexcept nogil:
    """Doubles of a worker: partial sums of a sample, and sums of its channels."""
    return columns_partial(&facts.columns, 2 if facts.backward else 3) + SAMPLE_SUMS * facts.channels


cdef Py_ssize_t samples_partial(const Facts *facts) noexcept nogil:
    """How many partial sums of parameter gradients there are, (chunks, 2, channels)."""
    return facts.samples.chunks * 2 * facts.channels if facts.backward else 0


cdef void see_sample(const Call *call, Call *own, Py_ssize_t sample, int worker) noexcept nogil:
    """Let a call see one sample, as columns, with a worker's partial sums and factors."""
    cdef Py_ssize_t start = sample * call.facts.samples.positions * call.facts.channels
    cdef Py_ssize_t channels = call.facts.channels
    cdef double *sums
    own[0] = call[0]
    own.x = place(call.x, start, call.facts.x_storage)
    own.dout = place(call.dout, start, call.facts.dout_storage)
    own.out = place_out(call.out, start, call.facts.out_storage)
    own.factors = call.factors + worker * SCALED_KINDS * call.facts.factor_stride
    own.facts.partial = call.facts.row_sums + worker * sample_room(&call.facts)
    sums = own.facts.partial + sample_room(&call.facts) - SAMPLE_SUMS * channels
    own.facts.mean = sums
    own.facts.mean_lo = sums + channels
    own.facts.m2 = sums + 2 * channels
    own.facts.inv_std = sums + 3 * channels
    own.facts.sum_dout = sums + 4 * channels
    own.facts.sum_dout_xhat = sums + 5 * channels


cdef void merge_groups_moments(const Facts *facts, const Facts *own, Py_ssize_t sample) noexcept nogil:
    """The moments of a sample's groups from those of its channels."""
    cdef Py_ssize_t group, channel, first, last, size = facts.channels // facts.groups
    cdef double positions = facts.samples.positions
    for group in range(facts.groups):
        first = group * size
        last = sample * facts.groups + group
        facts.mean[last] = own.mean[first]
        facts.mean_lo[last] = own.mean_lo[first]
        facts.m2[last] = own.m2[first]
        for channel in range(1, size):
            merge(channel * positions, facts.mean + last, facts.mean_lo + last, facts.m2 + last, positions,
                  own.mean[first + channel], own.mean_lo[first + channel], own.m2[first + channel])


cdef void factor_sample(const Call *call, const Call *own, Py_ssize_t sample, bint with_gamma) noexcept nogil:
    """mean_hi, mean_lo, and inv_std or what y is multiplied by, for each channel of a sample."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t group, channel, number, size = facts.channels // facts.groups, stride = facts.factor_stride
    factors = own.factors
    for group in range(facts.groups):
        number = sample * facts.groups + group
        for channel in range(group * size, (group + 1) * size):
            split(facts.mean[number], facts.mean_lo[number], factors + MEAN_HI * stride + channel,
                  factors + MEAN_LO * stride + channel)
            factors[SCALE * stride + channel] = (
                call.gamma[channel] * facts.inv_std[number] if with_gamma else facts.inv_std[number])


cdef void prepare_sample(const Call *call, const Call *own, Py_ssize_t sample) noexcept nogil:
    """The statistics of a sample's groups, from what was collected, and its factors."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t first = sample * facts.groups
    merge_columns_moments(&own.facts, 0, facts.channels)
    merge_groups_moments(facts, &own.facts, sample)
    use_moments(facts, first, first + facts.groups)
    look_again(call, first, first + facts.groups)
    if call.out != NULL:
        factor_sample(call, own, sample, True)
        copy_or_zero(call.beta, own.factors + SHIFT * facts.factor_stride, facts.channels)
        repeat_factors(own, Y_KINDS, 0, facts.channels)


cdef void prepare_sample_gradient(const Call *call, const Call *own, Py_ssize_t sample) noexcept nogil:
    """The sums of a sample's groups, from what was collected, and its factors."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t group, channel, number, channels = facts.channels, size = channels // facts.groups
    cdef Py_ssize_t stride = facts.factor_stride
    cdef double sum_dxhat, sum_dxhat_xhat, one_by_count = 1 / facts.count
    cdef double *total = facts.partial + sample // facts.samples.chunk * 2 * channels
    merge_columns_gradients(&own.facts, 0, channels)
    look_at_sums(facts, own.facts.sum_dout, 2 * channels)       # and the sums of dout·xhat behind them
    if sample % facts.samples.chunk == 0:
        memset(total, 0, 2 * channels * sizeof(double))
    add_sums(total, own.facts.sum_dout, channels)
    add_sums(total + channels, own.facts.sum_dout_xhat, channels)
    factors = own.factors
    for group in range(facts.groups):
        number = sample * facts.groups + group
        sum_dxhat = sum_dxhat_xhat = 0
        for channel in range(group * size, (group + 1) * size):
            sum_dxhat += call.gamma[channel] * own.facts.sum_dout[channel]
            sum_dxhat_xhat += call.gamma[channel] * own.facts.sum_dout_xhat[channel]
        for channel in range(group * size, (group + 1) * size):
            factors[SLOPE * stride + channel] = facts.inv_std[number] * sum_dxhat_xhat * one_by_count
            factors[MEAN_DOUT * stride + channel] = sum_dxhat * one_by_count
    memcpy(factors + GAMMA * stride, call.gamma, channels * sizeof(factors[0]))
    repeat_factors(own, SCALED_KINDS, 0, channels)


cdef void finish_samples(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """dgamma and dbeta of channels first to last - 1."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t chunk, channels = facts.channels
    cdef double *total = facts.partial
    cdef Call own = call[0]
    for chunk in range(1, facts.samples.chunks):
        add_sums(total + first, total + chunk * 2 * channels + first, last - first)
        add_sums(total + channels + first, total + (chunk * 2 + 1) * channels + first, last - first)
    own.facts.sum_dout = total
    own.facts.sum_dout_xhat = total + channels
    look_at_sums(facts, total + first, last - first)
    look_at_sums(facts, total + channels + first, last - first)
    finish_gradients(&own, first, last)
