# What Python sees of a kernel build: each function fills a call with its facts and arrays, and runs it.
# Shapes, dtypes and overlaps were checked in _arrays.pyx; here only what memory safety needs is looked at again.

from cython cimport floating

cimport numpy as cnp

from cbnorm._memory cimport pool_give
from cbnorm._plan cimport Plan
from cbnorm._results cimport is_bfloat16

from cbnorm._cpu import core_cache, last_level_cache

cnp.import_array()

# What calls adapt to: the sizes of this machine's caches.
cdef Py_ssize_t cache_bytes = last_level_cache()
cdef Py_ssize_t core_cache_bytes = core_cache()

include "team.pxi"
include "store.pxi"
include "storage.pxi"
include "call.pxi"
include "statistics.pxi"
include "normalize.pxi"
include "gradient_sums.pxi"
include "input_gradient.pxi"
include "channels.pxi"
include "extremes.pxi"
include "columns.pxi"
include "planes.pxi"
include "counted.pxi"
include "counted_runs.pxi"
include "counted_gradient.pxi"
include "rows.pxi"
include "samples.pxi"
include "passes.pxi"
include "workspace.pxi"

openmp = bool(CBNORM_OPENMP)


def set_cache_bytes(size):
    """Take the last-level cache to be of this size; for tests and benchmarks."""
    global cache_bytes
    cache_bytes = size


cdef describe(array):
    """What an array is, for an error."""
    if not isinstance(array, cnp.ndarray):
        return repr(array)
    return f"{array.dtype.str}, shape {array.shape}, strides {array.strides}, writeable {array.flags.writeable}"


cdef int check(array, int type_number, Py_ssize_t size, bint written) except -1:
    """What fits no call of Python's must not crash."""
    if (
        not isinstance(array, cnp.ndarray) or cnp.PyArray_TYPE(<cnp.ndarray>array) != type_number
        or cnp.PyArray_SIZE(<cnp.ndarray>array) != size or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array)
        or (written and not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>array))
    ):
        kind = ("writeable " if written else "") + ("float32" if type_number == cnp.NPY_FLOAT else "float64")
        raise TypeError(f"kernels: expected {size} contiguous numbers, {kind}, got {describe(array)}")
    return 0


cdef int read(const floating **numbers, array, Py_ssize_t size) except -1:
    """Where the kernels find an array of so many numbers; NULL for None."""
    if array is None:
        numbers[0] = NULL
        return 0
    check(array, cnp.NPY_FLOAT if floating is float else cnp.NPY_DOUBLE, size, False)
    numbers[0] = <const floating *>cnp.PyArray_DATA(<cnp.ndarray>array)
    return 0


cdef int write(floating **numbers, array, Py_ssize_t size) except -1:
    """The same where they write."""
    if array is None:
        numbers[0] = NULL
        return 0
    check(array, cnp.NPY_FLOAT if floating is float else cnp.NPY_DOUBLE, size, True)
    numbers[0] = <floating *>cnp.PyArray_DATA(<cnp.ndarray>array)
    return 0


cdef Storage storage_of(array, int type_number) except *:
    """How an array is stored that is computed in a dtype."""
    cdef int given
    if not isinstance(array, cnp.ndarray):
        return NATIVE
    given = cnp.PyArray_TYPE(<cnp.ndarray>array)
    if given == type_number:
        return NATIVE
    if given == cnp.NPY_BOOL:
        return BOOL
    if given == cnp.NPY_UINT8:
        return UINT8
    if given == cnp.NPY_INT8:
        return INT8
    if given == cnp.NPY_UINT16:
        return UINT16
    if given == cnp.NPY_INT16:
        return INT16
    if type_number == cnp.NPY_FLOAT:
        if given == cnp.NPY_FLOAT16:
            return HALF
        if is_bfloat16(array.dtype):
            return BRAIN
    elif given == cnp.NPY_UINT32:
        return UINT32
    elif given == cnp.NPY_INT32:
        return INT32
    return NATIVE           # which `check` refuses


cdef Storage take(const floating **numbers, array, Py_ssize_t size) except *:
    """Find an array that may be stored otherwise; how it is."""
    cdef int type_number = cnp.NPY_FLOAT if floating is float else cnp.NPY_DOUBLE
    cdef Storage storage = storage_of(array, type_number)
    numbers[0] = NULL
    if array is not None:
        check(array, type_number if storage == NATIVE else cnp.PyArray_TYPE(<cnp.ndarray>array), size, False)
        numbers[0] = <const floating *>cnp.PyArray_DATA(<cnp.ndarray>array)
    return storage


cdef Storage take_out(floating **numbers, array, Py_ssize_t size) except *:
    """The same where results are written."""
    cdef int type_number = cnp.NPY_FLOAT if floating is float else cnp.NPY_DOUBLE
    cdef Storage storage = storage_of(array, type_number)
    if storage != HALF and storage != BRAIN:
        write(numbers, array, size)
        return NATIVE
    check(array, cnp.PyArray_TYPE(<cnp.ndarray>array), size, True)
    numbers[0] = <floating *>cnp.PyArray_DATA(<cnp.ndarray>array)
    return storage


cdef int take_plan(Facts *facts, Plan plan, statistics, bint backward) except -1:
    """The facts that do not depend on the function. Statistics are (kinds, sets)."""
    if plan.size == 0:      # the kernels divide by these numbers
        raise ValueError("kernels: expected a plan of at least one number, got one of none")
    memset(facts, 0, sizeof(Facts))
    facts.outer = plan.outer
    facts.channels = plan.channels
    facts.inner = plan.inner
    facts.groups = plan.groups
    facts.samples.count = plan.samples
    facts.sets = plan.sets
    facts.count = plan.count
    facts.eps = plan.eps
    facts.centred = plan.centred
    facts.statistics_given = plan.statistics_given
    facts.backward = backward
    check(statistics, cnp.NPY_DOUBLE, plan.kinds * plan.sets, not backward)     # in the gradient they are only read
    facts.mean = <double *>cnp.PyArray_DATA(<cnp.ndarray>statistics)
    facts.mean_lo = facts.mean + plan.sets
    facts.m2 = facts.mean + 2 * plan.sets
    facts.inv_std = facts.mean + 3 * plan.sets
    read(&facts.weights, plan.weights, plan.outer * plan.inner)
    if plan.kinds == 5:
        if plan.groups > 0 or plan.statistics_given:
            raise TypeError("kernels: expected numbers of rows, and where statistics are given, to count alike")
        facts.counts = facts.mean + 4 * plan.sets
        facts.heaviest = plan.heaviest
        facts.omit = plan.omit
        facts.ddof = plan.ddof
    return 0


cdef int take_moving(Facts *facts, tuple moving) except -1:
    """The running averages, or given statistics: then both."""
    mean, var, facts.moving.momentum, facts.moving.ddof = moving
    if facts.groups > 0 or (facts.statistics_given and (mean is None or var is None)):
        raise TypeError("kernels: expected moving averages of channels, and both where they are the statistics")
    write(&facts.moving.mean, mean, facts.channels)
    write(&facts.moving.var, var, facts.channels)
    return 0


cdef int take_sums(Facts *facts, sums, bint given) except -1:
    """Sums are (2, channels): Σ dout, Σ dout·xhat."""
    if facts.groups > 0:
        raise TypeError("kernels: expected sums of channels, not of rows")
    check(sums, cnp.NPY_DOUBLE, 2 * facts.channels, not given)
    facts.sums_given = given
    facts.sum_dout = <double *>cnp.PyArray_DATA(<cnp.ndarray>sums)
    facts.sum_dout_xhat = facts.sum_dout + facts.channels
    return 0


cdef uint64_t kind_of_call(const Call *call, int threads) noexcept nogil:
    """What takes its own time: for the team to judge."""
    cdef const Facts *facts = &call.facts
    cdef int more = call.dgamma != NULL or call.dbeta != NULL or facts.moving.mean != NULL
    cdef int function = (facts.backward * 2 + facts.statistics_given) * 2 + facts.centred
    cdef uint64_t kind = ((function * 2 + more) * 2 + (call.out != NULL)) * 2 + (call.x != NULL)
    kind = kind * 16 + sizeof(call.x[0])
    kind = (kind * 16 + facts.x_storage) * 4 + (facts.weights != NULL) * 2 + facts.omit
    return call_key(facts.outer, facts.channels, facts.inner,
                    (kind * 2 + (facts.samples.count > 0)) * 65536 + facts.groups, threads)


cdef int run_call(Call *call, const Facts *facts, tuple arrays, int threads) except -1:
    """Whether the dtype does not hold what some set needs."""
    cdef Py_ssize_t size = facts.outer * facts.channels * facts.inner, channels = facts.channels
    cdef void *workspace
    cdef Team team
    cdef bint beyond = False
    call.facts = facts[0]
    call.facts.beyond = &beyond
    set_limits(&call.facts, sizeof(call.x[0]) == sizeof(float))
    call.facts.x_storage = take(&call.x, arrays[0], size)
    call.facts.dout_storage = take(&call.dout, arrays[1], size)
    call.facts.out_storage = take_out(&call.out, arrays[2], size)
    call.facts.stored = (
        call.facts.x_storage != NATIVE or call.facts.dout_storage != NATIVE or call.facts.out_storage != NATIVE)
    read(&call.gamma, arrays[3], channels)
    read(&call.beta, arrays[4], channels)
    write(&call.dgamma, arrays[5], channels)
    write(&call.dbeta, arrays[6], channels)
    choose_walk(&call.facts, sizeof(call.x[0]))
    call.facts.from_memory = call.facts.from_memory and not call.facts.stored
    if call.out != NULL:
        call.facts.store = store_for(call.out, call.dout if facts.backward else call.x, call.facts.beyond_cache)
    threads = <int>min(<Py_ssize_t>threads, most_threads(&call.facts))
    team = open_team(size, threads, kind_of_call(call, threads))
    call.facts.collecting = collects(call)
    choose_step(call, team.threads)
    workspace = take_workspace(call, team.threads)
    if workspace == NULL:
        raise MemoryError("no memory for the sums of a call")
    with nogil:
        launch(call, &team)
        close_team(&team)
    pool_give(workspace)
    return beyond


cdef int run(Facts *facts, tuple arrays, int threads) except -1:
    """Arrays: x, dout, out, gamma, beta, dgamma, dbeta; each of them None or of the dtype of the others. Whether
    that does not hold what some set needs."""
    cdef FloatCall float_call
    cdef DoubleCall double_call
    cdef bint single = False
    array = arrays[1] if arrays[1] is not None else arrays[0]
    if isinstance(array, cnp.ndarray):
        given = cnp.PyArray_TYPE(<cnp.ndarray>array)
        single = given == cnp.NPY_FLOAT or given == cnp.NPY_FLOAT16 or is_bfloat16((<cnp.ndarray>array).dtype)
        if given != cnp.NPY_DOUBLE and not single:      # integers: as their results
            single = isinstance(arrays[2], cnp.ndarray) and cnp.PyArray_TYPE(<cnp.ndarray>arrays[2]) != cnp.NPY_DOUBLE
    if single:
        return run_call(&float_call, facts, arrays, threads)
    return run_call(&double_call, facts, arrays, threads)


def forward(
    Plan plan not None,
    x,                  # as (outer, channels, inner); None where only inv_std of given statistics is wanted
    out,                # the same, may be x; None: only the statistics are wanted
    gamma, beta,        # (channels), in the dtype of x, or None
    statistics,         # (kinds, sets): OUT; IN where the plan says they are given, but for inv_std
    moving,             # None, or (mean, var, momentum, ddof): changed in place, or IN, the given statistics
    int threads,
):
    """Whether the dtype does not hold what some set needs: there `out` is not y, but x where statistics are given."""
    cdef Facts facts
    take_plan(&facts, plan, statistics, False)
    if moving is not None:
        take_moving(&facts, moving)
    if x is None and not (plan.statistics_given and out is None):
        raise TypeError("kernels: expected x")
    return <bint>run(&facts, (x, None, out, gamma, beta, None, None), threads)


def backward(
    Plan plan not None,
    dout,               # as (outer, channels, inner)
    x,                  # the same; None where neither dgamma nor a dx that depends on it is wanted
    dx,                 # the same, may be dout; None: not wanted
    gamma,              # (channels), in the dtype of dout, or None
    gradients,          # OUT dgamma and dbeta, as gamma; None: not wanted
    statistics,         # IN (kinds, sets), as `forward` left it
    int threads,
):
    """Whether sums of some set are not finite."""
    cdef Facts facts
    take_plan(&facts, plan, statistics, True)
    dgamma, dbeta = gradients
    if dout is None:
        raise TypeError("kernels: expected dout")
    if x is None and (plan.groups or dgamma is not None or (dx is not None and not plan.statistics_given)):
        raise TypeError("kernels: expected x")
    return <bint>run(&facts, (x, dout, dx, gamma, None, dgamma, dbeta), threads)


def limits(Plan plan not None, itemsize):
    """Of mean, inv_std and m2, and from below of inv_std, beyond which a dtype does not hold x - mean or inv_std."""
    cdef Facts facts
    facts.eps = plan.eps
    facts.count = plan.count
    set_limits(&facts, itemsize == sizeof(float))
    return facts.most_mean, facts.most_inv_std, facts.most_m2, facts.least_inv_std


def gradient_sums(
    Plan plan not None,
    dout not None, x not None,      # as (outer, channels, inner)
    sums,               # OUT (2, channels), float64: Σ dout, Σ dout·xhat
    statistics, int threads,
):
    """Whether sums of some channel are not finite."""
    cdef Facts facts
    take_plan(&facts, plan, statistics, True)
    take_sums(&facts, sums, False)
    return <bint>run(&facts, (x, dout, None, None, None, None, None), threads)


def input_gradient(
    Plan plan not None,     # with statistics that depend on x
    dout not None, x not None, dx not None,     # as (outer, channels, inner)
    gamma,              # (channels), in the dtype of dout, or None
    sums,               # IN (2, channels), over as many numbers as the plan's count
    statistics, int threads,
):
    cdef Facts facts
    take_plan(&facts, plan, statistics, True)
    take_sums(&facts, sums, True)
    if plan.statistics_given:
        raise TypeError("kernels: expected a plan whose statistics depend on x")
    run(&facts, (x, dout, dx, gamma, None, None, None), threads)
