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
# D. Threads of Python share all this without a lock: a number lost in a race costs some time, never a result.

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
    void enter_team "cbnorm_enter_team"(Team *team, int thread)
    void team_barrier "cbnorm_barrier"(Team *team, int thread)
    void leave_team "cbnorm_leave_team"(Team *team, int thread)
    const bint CBNORM_OPENMP

cdef uint64_t MIX = 0x9E3779B97F4A7C15u     # 2**64 over the golden ratio: spreads small numbers over all bits

cdef enum:
    KINDS = 256         # of calls that are remembered
    RECENT = 32         # calls that a mean is of
    MOST_STEPS = 4

cdef double FIRST_BALANCE = 500e-6      # seconds, as is the next
cdef double FULL_BALANCE = 4e-3         # about what a thread waits that has lost its core to another


cdef struct Kind:
    uint64_t key
    double work         # seconds that thread 0 works beside others, of its good calls
    double alone        # seconds on one thread, a mean
    int calls           # on one thread


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
    cdef Team team = new_team(<int>max(1, min(<Py_ssize_t>threads, numbers // grain)))
    team.key = key
    if judging and team.began < alone_until:
        team.threads = 1
    return team


cdef inline void close_team(const Team *team) noexcept nogil:
    if judging and team.began > 0:
        judge(team, &kinds[team.key % KINDS])


cdef inline double toward(double seconds, double mean, int calls) noexcept nogil:
    """The mean of so many recent calls with this one; if it was interrupted, it counts for two at most."""
    return mean + (min(seconds, 2 * mean) - mean) / calls


cdef void judge(const Team *team, Kind *kind) noexcept nogil:
    global balance, alone_until, steps
    cdef double end = now(), elapsed = end - team.began, alone, saved
    if kind.key != team.key:
        kind[0] = Kind(key=team.key, work=elapsed, alone=0, calls=0)
    if team.threads == 1:
        kind.calls = min(kind.calls + 1, <int>RECENT)
        kind.alone = elapsed if kind.calls == 1 else toward(elapsed, kind.alone, kind.calls)
        return
    kind.work = min(elapsed - team.waited, toward(elapsed - team.waited, kind.work, RECENT))
    # Threads save no more than all their work but one's, or alone was interrupted; half of that where it is not known.
    alone = min(kind.alone, 2 * team.threads * kind.work) if kind.calls > 0 else 0.5 * (1 + team.threads) * kind.work
    saved = alone - elapsed
    balance += saved
    if balance < 0:
        alone_until = end + (FIRST_BALANCE - balance) * (1 << 2 * steps)
        steps = min(steps + 1, <int>MOST_STEPS)
        balance = FIRST_BALANCE
    elif balance > FULL_BALANCE:
        balance = FULL_BALANCE
        if steps > 0:
            steps -= 1
            balance = FIRST_BALANCE


cdef enum Function:
    FORWARD
    BACKWARD
    ROWS_FORWARD
    ROWS_BACKWARD


cdef inline uint64_t call_key(
    Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, int dtype, Function function, bint variant, bint sums_only
) noexcept nogil:
    """Calls that differ in one of these have different keys, but for rare accidents."""
    cdef uint64_t key = ((dtype * 4 + <uint64_t>function) * 2 + variant) * 2 + sums_only
    key = (key ^ <uint64_t>outer) * MIX
    key = (key ^ (key >> 32) ^ <uint64_t>channels) * MIX
    key = (key ^ (key >> 32) ^ <uint64_t>inner) * MIX
    return key ^ (key >> 32)


cdef inline void barrier(Team *team, int thread) noexcept nogil:
    """Wait for the others of a parallel region; alone, there may be one of the caller's around us."""
    if team.threads > 1:
        team_barrier(team, thread)


cdef inline Py_ssize_t share(Py_ssize_t work, Py_ssize_t thread, Py_ssize_t threads) noexcept nogil:
    """Where a thread's share of the work begins; it ends where the next thread's begins."""
    return work * thread // threads
