# The arithmetic done once a channel or row, between the passes over the array: sums of parts, inv_std, running
# averages, and the factors that the second pass multiplies by. What takes a call works on its channels or rows first
# to last - 1.

from libc.math cimport sqrt
from libc.string cimport memcpy, memset


cdef void update_average(
    double *restrict average, const double *restrict batch, double divisor, double momentum, Py_ssize_t size
) noexcept nogil:
    """momentum·average + (1 - momentum)·batch / divisor; what has a weight of 0 is not read: it may be NaN."""
    cdef Py_ssize_t c
    cdef double weight = (1 - momentum) / divisor
    if momentum == 0:
        for c in range(size):
            average[c] = weight * batch[c]
    elif momentum < 1:
        for c in range(size):
            average[c] = momentum * average[c] + weight * batch[c]


cdef loop add_sums(double *restrict total, const double *restrict other, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(size):
        total[c] += other[c]


cdef inline double inverse_std(double var, double eps) noexcept nogil:
    """1 / sqrt(var + eps); 0 where var + eps is 0, so that y is beta there."""
    return 0 if var + eps == 0 else 1 / sqrt(var + eps)


cdef void find_inv_std(
    const double *restrict m2, double count, double eps, double *restrict inv_std, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t c
    cdef double one_by_count = 1 / count
    for c in range(size):
        inv_std[c] = inverse_std(m2[c] * one_by_count, eps)


cdef void use_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """inv_std from m2. Running averages are the statistics themselves where these are given."""
    cdef const Moving *moving = &facts.moving
    cdef Py_ssize_t size = last - first
    if facts.statistics_given and moving.mean != NULL:      # the variance is m2, with a count of 1
        memcpy(facts.mean + first, moving.mean + first, size * sizeof(double))
        memset(facts.mean_lo + first, 0, size * sizeof(double))
        memcpy(facts.m2 + first, moving.var + first, size * sizeof(double))
    find_inv_std(facts.m2 + first, facts.count, facts.eps, facts.inv_std + first, size)


cdef void update_averages(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Running averages take the batch in."""
    cdef const Moving *moving = &facts.moving
    cdef Py_ssize_t size = last - first
    if facts.count == 0:        # weights of 0 alone
        return
    if moving.mean != NULL:
        update_average(moving.mean + first, facts.mean + first, 1, moving.momentum, size)
    if moving.var != NULL:
        update_average(moving.var + first, facts.m2 + first, facts.count - moving.ddof, moving.momentum, size)


cdef inline void split(double mean, double mean_lo, floating *hi, floating *lo) noexcept nogil:
    """mean + mean_lo = hi + lo, in the array's dtype."""
    hi[0] = <floating>mean
    lo[0] = <floating>((mean - hi[0]) + mean_lo)


cdef void split_means(
    const double *restrict mean, const double *restrict mean_lo,
    floating *restrict hi, floating *restrict lo, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(size):
        split(mean[c], mean_lo[c], hi + c, lo + c)


cdef void find_scale(
    const double *restrict inv_std, const floating *restrict gamma, floating *restrict scale, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(size):
        scale[c] = <floating>(inv_std[c] if gamma == NULL else gamma[c] * inv_std[c])


cdef void scale_sums(
    const double *restrict sums, const double *restrict scale, double one_by_count, floating *restrict scaled,
    Py_ssize_t size,
) noexcept nogil:
    """sums / M, times `scale` unless that is NULL."""
    cdef Py_ssize_t c
    for c in range(size):
        scaled[c] = <floating>((sums[c] if scale == NULL else sums[c] * scale[c]) * one_by_count)


cdef void round_sums(const double *restrict sums, floating *restrict rounded, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(size):
        rounded[c] = <floating>sums[c]


cdef void copy_or_zero(const floating *values, floating *restrict copy, Py_ssize_t size) noexcept nogil:
    if values == NULL:
        memset(copy, 0, size * sizeof(floating))
    else:
        memcpy(copy, values, size * sizeof(floating))


# Factors of a kind from number `place` on: of channels their own number, of rows 0 on.

cdef void factor_xhat(const Call *call, Py_ssize_t first, Py_ssize_t last, Py_ssize_t place) noexcept nogil:
    """For xhat = ((x - mean_hi) - mean_lo)·scale."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t stride = facts.factor_stride
    factors = call.factors + place
    no_gamma = call.gamma       # has the type of the array then, which NULL alone has not
    no_gamma = NULL
    split_means(facts.mean + first, facts.mean_lo + first, factors + MEAN_HI * stride, factors + MEAN_LO * stride,
                last - first)
    find_scale(facts.inv_std + first, no_gamma, factors + SCALE * stride, last - first)


cdef void factor_y(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """For y = ((x - mean_hi) - mean_lo)·scale + shift."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t stride = facts.factor_stride
    factors = call.factors + first
    split_means(facts.mean + first, facts.mean_lo + first, factors + MEAN_HI * stride, factors + MEAN_LO * stride,
                last - first)
    find_scale(facts.inv_std + first, beginning(call.gamma, first), factors + SCALE * stride, last - first)
    copy_or_zero(beginning(call.beta, first), factors + SHIFT * stride, last - first)


cdef void factor_gradient(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """For dx = ((dout - (x - mean)·slope) - mean_dout)·scale; for dx = dout·scale, as of y, with given statistics."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t size = last - first, stride = facts.factor_stride
    cdef double one_by_count = 1 / facts.count
    factors = call.factors + first
    find_scale(facts.inv_std + first, beginning(call.gamma, first), factors + SCALE * stride, size)
    if facts.statistics_given:
        memset(factors + MEAN_HI * stride, 0, size * sizeof(factors[0]))
        memset(factors + MEAN_LO * stride, 0, size * sizeof(factors[0]))
        memset(factors + SHIFT * stride, 0, size * sizeof(factors[0]))
        return
    split_means(facts.mean + first, facts.mean_lo + first, factors + MEAN_HI * stride, factors + MEAN_LO * stride, size)
    scale_sums(facts.sum_dout_xhat + first, facts.inv_std + first, one_by_count, factors + SLOPE * stride, size)
    scale_sums(facts.sum_dout + first, NULL, one_by_count, factors + MEAN_DOUT * stride, size)


cdef void finish_gradients(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """dgamma and dbeta from the sums, where they are wanted."""
    if call.dgamma != NULL:
        round_sums(call.facts.sum_dout_xhat + first, call.dgamma + first, last - first)
    if call.dbeta != NULL:
        round_sums(call.facts.sum_dout + first, call.dbeta + first, last - first)
