/* Streaming stores: results that will not be read again soon go past the caches, so that no line is read only
   to be overwritten. Twice as fast beyond the last-level cache, several times slower within it. */

#ifndef CBNORM_STREAM_H
#define CBNORM_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i cbnorm_line;
#define CBNORM_LOAD(from) _mm512_loadu_si512((const void *)(from))
#define CBNORM_STREAM(to, line) _mm512_stream_si512((void *)(to), line)
#elif defined(__AVX__)
#include <immintrin.h>
typedef __m256i cbnorm_line;
#define CBNORM_LOAD(from) _mm256_loadu_si256((const __m256i *)(from))
#define CBNORM_STREAM(to, line) _mm256_stream_si256((__m256i *)(to), line)
#elif defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i cbnorm_line;
#define CBNORM_LOAD(from) _mm_loadu_si128((const __m128i *)(from))
#define CBNORM_STREAM(to, line) _mm_stream_si128((__m128i *)(to), line)
#endif

static inline void cbnorm_stream(void *to, const void *from, size_t size) {
#ifdef CBNORM_STREAM
    char *out = (char *)to;
    const char *in = (const char *)from;
    size_t head = (size_t)(-(uintptr_t)out % sizeof(cbnorm_line)), i;
    if (head > size)
        head = size;
    memcpy(out, in, head);
    for (i = head; i + sizeof(cbnorm_line) <= size; i += sizeof(cbnorm_line))
        CBNORM_STREAM(out + i, CBNORM_LOAD(in + i));
    memcpy(out + i, in + i, size - i);
#else
    memcpy(to, from, size);
#endif
}

/* Before other threads may read what was streamed. */
static inline void cbnorm_stream_end(void) {
#ifdef CBNORM_STREAM
    _mm_sfence();
#endif
}

#endif
