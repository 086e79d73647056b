# What Python sees of a kernel build. Each function picks the dtype and the walk, and holds the workspace.
# Shapes, dtypes and overlaps were checked in _arrays.py; arrays are C-contiguous float32 or float64.

from cython cimport floating

cimport numpy as cnp

from cbnorm._memory cimport pool_give, pool_take

from cbnorm._cpu import core_cache, last_level_cache

cnp.import_array()

include "team.pxi"
include "store.pxi"
include "statistics.pxi"
include "normalize.pxi"
include "gradient_sums.pxi"
include "input_gradient.pxi"
include "channels.pxi"
include "columns.pxi"
include "planes.pxi"
include "rows.pxi"

openmp = bool(CBNORM_OPENMP)

cdef enum:              # the functions below
    FORWARD
    BACKWARD
    ROWS_FORWARD
    ROWS_BACKWARD


cdef inline int function(int kind, cnp.ndarray array, bint variant, bint result_wanted, bint more_wanted) noexcept:
    """What takes its own time on one shape, as a number for `call_key`."""
    return ((kind * 2 + variant) * 2 + result_wanted) * 2 + more_wanted + 32 * cnp.PyArray_TYPE(array)


cdef inline void *data(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


# What calls adapt to: the sizes of this machine's caches.
cdef Py_ssize_t cache_bytes = last_level_cache()
cdef Py_ssize_t core_cache_bytes = core_cache()


def set_cache_bytes(size):
    """Take the last-level cache to be of this size; for tests and benchmarks."""
    global cache_bytes
    cache_bytes = size


cdef inline bint is_streamed(Py_ssize_t touched) noexcept nogil:
    """Whether results are written past the caches: where the arrays of a call do not fit there together."""
    return touched > cache_bytes


def batchnorm_forward(
    cnp.ndarray x not None,     # (outer, channels, inner)
    y,                          # the same, may be x; None: only the statistics are wanted
    Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner,
    gamma, beta,                # (channels), in the dtype of x, or None
    double eps,
    moving_mean, moving_var,    # (channels), float64, or None; changed in place in training
    double momentum, double ddof,
    bint given,                 # test mode
    cnp.ndarray statistics not None,    # OUT (4, channels), float64: mean, mean_lo, m2, inv_std
    int threads,
):
    cdef Channels seen = see_channels(<double *>data(statistics), channels, outer * inner, eps, given)
    cdef Moving moving = Moving(
        momentum=momentum, ddof=ddof, mean=<double *>data(moving_mean), var=<double *>data(moving_var))
    cdef Team team = open_team(
        outer * channels * inner, threads,
        call_key(
            outer, channels, inner, function(FORWARD, x, given, y is not None, moving_mean is not None), threads))
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT:
        forward(<const float *>data(x), <float *>data(y), outer, inner, &seen, &moving,
                <const float *>data(gamma), <const float *>data(beta), &team)
    else:
        forward(<const double *>data(x), <double *>data(y), outer, inner, &seen, &moving,
                <const double *>data(gamma), <const double *>data(beta), &team)


cdef int forward(
    const floating *x, floating *y, Py_ssize_t outer, Py_ssize_t inner, const Channels *channels,
    const Moving *moving, const floating *gamma, const floating *beta, Team *team,
) except -1:
    cdef Columns columns
    cdef Planes planes
    cdef double *partial
    cdef floating *factors
    cdef bint streamed = is_streamed(2 * outer * channels.channels * inner * sizeof(floating))
    if inner == 1:
        columns = lay_columns(outer, channels.channels, sizeof(floating))
        team.threads = <int>min(<Py_ssize_t>team.threads, columns.tasks)
        partial = <double *>pool_take((columns.chunks + 1) * 3 * columns.width * sizeof(double))
        factors = <floating *>pool_take(4 * columns.apart * sizeof(floating))
    else:
        planes = lay_planes(outer, channels.channels, inner)
        partial = <double *>pool_take(planes.channels * planes.chunks * 4 * sizeof(double))
        factors = <floating *>pool_take(4 * planes.channels * sizeof(floating))
    if partial == NULL or factors == NULL:
        pool_give(partial)
        pool_give(factors)
        raise MemoryError("no memory for the sums of a call")
    with nogil:
        if inner == 1:
            columns_forward(x, y, &columns, channels, moving, gamma, beta, partial, factors, streamed, team)
        else:
            planes_forward(x, y, &planes, channels, moving, gamma, beta, partial, factors, streamed, team)
        close_team(team)
    pool_give(partial)
    pool_give(factors)


def batchnorm_backward(
    cnp.ndarray dout not None,  # (outer, channels, inner)
    x,                          # the same; None where neither dgamma nor a training-mode dx is wanted
    dx,                         # the same, may be dout; None: not wanted
    Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner,
    gamma,                      # (channels), in the dtype of dout, or None
    dgamma, dbeta,              # OUT (channels), in the dtype of dout, or None
    bint given,                 # test mode
    cnp.ndarray statistics not None,    # IN (4, channels) as the forward pass left it
    int threads,
):
    cdef Channels seen = see_channels(<double *>data(statistics), channels, outer * inner, 0, given)
    cdef Team team = open_team(
        outer * channels * inner, threads,
        call_key(
            outer, channels, inner, function(BACKWARD, dout, given, dx is not None, x is not None), threads))
    if cnp.PyArray_TYPE(dout) == cnp.NPY_FLOAT:
        backward(<const float *>data(dout), <const float *>data(x), <float *>data(dx), outer, inner, &seen,
                 <const float *>data(gamma), <float *>data(dgamma), <float *>data(dbeta), &team)
    else:
        backward(<const double *>data(dout), <const double *>data(x), <double *>data(dx), outer, inner, &seen,
                 <const double *>data(gamma), <double *>data(dgamma), <double *>data(dbeta), &team)


cdef int backward(
    const floating *dout, const floating *x, floating *dx, Py_ssize_t outer, Py_ssize_t inner,
    const Channels *channels, const floating *gamma, floating *dgamma, floating *dbeta, Team *team,
) except -1:
    cdef Columns columns
    cdef Planes planes
    cdef double *partial
    cdef floating *factors
    cdef bint streamed = is_streamed(3 * outer * channels.channels * inner * sizeof(floating))
    cdef bint sums_wanted = channels.m2 != NULL or dgamma != NULL or dbeta != NULL
    if inner == 1:
        columns = lay_columns(outer, channels.channels, 2 * sizeof(floating))
        team.threads = <int>min(<Py_ssize_t>team.threads, columns.tasks)
        partial = <double *>pool_take((columns.chunks + 1) * 2 * columns.width * sizeof(double))
        factors = <floating *>pool_take(5 * columns.apart * sizeof(floating))
    else:
        planes = lay_planes(outer, channels.channels, inner)
        partial = <double *>pool_take(planes.channels * (planes.chunks + 1) * 2 * sizeof(double))
        factors = <floating *>pool_take(5 * planes.channels * sizeof(floating))
    if partial == NULL or factors == NULL:
        pool_give(partial)
        pool_give(factors)
        raise MemoryError("no memory for the sums of a call")
    with nogil:
        if inner == 1:
            columns_backward(dout, x, dx, &columns, channels, gamma, dgamma, dbeta,
                             partial if sums_wanted else NULL, factors, streamed, team)
        else:
            planes_backward(dout, x, dx, &planes, channels, gamma, dgamma, dbeta,
                            partial if sums_wanted else NULL, factors, streamed, team)
        close_team(team)
    pool_give(partial)
    pool_give(factors)


def rownorm_forward(
    cnp.ndarray x not None,     # (rows, runs, inner)
    y,                          # the same, may be x; None: only the statistics are wanted
    Py_ssize_t rows, Py_ssize_t groups, Py_ssize_t runs, Py_ssize_t inner,
    gamma, beta,                # (groups * runs), in the dtype of x; None where y is
    double eps,
    bint centred,               # False: RMS normalization
    cnp.ndarray statistics not None,    # OUT (4, rows), float64: mean, mean_lo, m2, inv_std
    int threads,
):
    cdef Rows lay = lay_rows(rows, groups, runs, inner, centred, cnp.PyArray_NBYTES(x))
    cdef bint streamed = is_streamed(2 * cnp.PyArray_NBYTES(x))
    cdef void *out = data(y)
    cdef void *gamma_in = data(gamma)
    cdef void *beta_in = data(beta)
    cdef Team team = open_team(
        rows * lay.size, min(threads, rows),
        call_key(rows, runs, inner, function(ROWS_FORWARD, x, centred, y is not None, groups > 1), threads))
    with nogil:
        if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT:
            rows_forward(<const float *>cnp.PyArray_DATA(x), <float *>out, &lay, eps,
                         <const float *>gamma_in, <const float *>beta_in,
                         <double *>cnp.PyArray_DATA(statistics), streamed, &team)
        else:
            rows_forward(<const double *>cnp.PyArray_DATA(x), <double *>out, &lay, eps,
                         <const double *>gamma_in, <const double *>beta_in,
                         <double *>cnp.PyArray_DATA(statistics), streamed, &team)
        close_team(&team)


def rownorm_backward(
    cnp.ndarray dout not None,  # (rows, runs, inner)
    cnp.ndarray x not None,     # the same
    dx,                         # the same, may be dout; None: not wanted
    Py_ssize_t rows, Py_ssize_t groups, Py_ssize_t runs, Py_ssize_t inner,
    cnp.ndarray gamma not None,  # (groups * runs), in the dtype of dout
    dgamma, dbeta,              # OUT (groups * runs), in the dtype of dout, or None
    bint centred,
    cnp.ndarray statistics not None,    # IN (4, rows) as the forward pass left it
    int threads,
):
    cdef Rows lay = lay_rows(rows, groups, runs, inner, centred, 2 * cnp.PyArray_NBYTES(x))
    cdef bint streamed = is_streamed(3 * cnp.PyArray_NBYTES(dout))
    cdef void *out = data(dx)
    cdef void *dgamma_out = data(dgamma)
    cdef void *dbeta_out = data(dbeta)
    cdef double *partial = NULL
    if dgamma is not None or dbeta is not None:
        partial = <double *>pool_take(lay.chunks * 2 * lay.parameters * sizeof(double))
        if partial == NULL:
            raise MemoryError("no memory for the sums of a call")
    cdef Team team = open_team(
        rows * lay.size, min(threads, lay.chunks),
        call_key(rows, runs, inner, function(ROWS_BACKWARD, x, centred, dx is not None, partial != NULL), threads))
    with nogil:
        if cnp.PyArray_TYPE(dout) == cnp.NPY_FLOAT:
            rows_backward(<const float *>cnp.PyArray_DATA(dout), <const float *>cnp.PyArray_DATA(x), <float *>out, &lay,
                          <const float *>cnp.PyArray_DATA(gamma), <float *>dgamma_out, <float *>dbeta_out,
                          <const double *>cnp.PyArray_DATA(statistics), partial, streamed, &team)
        else:
            rows_backward(<const double *>cnp.PyArray_DATA(dout), <const double *>cnp.PyArray_DATA(x), <double *>out,
                          &lay, <const double *>cnp.PyArray_DATA(gamma), <double *>dgamma_out, <double *>dbeta_out,
                          <const double *>cnp.PyArray_DATA(statistics), partial, streamed, &team)
        close_team(&team)
    pool_give(partial)
