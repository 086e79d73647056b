# What the OpenMP runtime of the kernels says. Linked as they are and loaded just before them, this module finds the
# same runtime. `_runtime.py` loads it.

cdef extern from * nogil:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #include <stdint.h>
    #define CBNORM_OPENMP 1
    static int cbnorm_max_threads(void) { return omp_get_max_threads(); }
    static uintptr_t cbnorm_address(void) { return (uintptr_t)&omp_get_max_threads; }
    static int cbnorm_num_procs(void) { return omp_get_num_procs(); }
    /* CPUs of the places that threads are bound to, 0 if they are not. A thread's own affinity is then no limit. */
    static int cbnorm_places(void) {
        int place, count = 0;
        if (omp_get_proc_bind() != omp_proc_bind_false)
            for (place = 0; place < omp_get_num_places(); place++) count += omp_get_place_num_procs(place);
        return count && count > omp_get_num_procs() ? omp_get_num_procs() : count; /* places may overlap */
    }
    #else
    #include <stdint.h>
    #define CBNORM_OPENMP 0
    static int cbnorm_max_threads(void) { return 1; }
    static uintptr_t cbnorm_address(void) { return 0; }
    static int cbnorm_places(void) { return 0; }
    static int cbnorm_num_procs(void) { return 1; }
    #endif

    #ifdef __linux__
    #include <sys/syscall.h>
    #include <unistd.h>
    /* CPUs that the calling thread may use: LLVM's runtime counts them once and for all. */
    static int cbnorm_affinity(void) {
        unsigned long long mask[128]; /* 8192 CPUs, the most that Linux is built for */
        long bytes = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
        int count = 0;
        for (long i = 0; i < bytes / 8; i++) count += __builtin_popcountll(mask[i]);
        return count > 0 ? count : cbnorm_num_procs();
    }
    #else
    static int cbnorm_affinity(void) { return cbnorm_num_procs(); }
    #endif

    /* What the calling thread was told last: asking again takes as long as a tenth of a small call with threads. */
    #if CBNORM_OPENMP
    #include <time.h>
    #ifdef CLOCK_MONOTONIC_COARSE
    #define CBNORM_CLOCK CLOCK_MONOTONIC_COARSE
    #else
    #define CBNORM_CLOCK CLOCK_MONOTONIC
    #endif
    static __thread struct { long long tick; int max_threads, number; } cbnorm_last;
    static long long cbnorm_tick(void) { /* hundredths of a second */
        struct timespec now;
        clock_gettime(CBNORM_CLOCK, &now);
        return now.tv_sec * 100LL + now.tv_nsec / 10000000;
    }
    static int cbnorm_recent(void) {
        int fits = cbnorm_last.tick == cbnorm_tick() && cbnorm_last.max_threads == cbnorm_max_threads();
        return fits ? cbnorm_last.number : 0;
    }
    static void cbnorm_remember(int number) {
        cbnorm_last.tick = cbnorm_tick();
        cbnorm_last.max_threads = cbnorm_max_threads();
        cbnorm_last.number = number;
    }
    #else
    static int cbnorm_recent(void) { return 1; }
    static void cbnorm_remember(int number) { (void)number; }
    #endif
    """
    const bint CBNORM_OPENMP
    int cbnorm_max_threads()
    size_t cbnorm_address()
    int cbnorm_places()
    int cbnorm_num_procs()
    int cbnorm_affinity()
    int cbnorm_recent()
    void cbnorm_remember(int number)


openmp = bool(CBNORM_OPENMP)


def max_threads():
    """How many threads OpenMP would give the calling thread: what `omp_set_num_threads` set last, if anything did."""
    return cbnorm_max_threads()


def processors():
    """CPUs that the threads of a call may use now: those of OpenMP's places if it binds threads, else the affinity."""
    return cbnorm_places() or cbnorm_affinity()


def remember(int number):
    """Let `recent` give this number to the calling thread for a hundredth of a second at most; 0 lets it forget."""
    cbnorm_remember(number)


def recent():
    """The number remembered, unless OpenMP has another number for the calling thread since; else 0."""
    return cbnorm_recent()


def address():
    """Where the runtime lies in memory."""
    return cbnorm_address()
