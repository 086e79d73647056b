# What a call decides before its passes: the walk and its geometry, by shape alone, and memory for its sums and factors.

from cbnorm._memory cimport pool_take

cdef enum:
    ALIGNED = 8         # doubles: a cache line


cdef void choose_walk(Facts *facts, size_t itemsize) noexcept nogil:
    cdef Py_ssize_t size = facts.outer * facts.channels * facts.inner * itemsize
    cdef Py_ssize_t read = size * (2 if facts.backward else 1)
    facts.from_memory = read > cache_bytes // 2
    facts.beyond_cache = read + size > cache_bytes
    if facts.samples.count > 0:
        facts.walk = SAMPLES
        facts.samples = lay_samples(facts.samples.count, facts.outer // facts.samples.count)
        facts.columns = lay_columns(facts.samples.positions, facts.channels)
        facts.factor_stride = columns_factor_stride(&facts.columns)
    elif facts.groups > 0:
        facts.walk = ROWS
        facts.rows = lay_rows(facts.sets, facts.channels // facts.groups, facts.inner)
        facts.from_memory = facts.from_memory and facts.rows.size <= LONG_ROW
        facts.step = rows_step(facts)
        facts.factor_stride = MOST_STEP
    elif facts.inner == 1:
        facts.walk = COLUMNS
        facts.columns = lay_columns(facts.outer, facts.channels)
        facts.factor_stride = columns_factor_stride(&facts.columns)
    else:
        facts.walk = PLANES
        facts.planes = lay_planes(facts.outer, facts.channels, facts.inner)
        facts.factor_stride = facts.channels


cdef Py_ssize_t most_threads(const Facts *facts) noexcept nogil:
    """As many as there are tasks, where that is little work to find out."""
    if facts.walk == COLUMNS:
        return facts.columns.tasks
    if facts.walk == SAMPLES:
        return max(facts.samples.chunks, facts.columns.tasks)
    if facts.walk == ROWS:
        return facts.rows.chunks if facts.backward else facts.sets
    return facts.planes.size


cdef bint collects(const Call *call) noexcept nogil:
    """Whether moments or the gradient's sums are to be found."""
    cdef const Facts *facts = &call.facts
    if not facts.backward:
        return not facts.statistics_given
    if facts.sums_given:
        return False
    return (
        call.dgamma != NULL or call.dbeta != NULL or facts.sum_dout != NULL
        or (facts.groups == 0 and not facts.statistics_given))


cdef void choose_step(Call *call, int threads) noexcept nogil:
    """Planes that stay in cache need no barrier between the passes; rows never do."""
    cdef Facts *facts = &call.facts
    if facts.walk == PLANES and facts.collecting and call.out != NULL and not facts.statistics_given:
        facts.step = planes_step(facts, (1 + facts.backward) * sizeof(call.x[0]), threads)


cdef Py_ssize_t partial_size(const Facts *facts) noexcept nogil:
    """Doubles, for the sums of the parts that a walk cuts its array into."""
    if facts.walk == ROWS:
        return rows_partial(facts) if facts.backward else 0
    if facts.walk == SAMPLES:
        return samples_partial(facts)
    if facts.walk == COLUMNS:
        return columns_partial(&facts.columns, 2 if facts.backward else 3 + (facts.counts != NULL))
    return planes_partial(facts, 2 if facts.backward else 4)


cdef void *take_workspace(Call *call, int threads) noexcept nogil:
    """One block, for `pool_give`; NULL where there is no memory."""
    cdef Facts *facts = &call.facts
    cdef Py_ssize_t partial = partial_size(facts) if facts.collecting or facts.walk == SAMPLES else 0
    cdef Py_ssize_t sums = 0, factors = DX_KINDS * facts.factor_stride, parameters = 0, rooms = 0
    cdef double *workspace
    if facts.walk == ROWS:
        sums = threads * ROW_SUMS
        factors = threads * ROW_FACTORS
        facts.row_room = min(facts.step, facts.sets) * facts.rows.size if facts.stored else 0
        rooms = threads * 3 * facts.row_room
        parameters = facts.channels * ((call.gamma == NULL) + (call.beta == NULL and not facts.backward))
    elif facts.walk == SAMPLES:
        facts.samples.workers = threads if facts.samples.chunks >= threads else 1
        sums = facts.samples.workers * sample_room(facts)
        factors = facts.samples.workers * SCALED_KINDS * facts.factor_stride
        parameters = facts.channels * (call.gamma == NULL)
    elif facts.collecting and facts.sum_dout == NULL:
        sums = 2 * facts.channels
    partial = (partial + ALIGNED - 1) // ALIGNED * ALIGNED
    sums = (sums + ALIGNED - 1) // ALIGNED * ALIGNED
    workspace = <double *>pool_take(
        (partial + sums) * sizeof(double) + (factors + parameters + rooms) * sizeof(call.x[0]))
    if workspace == NULL:
        return NULL
    facts.partial = workspace if facts.collecting or facts.walk == SAMPLES else NULL
    if facts.walk == SAMPLES:
        facts.row_sums = workspace + partial
    elif facts.walk == ROWS:
        facts.row_sums = workspace + partial
        facts.sum_dout = workspace              # of the first chunk, when all are merged
        facts.sum_dout_xhat = workspace + facts.channels
    elif facts.collecting and facts.sum_dout == NULL:
        facts.sum_dout = workspace + partial
        facts.sum_dout_xhat = workspace + partial + facts.channels
    place_factors(&call.factors, workspace + partial + sums)
    call.rooms = call.factors + factors + parameters
    if facts.walk == ROWS or facts.walk == SAMPLES:
        stand_in(&call.gamma, call.factors + factors, 1, facts.channels)
        if not facts.backward and facts.walk == ROWS:
            stand_in(&call.beta, call.factors + factors + parameters - facts.channels, 0, facts.channels)
    return workspace


cdef inline void place_factors(floating **factors, double *workspace) noexcept nogil:
    factors[0] = <floating *>workspace


cdef inline void stand_in(const floating **parameter, floating *values, floating value, Py_ssize_t size) noexcept nogil:
    """Equal values for a parameter that was not given."""
    cdef Py_ssize_t i
    if parameter[0] == NULL:
        parameter[0] = values
        for i in range(size):
            values[i] = value
