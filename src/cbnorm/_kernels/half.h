/* Numbers stored in 2 bytes or as integers: into the floats that are computed with, and back, rounded once to nearest
   even. The same bits in every build: F16C where the build has it, integers elsewhere; neither heeds flush-to-zero. */

#ifndef CBNORM_HALF_H
#define CBNORM_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

enum cbnorm_storage {
    CBNORM_NATIVE, CBNORM_HALF, CBNORM_BRAIN, CBNORM_UINT8, CBNORM_INT8, CBNORM_UINT16, CBNORM_INT16,
    CBNORM_UINT32, CBNORM_INT32, CBNORM_BOOL
};

static inline size_t cbnorm_storage_size(int storage, size_t native) {
    switch (storage) {
    case CBNORM_NATIVE: return native;
    case CBNORM_UINT8: case CBNORM_INT8: case CBNORM_BOOL: return 1;
    case CBNORM_UINT32: case CBNORM_INT32: return 4;
    default: return 2;
    }
}

static inline float cbnorm_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t cbnorm_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float cbnorm_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 0)          /* a multiple of 2^-24, which is a normal float */
        return cbnorm_from_bits(cbnorm_to_bits((float)fraction * 0x1p-24f) | sign);
    if (exponent == 31)         /* infinity; a NaN becomes quiet */
        return cbnorm_from_bits(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    return cbnorm_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline uint16_t cbnorm_float_to_half(float value) {
    uint32_t bits = cbnorm_to_bits(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (bits >= 0x477ff000)     /* 65520, which is as near to 65536 as to the largest */
        return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) {    /* below 2^-14: a multiple of 2^-24, which the last bit of a number from 0.5 is */
        if (bits < 0x33000000)
            return (uint16_t)sign;
        return (uint16_t)(sign | (cbnorm_to_bits(cbnorm_from_bits(bits) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

static inline uint16_t cbnorm_float_to_brain(float value) {
    uint32_t bits = cbnorm_to_bits(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

static inline void cbnorm_widen_half(const uint16_t *from, float *to, ptrdiff_t size) {
    ptrdiff_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= size; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < size; i++)
        to[i] = cbnorm_half_to_float(from[i]);
}

static inline void cbnorm_narrow_half(const float *from, uint16_t *to, ptrdiff_t size) {
    ptrdiff_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= size; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < size; i++)
        to[i] = cbnorm_float_to_half(from[i]);
}

static inline void cbnorm_widen_brain(const uint16_t *from, float *to, ptrdiff_t size) {
    ptrdiff_t i = 0;
#ifdef __AVX2__
    for (; i + 8 <= size; i += 8) {
        __m256i numbers = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_slli_epi32(numbers, 16));
    }
#endif
    for (; i < size; i++)
        to[i] = cbnorm_from_bits((uint32_t)from[i] << 16);
}

#ifdef __AVX2__
/* What the upper halves of eight floats are rounded to; a NaN stays one. */
static inline __m256i cbnorm_rounded(const float *from) {
    __m256 value = _mm256_loadu_ps(from);
    __m256i bits = _mm256_castps_si256(value), upper = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
}
#endif

static inline void cbnorm_narrow_brain(const float *from, uint16_t *to, ptrdiff_t size) {
    ptrdiff_t i = 0;
#ifdef __AVX2__
    for (; i + 16 <= size; i += 16) {
        __m256i packed = _mm256_packus_epi32(cbnorm_rounded(from + i), cbnorm_rounded(from + i + 8));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
#endif
    for (; i < size; i++)
        to[i] = cbnorm_float_to_brain(from[i]);
}

/* A bool may be any byte but 0. */
#define CBNORM_WIDEN_BOOL(number) \
    for (ptrdiff_t i = 0; i < size; i++) \
        to[i] = (number)(((const uint8_t *)from)[i] != 0); \
    break

#define CBNORM_WIDEN(integer, number) \
    for (ptrdiff_t i = 0; i < size; i++) \
        to[i] = (number)((const integer *)from)[i]; \
    break

/* `size` numbers from `start` on, as floats or doubles; halves as floats alone. */
static inline void cbnorm_widen_float(const void *from, int storage, float *restrict to, ptrdiff_t size) {
    switch (storage) {
    case CBNORM_HALF: cbnorm_widen_half((const uint16_t *)from, to, size); break;
    case CBNORM_BRAIN: cbnorm_widen_brain((const uint16_t *)from, to, size); break;
    case CBNORM_BOOL: CBNORM_WIDEN_BOOL(float);
    case CBNORM_UINT8: CBNORM_WIDEN(uint8_t, float);
    case CBNORM_INT8: CBNORM_WIDEN(int8_t, float);
    case CBNORM_UINT16: CBNORM_WIDEN(uint16_t, float);
    case CBNORM_INT16: CBNORM_WIDEN(int16_t, float);
    default: memcpy(to, from, (size_t)size * sizeof *to);
    }
}

static inline void cbnorm_widen_double(const void *from, int storage, double *restrict to, ptrdiff_t size) {
    switch (storage) {
    case CBNORM_BOOL: CBNORM_WIDEN_BOOL(double);
    case CBNORM_UINT8: CBNORM_WIDEN(uint8_t, double);
    case CBNORM_INT8: CBNORM_WIDEN(int8_t, double);
    case CBNORM_UINT16: CBNORM_WIDEN(uint16_t, double);
    case CBNORM_INT16: CBNORM_WIDEN(int16_t, double);
    case CBNORM_UINT32: CBNORM_WIDEN(uint32_t, double);
    case CBNORM_INT32: CBNORM_WIDEN(int32_t, double);
    default: memcpy(to, from, (size_t)size * sizeof *to);
    }
}

static inline void cbnorm_narrow(const float *from, int storage, void *to, ptrdiff_t size) {
    if (storage == CBNORM_HALF)
        cbnorm_narrow_half(from, (uint16_t *)to, size);
    else
        cbnorm_narrow_brain(from, (uint16_t *)to, size);
}

#endif
