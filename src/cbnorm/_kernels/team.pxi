# A call's threads: one parallel region, with barriers between the passes; none at all for one thread, since even
# that costs a microsecond. And whether more than one pay, which calls find out by the clock.
#
# Design
# A. Results do not depend on the number of threads, so each call may choose. A second one halves the time of a call
#    on an idle machine; where other processes or libraries use the cores it can cost a hundred times what it saves.
# B. What a call with threads saved is what such a call takes alone, less what it took. Savings make a balance, which
#    begins with what it may take to wake the threads and to bring them their part of the arrays. When it is used up,
#    calls run alone for as long as was lost; the next time for 4 times as long, then 16, 64 and 256 times, so that
#    little time is lost while it stays bad. A full balance takes one of these steps back.
# C. The balance belongs to the machine, what a call takes alone to its kind: the function, dtype and shape.
# D. Threads of Python share all this without a lock: a number lost in a race costs some time, never a result, and what
#    cannot be is taken for unknown.

from libc.stdint cimport uint64_t
from libc.string cimport memset

cdef extern from "team.h" nogil:
    ctypedef struct Team "cbnorm_team":
        int threads
        uint64_t key        # tells the kind of the call
        double began        # seconds, as is the next; 0 where there was nothing to decide
        double waited       # thread 0, for the others
    double now "cbnorm_now"()
    Team new_team "cbnorm_new_team"(int threads)
    int threads_there "cbnorm_threads_there"(int threads)
    int team_size "cbnorm_team_size"(const Team *team)
    void enter_team "cbnorm_enter_team"(Team *team, int thread)
    void team_barrier "cbnorm_barrier"(Team *team, int thread)
    void leave_team "cbnorm_leave_team"(Team *team, int thread)
    const bint CBNORM_OPENMP

cdef uint64_t MIX = 0x9E3779B97F4A7C15u     # 2**64 over the golden ratio: spreads small numbers over all bits

cdef enum:
    KINDS = 512         # of calls that are remembered
    PLACES = 4          # where a kind may stand, so that two of them do not drive each other out
    RECENT = 32         # calls that a mean is of
    MOST_STEPS = 4
    MOST_THREADS = 1024     # OpenMP ends the process where it cannot start those it is asked for

cdef double FIRST_BALANCE = 500e-6      # seconds, as is the next
cdef double FULL_BALANCE = 4e-3         # about what a thread waits that has lost its core to another


cdef struct Kind:
    uint64_t key
    double work         # seconds that thread 0 works beside others, of its good calls
    double alone        # seconds on one thread, a mean
    int calls           # on one thread; 0: not known


cdef Kind kinds[KINDS]
cdef double balance = FIRST_BALANCE
cdef double alone_until = 0
cdef int steps = 0

# The grain was measured, on a machine with AVX-512 (asv_bench/benchmarks/grain.py).
cdef Py_ssize_t grain = 16384   # numbers for each thread: with fewer, waking it costs more than it does
cdef bint judging = True


def set_grain(numbers):
    """Give each thread so many numbers at least, and return how many it was; for tests and benchmarks."""
    global grain
    if numbers < 1:
        raise ValueError(f"numbers: expected at least 1, got {numbers}")
    before = grain
    grain = numbers
    return before


def set_judging(bint wanted):
    """Whether calls go alone where threads do not pay; for tests and benchmarks. What was learnt is forgotten."""
    global judging, balance, alone_until, steps
    judging = wanted
    balance = FIRST_BALANCE
    alone_until = steps = 0
    memset(kinds, 0, sizeof(kinds))


cdef inline Team open_team(Py_ssize_t numbers, int threads, uint64_t key) noexcept nogil:
    """For a call over so many numbers."""
    cdef Team team = new_team(<int>max(1, min(min(threads, <int>MOST_THREADS), numbers // grain)))
    team.key = key
    if judging and team.began < alone_until:
        team.threads = 1
    return team


cdef inline void close_team(const Team *team) noexcept nogil:
    cdef double end
    if judging and team.began > 0:
        end = now()
        judge(team.key, team.threads, end, end - team.began, team.waited)


cdef inline Kind *kind_of(uint64_t key) noexcept nogil:
    """Where a kind stands, or else the one of its places that it takes from another."""
    cdef Py_ssize_t i
    for i in range(PLACES):
        if kinds[(key + i) % KINDS].key == key:
            return &kinds[(key + i) % KINDS]
    return &kinds[(key + (key >> 32) % PLACES) % KINDS]


cdef inline double toward(double seconds, double mean, int calls) noexcept nogil:
    """The mean of so many recent calls with this one; if it was interrupted, it counts for two at most."""
    return mean + (min(seconds, 2 * mean) - mean) / max(1, calls)


cdef void judge(uint64_t key, int threads, double end, double elapsed, double waited) noexcept nogil:
    global balance, alone_until, steps
    cdef Kind *kind = kind_of(key)
    cdef double alone, saved, work = elapsed - waited
    cdef int step = max(0, steps)
    if kind.key != key:
        kind[0] = Kind(key=key, work=elapsed, alone=0, calls=0)
    if threads == 1:
        kind.alone = toward(elapsed, kind.alone, kind.calls + 1) if kind.alone > 0 else elapsed
        kind.calls = min(kind.calls + 1, <int>RECENT - 1)
        return
    if work > 0:
        kind.work = min(work, toward(work, kind.work, RECENT)) if kind.work > 0 else work
    # Threads save no more than all their work but one's, or alone was interrupted; half of that where it is not known.
    alone = min(kind.alone, 2 * threads * kind.work) if kind.calls > 0 else 0.5 * (1 + threads) * kind.work
    saved = max(alone - elapsed, -alone - FULL_BALANCE)     # whatever else stopped the process is no loss of threads
    if saved != saved:      # NaN, of numbers that another thread was writing
        return
    balance += saved
    if balance < 0:
        alone_until = end + (FIRST_BALANCE - balance) * (1 << 2 * step)
        steps = min(step + 1, <int>MOST_STEPS)
        balance = FIRST_BALANCE
    elif balance > FULL_BALANCE:
        balance = FULL_BALANCE
        if step > 0:
            steps = step - 1
            balance = FIRST_BALANCE


def rehearse(uint64_t key, int threads, double elapsed, double waited):
    """Judge a call that never was, of so many seconds; returns for how long it makes calls go alone. For tests."""
    cdef double end = now(), before = alone_until
    judge(key, threads, end, elapsed, waited)
    return alone_until - end if alone_until != before else 0.0


cdef inline uint64_t call_key(
    Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, uint64_t function, int threads
) noexcept nogil:
    """Calls that differ in one of these have different keys, but for rare accidents."""
    cdef uint64_t key = function * 1024 + threads
    key = (key ^ <uint64_t>outer) * MIX
    key = (key ^ (key >> 32) ^ <uint64_t>channels) * MIX
    key = (key ^ (key >> 32) ^ <uint64_t>inner) * MIX
    return key ^ (key >> 32)


cdef inline void barrier(Team *team, int thread) noexcept nogil:
    """Wait for the others of a parallel region; alone, there may be one of the caller's around us."""
    if team_size(team) > 1:
        team_barrier(team, thread)


cdef inline Py_ssize_t share(Py_ssize_t work, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    """Where a thread's share of the work begins; it ends where the next thread's begins.

    The largest is thread 0's, which need not be woken.
    """
    return (work * thread + threads - 1) // threads
