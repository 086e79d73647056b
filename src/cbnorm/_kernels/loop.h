/* A loop over numbers is a function of its own, whatever a compiler's inliner thinks of it: inlined into the walk, it
   shares the registers with all that the walk keeps, and GCC and Clang, version by version, load pointers again
   in each turn or do not vectorize. */

#ifndef CBNORM_LOOP_H
#define CBNORM_LOOP_H

#if defined(__GNUC__) || defined(__clang__)
#define CBNORM_LOOP __attribute__((noinline)) void
#else
#define CBNORM_LOOP void
#endif

#endif
