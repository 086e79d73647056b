# The second look at sets whose statistics float64's squares do not hold: |x - mean| beyond 1e154 or below 1e-154, and
# at those with NaN or infinities, whose mean would depend on where these stand.
#
# Design
# A. Which sets they are, m2 tells, one comparison each. They alone are read again, scaled by a power of two.
# B. Of values all finite, mean and inv_std come out right, and m2 as far as float64 holds it: infinite, or 0, if not.
# C. The mean of values with infinities of one sign is that infinity; of both, or with NaN, it is NaN. m2 is NaN.
# D. Where eps is not tiny, squares that vanish change nothing.
# E. An array's dtype does not hold the factors of some sets, nor x - mean, where it holds y: `beyond` says that there
#    are such, and the caller computes them elsewhere (_beyond.py). Where y may be in the place of x, such channels keep
#    their x. The same where sums of dout are not finite.

from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX
from libc.math cimport INFINITY, NAN, fabs, ilogb, isfinite, scalbn, sqrt

cdef extern from *:
    """
    #ifdef __GNUC__
    static inline void cbnorm_note(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
    #else
    static inline void cbnorm_note(int *flag) { *flag = 1; }
    #endif
    """
    void note "cbnorm_note"(bint *flag) nogil      # several threads may


cdef enum:
    MOST_MEAN = 103     # 2^103 is less than half the distance of FLT_MAX to its neighbour: x - mean fits for any x
    MOST_MEAN_OF_DOUBLES = 969      # and of DBL_MAX
    MOST_INV_STD = 118  # leaves room for gamma
    MOST_INV_STD_OF_DOUBLES = 900   # and for the gradient's sums
    MOST_STD_OF_DOUBLES = 1020      # times the square root of the count: then x - mean may not fit
    MOST_EXPONENT = 1024


cdef struct Set:                # of numbers that share their statistics
    Py_ssize_t start
    Py_ssize_t runs
    Py_ssize_t size             # of a run
    Py_ssize_t stride           # from run to run
    Storage storage
    const double *weights       # (runs, size), or NULL: 1
    bint omit                   # NaN does not count
    double count                # of all together
    double degrees              # what m2 is divided by


cdef Set numbers_of(const Facts *facts, Py_ssize_t number) noexcept nogil:
    cdef Set numbers
    numbers.storage = facts.x_storage
    numbers.weights = facts.weights
    numbers.omit = facts.omit
    if facts.walk == SAMPLES:
        numbers.size = facts.channels // facts.groups
        numbers.runs = facts.samples.positions
        numbers.stride = facts.channels
        numbers.start = (
            number // facts.groups * numbers.runs * facts.channels + number % facts.groups * numbers.size)
    elif facts.walk == ROWS:
        numbers.start = number * facts.rows.size
        numbers.runs = 1
        numbers.size = numbers.stride = facts.rows.size
    else:
        numbers.start = number * facts.inner
        numbers.runs = facts.outer
        numbers.size = facts.inner
        numbers.stride = facts.channels * facts.inner
    numbers.count = <double>numbers.runs * numbers.size
    numbers.degrees = facts.count
    if facts.counts != NULL:
        numbers.count = facts.counts[number]
        numbers.degrees = numbers.count - facts.ddof
    return numbers


cdef inline double count_of(const Set *numbers, Py_ssize_t run, Py_ssize_t i, double value) noexcept nogil:
    return what_counts(1.0 if numbers.weights == NULL else numbers.weights[run * numbers.size + i], value, numbers.omit)


cdef bint find_range(const floating *x, const Set *numbers, double *lowest, double *highest) noexcept nogil:
    """The range of a set; True if NaN is in it."""
    cdef Py_ssize_t run, i
    cdef bint nan = False
    cdef const floating *values
    cdef double value
    cdef floating low = <floating>INFINITY, high = -<floating>INFINITY
    for run in range(numbers.runs):
        values = x + run * numbers.stride
        if numbers.weights == NULL and not numbers.omit and numbers.storage == NATIVE:
            for i in range(numbers.size):
                nan |= values[i] != values[i]
                low = values[i] if values[i] < low else low
                high = values[i] if values[i] > high else high
            continue
        for i in range(numbers.size):
            value = number_at(x, run * numbers.stride + i, numbers.storage)
            if count_of(numbers, run, i, value) > 0:
                nan |= value != value
                low = min(low, <floating>value)
                high = max(high, <floating>value)
    lowest[0] = low
    highest[0] = high
    return nan


cdef double add_scaled(
    const floating *x, const Set *numbers, double pivot, int exponent, double mean, bint squared
) noexcept nogil:
    """Σ d, or Σ d², of d = (x - pivot)·2^-exponent - mean; what each addition loses is added at the end."""
    cdef Py_ssize_t run, i
    cdef double total = 0, lost = 0, sum_so_far, d, counts, value
    for run in range(numbers.runs):
        for i in range(numbers.size):
            value = number_at(x, run * numbers.stride + i, numbers.storage)
            counts = count_of(numbers, run, i, value)
            if counts == 0:
                continue
            d = scalbn(value - pivot, -exponent) - mean
            if squared:
                d *= d
            d *= counts
            sum_so_far = total
            total += d
            lost += two_sum_error(sum_so_far, d, total)
    return total + lost


cdef void scale_moments(
    const floating *x, const Facts *facts, Py_ssize_t number, double lowest, double highest
) noexcept nogil:
    """Of values all finite, and not all equal."""
    cdef Set numbers = numbers_of(facts, number)
    cdef double spread = highest - lowest if facts.centred else max(fabs(lowest), fabs(highest))
    cdef double pivot = 0, shift = 0, step, squares, eps
    cdef int exponent = ilogb(spread) if isfinite(spread) else MOST_EXPONENT
    if facts.centred:
        pivot = lowest + spread / 2 if isfinite(spread) else lowest / 2 + highest / 2
        shift = add_scaled(x, &numbers, pivot, exponent, 0, False) / numbers.count
        step = scalbn(shift, exponent)
        facts.mean[number] = pivot + step
        facts.mean_lo[number] = two_sum_error(pivot, step, facts.mean[number])
    squares = add_scaled(x, &numbers, pivot, exponent, shift, True)
    facts.m2[number] = scalbn(squares, 2 * exponent)
    eps = scalbn(facts.eps, -2 * exponent)
    if eps <= DBL_MAX and numbers.degrees > 0:      # else the variance is nothing beside it
        facts.inv_std[number] = scalbn(inverse_std(squares / numbers.degrees, eps), -exponent)


cdef void look_again_at(const floating *x, const Facts *facts, Py_ssize_t number) noexcept nogil:
    cdef Set numbers = numbers_of(facts, number)
    cdef double lowest, highest
    cdef bint nan
    if numbers.count == 0:
        return
    nan = find_range(place(x, numbers.start, facts.x_storage), &numbers, &lowest, &highest)
    if nan or not isfinite(lowest) or not isfinite(highest):
        if facts.centred:
            facts.mean[number] = NAN if nan else lowest + highest       # of both signs: NaN
            facts.mean_lo[number] = 0
            facts.m2[number] = facts.inv_std[number] = NAN
    elif lowest != highest or not facts.centred and lowest != 0:
        scale_moments(place(x, numbers.start, facts.x_storage), facts, number, lowest, highest)


cdef void set_limits(Facts *facts, bint is_float) noexcept nogil:
    """Of m2: outside them a set is looked at again."""
    cdef double least = 1e-71 if is_float else DBL_MIN              # of a variance that 1 / std fits
    facts.least_m2 = 0 if facts.eps > least * 1e17 else least * facts.count
    facts.most_m2 = <double>FLT_MAX * FLT_MAX if is_float else DBL_MAX      # from there on x - mean may not fit
    facts.most_mean = scalbn(1, MOST_MEAN if is_float else MOST_MEAN_OF_DOUBLES)
    facts.most_inv_std = scalbn(1, MOST_INV_STD if is_float else MOST_INV_STD_OF_DOUBLES)
    facts.least_inv_std = 0 if is_float else scalbn(sqrt(facts.count), -MOST_STD_OF_DOUBLES)


cdef inline bint is_beyond(const Facts *facts, Py_ssize_t number) noexcept nogil:
    """Whether the array's dtype does not hold 1 / std, or x - mean of any x; NaN and infinities it holds."""
    cdef double mean = facts.mean[number], m2 = facts.m2[number], inv_std = facts.inv_std[number]
    if facts.statistics_given:
        return (fabs(mean) > facts.most_mean) & (fabs(mean) <= DBL_MAX) | (inv_std > facts.most_inv_std)
    return (
        (inv_std > facts.most_inv_std) | (m2 >= facts.most_m2) & (m2 <= DBL_MAX)
        | (inv_std > 0) & (inv_std < facts.least_inv_std))


cdef bint look_again_at_odd(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef const Facts *facts = &call.facts
    cdef double least = 0 if sizeof(call.x[0]) == sizeof(float) else facts.least_m2
    cdef Py_ssize_t number
    cdef bint beyond = False
    for number in range(first, last):
        if not (facts.m2[number] >= least and facts.m2[number] <= DBL_MAX):
            look_again_at(call.x, facts, number)
        beyond |= is_beyond(facts, number)
    if beyond:
        note(facts.beyond)
    return beyond


cdef inline bint look_again(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """At sets first to last - 1, whose moments and inv_std were found. Whether some are beyond the array's dtype."""
    cdef double least = call.facts.least_m2, most = call.facts.most_m2
    cdef const double *m2 = call.facts.m2
    cdef Py_ssize_t number
    cdef bint plain = True
    for number in range(first, last):
        plain &= (m2[number] >= least) & (m2[number] <= most)
    return not plain and look_again_at_odd(call, first, last)


cdef bint look_at_given(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The same, of statistics that were given."""
    cdef Py_ssize_t channel
    cdef bint beyond = False
    for channel in range(first, last):
        beyond |= is_beyond(facts, channel)
    if beyond:
        note(facts.beyond)
    return beyond


cdef void keep_beyond(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Factors that give x itself, of channels whose statistics the array's dtype does not hold."""
    cdef const Facts *facts = &call.facts
    cdef Py_ssize_t channel, stride = facts.factor_stride
    for channel in range(first, last):
        if is_beyond(facts, channel):
            call.factors[MEAN_HI * stride + channel] = 0
            call.factors[MEAN_LO * stride + channel] = 0
            call.factors[SCALE * stride + channel] = 1
            call.factors[SHIFT * stride + channel] = -0.0


cdef void look_at_sums(const Facts *facts, const double *sums, Py_ssize_t size) noexcept nogil:
    """Of the gradient: float32 adds four dout before they are double; partial sums may be larger than the sum."""
    cdef Py_ssize_t i
    cdef bint finite = True
    for i in range(size):
        finite &= sums[i] - sums[i] == 0
    if not finite:
        note(facts.beyond)
