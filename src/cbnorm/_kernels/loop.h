/* Which functions are inlined is not left to a compiler's mood; GCC and Clang change it with every version.

   A loop over many numbers is a function of its own: inlined into the walk it would share the registers with all that
   the walk keeps, and load its pointers again in each turn. A part of a loop is always inlined: called, it would keep
   its sums in memory, and its pointers might be to the same numbers for all the compiler knows. */

#ifndef CBNORM_LOOP_H
#define CBNORM_LOOP_H

#if defined(__GNUC__) || defined(__clang__)
#define CBNORM_LOOP __attribute__((noinline)) void
#define CBNORM_LOOP_PART __attribute__((always_inline)) void
#else
#define CBNORM_LOOP void
#define CBNORM_LOOP_PART void
#endif

/* Sums on the stack begin a cache line. Clang aligns them to 16 bytes alone, and every store of a long vector would
   then be to two lines: half as fast again for short runs. */

#if defined(__GNUC__) || defined(__clang__)
#define CBNORM_ALIGNED __attribute__((aligned(64)))
#else
#define CBNORM_ALIGNED
#endif

typedef double cbnorm_sixteen[16] CBNORM_ALIGNED;
typedef double cbnorm_lanes[32] CBNORM_ALIGNED;
typedef float cbnorm_float_lanes[32] CBNORM_ALIGNED;
typedef double cbnorm_tile[256] CBNORM_ALIGNED;

#endif
