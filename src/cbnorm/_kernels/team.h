/* What Cython has no word for: OpenMP's barrier. Without OpenMP there is one thread. */

#ifndef CBNORM_TEAM_H
#define CBNORM_TEAM_H

#ifdef _OPENMP
#include <omp.h>
#define CBNORM_OPENMP 1
#else
#define CBNORM_OPENMP 0
#endif

static inline int cbnorm_team_size(void) {
#ifdef _OPENMP
    return omp_get_num_threads(); /* may be fewer than were asked for */
#else
    return 1;
#endif
}

static inline void cbnorm_barrier(void) {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

#endif
