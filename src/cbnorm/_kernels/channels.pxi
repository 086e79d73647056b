# The arithmetic done once a channel, between the passes over the array: running averages, inv_std, and the
# numbers that the second pass multiplies by. Every function works on channels first to last - 1.

from libc.math cimport sqrt
from libc.string cimport memcpy, memset


cdef struct Channels:       # what a call knows of its channels; each pointer has one number a channel
    Py_ssize_t channels
    double count            # M, values a channel
    double eps
    double *mean
    double *mean_lo
    double *m2              # NULL where the statistics were given
    double *inv_std


cdef Channels see_channels(
    double *statistics, Py_ssize_t channels, double count, double eps, bint given
) noexcept nogil:
    """The rows of `statistics`, (4, channels): mean, mean_lo, m2, inv_std."""
    cdef Channels seen
    seen.channels = channels
    seen.count = count
    seen.eps = eps
    seen.mean = statistics
    seen.mean_lo = statistics + channels
    seen.m2 = NULL if given else statistics + 2 * channels
    seen.inv_std = statistics + 3 * channels
    return seen


cdef struct Moving:         # the running averages; the pointers may be NULL
    double momentum
    double ddof
    double *mean            # (channels)
    double *var


cdef void update_average(
    double *restrict average, const double *restrict batch, double divisor, double momentum, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t c
    cdef double weight = (1 - momentum) / divisor
    for c in range(size):
        average[c] = momentum * average[c] + weight * batch[c]


cdef inline double inverse_std(double var, double eps) noexcept nogil:
    """1 / sqrt(var + eps); 0 where var + eps is 0, so that y is beta there."""
    return 0 if var + eps == 0 else 1 / sqrt(var + eps)


cdef void find_inv_std(
    const double *restrict square, double divisor, double eps, double *restrict inv_std, Py_ssize_t size
) noexcept nogil:
    """With var = square / divisor."""
    cdef Py_ssize_t c
    cdef double one_by_divisor = 1 / divisor
    for c in range(size):
        inv_std[c] = inverse_std(square[c] * one_by_divisor, eps)


cdef void use_batch(const Channels *channels, const Moving *moving, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """inv_std from the batch, which also enters the running averages."""
    cdef Py_ssize_t size = last - first
    find_inv_std(channels.m2 + first, channels.count, channels.eps, channels.inv_std + first, size)
    if moving.mean != NULL:
        update_average(moving.mean + first, channels.mean + first, 1, moving.momentum, size)
    if moving.var != NULL:
        update_average(moving.var + first, channels.m2 + first, channels.count - moving.ddof, moving.momentum, size)


cdef void use_given(const Channels *channels, const Moving *moving, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Test mode: the running averages stand for the statistics; without them, these are there already."""
    cdef Py_ssize_t size = last - first
    if moving.mean != NULL:
        memcpy(channels.mean + first, moving.mean + first, size * sizeof(double))
        memset(channels.mean_lo + first, 0, size * sizeof(double))
        find_inv_std(moving.var + first, 1, channels.eps, channels.inv_std + first, size)


cdef inline void split(double mean, double mean_lo, floating *hi, floating *lo) noexcept nogil:
    """mean + mean_lo = hi + lo, in the array's dtype."""
    hi[0] = <floating>mean
    lo[0] = <floating>((mean - hi[0]) + mean_lo)


cdef void split_mean(
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


cdef void prepare_normalize(
    const Channels *channels, const floating *gamma, const floating *beta,
    floating *factors,          # OUT (4, width): mean_hi, mean_lo, scale, shift
    Py_ssize_t width, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t c, size = last - first
    split_mean(channels.mean + first, channels.mean_lo + first, factors + first, factors + width + first, size)
    find_scale(channels.inv_std + first, offset(gamma, first), factors + 2 * width + first, size)
    for c in range(first, last):
        factors[3 * width + c] = 0 if beta == NULL else beta[c]


cdef void prepare_xhat(
    const Channels *channels,
    floating *factors,          # OUT (3, width): mean_hi, mean_lo, inv_std
    Py_ssize_t width, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t size = last - first
    split_mean(channels.mean + first, channels.mean_lo + first, factors + first, factors + width + first, size)
    find_scale(channels.inv_std + first, <const floating *>NULL, factors + 2 * width + first, size)


cdef void finish_gradients(
    const double *restrict total,       # IN (channels) Σ dout
    const double *restrict product,     # IN (channels) Σ dout·xhat
    floating *restrict dgamma,          # OUT (channels), or NULL
    floating *restrict dbeta,           # OUT (channels), or NULL
    Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    cdef Py_ssize_t c
    if dgamma != NULL:
        for c in range(first, last):
            dgamma[c] = <floating>product[c]
    if dbeta != NULL:
        for c in range(first, last):
            dbeta[c] = <floating>total[c]


cdef void prepare_gradient(
    const Channels *channels, const floating *gamma,
    const double *restrict total,       # IN (channels) Σ dout
    const double *restrict product,     # IN (channels) Σ dout·xhat
    floating *restrict factors,         # OUT (5, width): mean_hi, mean_lo, scale, slope, offset
    Py_ssize_t width, Py_ssize_t first, Py_ssize_t last,
) noexcept nogil:
    """With given statistics dx = dout·scale: all else is 0, and slope stands where `shift` would."""
    cdef Py_ssize_t c, size = last - first
    cdef double one_by_count = 1 / channels.count
    find_scale(channels.inv_std + first, offset(gamma, first), factors + 2 * width + first, size)
    if channels.m2 == NULL:
        memset(factors + first, 0, size * sizeof(floating))
        memset(factors + width + first, 0, size * sizeof(floating))
        memset(factors + 3 * width + first, 0, size * sizeof(floating))
        return
    split_mean(channels.mean + first, channels.mean_lo + first, factors + first, factors + width + first, size)
    for c in range(first, last):
        factors[3 * width + c] = <floating>(product[c] * channels.inv_std[c] * one_by_count)
        factors[4 * width + c] = <floating>(total[c] * one_by_count)
