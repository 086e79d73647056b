/* What Cython has no word for: the waiting of a call's threads for each other. Without OpenMP there is one thread.

   Design
   A. Whoever waits spins for as long as waking a sleeper would take, then sleeps (where there is no futex, for 50
      microseconds at a time). OpenMP's own barriers spin for
      milliseconds: where another process or library has the second core, they keep awake just the core that the
      thread waited for could run on.
   B. Thread 0 waits for the others before it leaves the region too, so that OpenMP's barrier there has nothing to wait for.
   C. Thread 0 keeps the time that it waited: `close_team` in team.pxi judges by it whether threads pay.
   D. The caller's floating-point mode (flush to zero, rounding) holds in all threads: the same bits for any number. */

#ifndef CBNORM_TEAM_H
#define CBNORM_TEAM_H

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#include <time.h>
#if defined(__linux__)
#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(SYS_futex)
#define CBNORM_FUTEX_WAIT 128 /* private to the process; <linux/futex.h> is not everywhere where Linux is */
#define CBNORM_FUTEX_WAKE 129
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#define CBNORM_OPENMP 1
#else
#define CBNORM_OPENMP 0
#endif

typedef struct {
    int threads;
    int arrived, passed; /* at the barrier, and how many barriers all have passed */
    int left;            /* threads that are done, thread 0 apart */
    int asleep;
    uint64_t key;
    unsigned long mode;
    double began, waited; /* seconds, thread 0's */
} cbnorm_team;

#ifdef _OPENMP

#define CBNORM_MOST_TRIED 1024 /* as MOST_THREADS in _threads.py */
#define CBNORM_SPIN 50e-6 /* seconds: waking a thread takes 15 to 50 microseconds */

static inline double cbnorm_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline unsigned long cbnorm_get_mode(void) {
#if defined(__SSE__)
    return _mm_getcsr() & ~_MM_EXCEPT_MASK; /* the flags of what happened so far are no mode */
#elif defined(__aarch64__)
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

static inline void cbnorm_set_mode(unsigned long mode) {
#if defined(__SSE__)
    _mm_setcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#endif
}

static inline void cbnorm_relax(void) {
#if defined(__SSE__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void cbnorm_sleep(int *word, int seen) {
#if defined(SYS_futex)
    syscall(SYS_futex, word, CBNORM_FUTEX_WAIT, seen, NULL, NULL, 0);
#else
    struct timespec moment = {0, 50000};
    (void)word, (void)seen;
    nanosleep(&moment, NULL);
#endif
}

static inline void cbnorm_wake(int *word) {
#if defined(SYS_futex)
    syscall(SYS_futex, word, CBNORM_FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
#else
    (void)word;
#endif
}

static inline int cbnorm_reached(const int *word, int goal) { return __atomic_load_n(word, __ATOMIC_ACQUIRE) >= goal; }

/* Returns when *word is `goal` or more. */
static void cbnorm_wait(cbnorm_team *team, int thread, int *word, int goal) {
    double begin, now;
    int seen, turn;
    if (cbnorm_reached(word, goal))
        return;
    begin = now = cbnorm_now();
    while (now - begin < CBNORM_SPIN && !cbnorm_reached(word, goal)) {
        for (turn = 0; turn < 16 && !cbnorm_reached(word, goal); turn++)
            cbnorm_relax();
        now = cbnorm_now();
    }
    /* Either the waker sees the sleeper, or the sleeper, who looks again, what the waker did. */
    while ((seen = __atomic_load_n(word, __ATOMIC_ACQUIRE)) < goal) {
        __atomic_fetch_add(&team->asleep, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(word, __ATOMIC_SEQ_CST) == seen)
            cbnorm_sleep(word, seen);
        __atomic_fetch_sub(&team->asleep, 1, __ATOMIC_SEQ_CST);
        now = cbnorm_now();
    }
    if (thread == 0)
        team->waited += now - begin;
}

static inline void cbnorm_advance(cbnorm_team *team, int *word) {
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team->asleep, __ATOMIC_SEQ_CST) > 0)
        cbnorm_wake(word);
}

static void *cbnorm_wait_for_release(void *gate) {
    pthread_mutex_lock((pthread_mutex_t *)gate);
    pthread_mutex_unlock((pthread_mutex_t *)gate);
    return NULL;
}

/* How many of so many threads the system has room for. OpenMP ends the process where one cannot be started; so before
   it starts more than ever from this thread, as many are there for a moment. */
static int cbnorm_threads_there(int threads) {
    static __thread int most = 1;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t started[CBNORM_MOST_TRIED];
    int number = 0;
    if (threads <= most || threads > CBNORM_MOST_TRIED)
        return threads;
    pthread_mutex_lock(&gate);
    while (number < threads - 1 && !pthread_create(&started[number], NULL, cbnorm_wait_for_release, &gate))
        number++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < number; i++)
        pthread_join(started[i], NULL);
    if (number == threads - 1)
        most = threads;
    return number + 1;
}

static __thread unsigned long cbnorm_own_mode; /* of a thread outside the region: other libraries' regions run there */

/* Before the region, by the thread that calls. */
static inline cbnorm_team cbnorm_new_team(int threads) {
    cbnorm_team team = {0};
    team.threads = threads;
    if (threads > 1) {
        team.mode = cbnorm_get_mode();
        team.began = cbnorm_now();
    }
    return team;
}

/* In the region, where each thread writes how many there are. */
static inline int cbnorm_team_size(const cbnorm_team *team) { return __atomic_load_n(&team->threads, __ATOMIC_RELAXED); }

/* First in the region; OpenMP may give fewer threads than were asked for. */
static inline void cbnorm_enter_team(cbnorm_team *team, int thread) {
    __atomic_store_n(&team->threads, omp_get_num_threads(), __ATOMIC_RELAXED);
    if (thread == 0)
        team->waited = cbnorm_now() - team->began;
    cbnorm_own_mode = cbnorm_get_mode();
    if (cbnorm_own_mode != team->mode)
        cbnorm_set_mode(team->mode);
}

static inline void cbnorm_barrier(cbnorm_team *team, int thread) {
    int passed = __atomic_load_n(&team->passed, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) < cbnorm_team_size(team)) {
        cbnorm_wait(team, thread, &team->passed, passed + 1);
    } else {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
        cbnorm_advance(team, &team->passed);
    }
}

/* Last in the region. */
static inline void cbnorm_leave_team(cbnorm_team *team, int thread) {
    if (cbnorm_own_mode != team->mode)
        cbnorm_set_mode(cbnorm_own_mode);
    if (thread == 0)
        cbnorm_wait(team, thread, &team->left, cbnorm_team_size(team) - 1);
    else
        cbnorm_advance(team, &team->left);
}

#else

static inline double cbnorm_now(void) { return 0; }
static inline int cbnorm_threads_there(int threads) { return threads; }
static inline cbnorm_team cbnorm_new_team(int threads) {
    cbnorm_team team = {1};
    (void)threads;
    return team;
}
static inline int cbnorm_team_size(const cbnorm_team *team) { return team->threads; }
static inline void cbnorm_enter_team(cbnorm_team *team, int thread) { (void)team, (void)thread; }
static inline void cbnorm_barrier(cbnorm_team *team, int thread) { (void)team, (void)thread; }
static inline void cbnorm_leave_team(cbnorm_team *team, int thread) { (void)team, (void)thread; }

#endif
#endif
