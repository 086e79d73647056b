/* What Cython has no word for: a flag that one thread at a time can take, a cheap clock, pages of one's own. */

#ifndef CBNORM_MEMORY_H
#define CBNORM_MEMORY_H

#include <stddef.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
typedef volatile long cbnorm_flag;
static inline int cbnorm_try(cbnorm_flag *flag) { return _InterlockedExchange(flag, 1) == 0; }
static inline void cbnorm_leave(cbnorm_flag *flag) { _InterlockedExchange(flag, 0); }
#else
typedef char cbnorm_flag;
static inline int cbnorm_try(cbnorm_flag *flag) { return !__atomic_test_and_set(flag, __ATOMIC_ACQUIRE); }
static inline void cbnorm_leave(cbnorm_flag *flag) { __atomic_clear(flag, __ATOMIC_RELEASE); }
#endif

#ifdef __linux__
#include <sys/mman.h>
#include <time.h>
#endif

/* Milliseconds, a few late; 0 where there is no /proc to look at from time to time. */
static inline long long cbnorm_milliseconds(void) {
#if defined(__linux__) && defined(CLOCK_MONOTONIC_COARSE)
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return 1000LL * now.tv_sec + now.tv_nsec / 1000000;
#else
    return 0;
#endif
}

/* Pages of one's own, huge ones where the system has them; NULL where there are none. */
static inline void *cbnorm_map(size_t size, int huge) {
#ifdef __linux__
    void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
#ifdef MADV_HUGEPAGE
    if (huge)
        madvise(start, size, MADV_HUGEPAGE); /* where it is refused, pages are small */
#endif
    return start;
#else
    (void)size;
    (void)huge;
    return NULL;
#endif
}

static inline void cbnorm_unmap(void *start, size_t size) {
#ifdef __linux__
    munmap(start, size);
#else
    (void)start;
    (void)size;
#endif
}

/* Python's stable ABI has no contexts: there results come from NumPy's own memory (CBNORM_ABI3 in setup.py). */
#ifdef Py_LIMITED_API
#define CBNORM_HAS_CONTEXTS 0
#define PyContext_New() Py_NewRef(Py_None)
#define PyContext_Copy(context) Py_NewRef(context)
#define PyContext_Enter(context) ((void)(context), 0)
#define PyContext_Exit(context) ((void)(context), 0)
#else
#define CBNORM_HAS_CONTEXTS 1
#endif

#endif
