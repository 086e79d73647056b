/* Streaming stores: results that will not be read again soon go past the caches, so that no line is read only
   to be overwritten. A quarter faster beyond the last-level cache, several times slower within it. */

#ifndef CBNORM_STREAM_H
#define CBNORM_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i cbnorm_vector;
#define CBNORM_LOAD(from) _mm512_loadu_si512((const void *)(from))
#define CBNORM_STREAM(to, vector) _mm512_stream_si512((void *)(to), vector)
#elif defined(__AVX__)
#include <immintrin.h>
typedef __m256i cbnorm_vector;
#define CBNORM_LOAD(from) _mm256_loadu_si256((const __m256i *)(from))
#define CBNORM_STREAM(to, vector) _mm256_stream_si256((__m256i *)(to), vector)
#elif defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i cbnorm_vector;
#define CBNORM_LOAD(from) _mm_loadu_si128((const __m128i *)(from))
#define CBNORM_STREAM(to, vector) _mm_stream_si128((__m128i *)(to), vector)
#endif

#define CBNORM_CACHE_LINE 64

/* Bytes from an address to the next that begins a cache line. */
static inline size_t cbnorm_to_line(const void *address) {
    return (size_t)(-(uintptr_t)address % CBNORM_CACHE_LINE);
}

/* Writes whole cache lines, `size` bytes, past the caches. With a constant size the values never leave registers. */
static inline void cbnorm_stream(void *to, const void *from, size_t size) {
#ifdef CBNORM_STREAM
    for (size_t i = 0; i < size; i += sizeof(cbnorm_vector))
        CBNORM_STREAM((char *)to + i, CBNORM_LOAD((const char *)from + i));
#else
    memcpy(to, from, size);
#endif
}

/* Asks for `size` bytes that will be read soon. */
static inline void cbnorm_prefetch(const void *from, size_t size) {
#if defined(__GNUC__) || defined(__clang__)
    for (size_t i = 0; i < size; i += CBNORM_CACHE_LINE)
        __builtin_prefetch((const char *)from + i);
#endif
}

/* Before other threads may read what was streamed. */
static inline void cbnorm_stream_end(void) {
#ifdef CBNORM_STREAM
    _mm_sfence();
#endif
}

#endif
