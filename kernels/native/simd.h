/* Vectors of the widest kind the compiler was told of, and weights of three dtypes read into them.
 *
 * Everything is expressed over 16 lanes (NV vectors of VL floats), so a lane's chain of roundings is
 * the same on every instruction set with fused multiply-add. Contraction is off: fma is written out.
 */
#ifndef JANUS_SIMD_H
#define JANUS_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#define ISA_NAME "avx512"
#elif defined(__AVX2__) && defined(__FMA__)
#define VL 8
#define ISA_NAME "avx2"
#elif defined(__aarch64__)
#define VL 4
#define ISA_NAME "neon"
#else
#define VL 4
#define ISA_NAME "generic"
#endif

#define LANES 16
#define NV (LANES / VL)
#define ALWAYS static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VL * 4)));
typedef float vf_mem __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef struct {
    vf v[NV];
} v16;

/* Weight dtypes: the numbers are shared with the Python side. */
enum { F32 = 0, BF16 = 1, F16 = 2 };

ALWAYS size_t dtype_bytes(int dt) { return dt == F32 ? 4 : 2; }
ALWAYS vf v_load(const float *p) { return *(const vf_mem *)p; }
ALWAYS void v_store(float *p, vf x) { *(vf_mem *)p = x; }

/* x - (+0) is x for every x, signed zeros included, so this is a plain broadcast. */
ALWAYS vf v_set(float x) { return x - (vf){0}; }

ALWAYS vf v_fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

ALWAYS vf v_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
ALWAYS vf v_max(vf a, vf b) { return v_select(a > b, a, b); }

ALWAYS float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff) << 13, bits;
    float out;
    if ((h & 0x7c00) == 0x7c00) {
        bits = sign | 0x7f800000 | magnitude;
    } else {
        float value;
        memcpy(&value, &magnitude, 4);
        value *= 0x1p112f; /* rebiases the exponent; exact, subnormals included */
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    memcpy(&out, &bits, 4);
    return out;
}

ALWAYS uint16_t f32_to_f16(float x) {
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* subnormal: let the adder round at the unit 2^-24 */
        float value;
        memcpy(&value, &bits, 4);
        value += 0.5f;
        memcpy(&bits, &value, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13));
}

/* VL weights of dtype dt at element index i, as floats. */
ALWAYS vf w_load(const void *base, size_t i, int dt) {
    const uint16_t *h = (const uint16_t *)base + i;
    if (dt == F32) return v_load((const float *)base + i);
#if defined(__AVX512F__)
    __m256i raw = _mm256_loadu_si256((const __m256i *)h);
    if (dt == BF16) return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
    return (vf)_mm512_cvtph_ps(raw);
#else
#if defined(__AVX2__) && defined(__FMA__)
    __m128i raw = _mm_loadu_si128((const __m128i *)h);
    if (dt == BF16) return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
#if defined(__F16C__)
    return (vf)_mm256_cvtph_ps(raw);
#endif
#elif defined(__aarch64__)
    uint16x4_t raw = vld1_u16(h);
    if (dt == BF16) return (vf)vshll_n_u16(raw, 16);
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(raw));
#endif
    vf out;
    for (int lane = 0; lane < VL; lane++) {
        uint32_t bits = (uint32_t)h[lane] << 16;
        float value;
        memcpy(&value, &bits, 4);
        out[lane] = dt == BF16 ? value : f16_to_f32(h[lane]);
    }
    return out;
#endif
}

/* Rounds to the weight dtype and back, to nearest even, as torch does. */
ALWAYS vf v_round_to(vf x, int dt) {
    if (dt == F32) return x;
    if (dt == BF16) {
        vi bits = (vi)x;
        vi rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
        return v_select(x == x, (vf)rounded, x);
    }
    for (int lane = 0; lane < VL; lane++) x[lane] = f16_to_f32(f32_to_f16(x[lane]));
    return x;
}

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
typedef uint16_t h4 __attribute__((vector_size(8)));

/* 16 lanes added (or maximised) along one fixed tree: lane i with i + 8, then + 4, + 2, + 1. */
ALWAYS float v16_sum(v16 x) {
    f4 q[4];
    memcpy(q, &x, sizeof q);
    f4 sum = (q[0] + q[2]) + (q[1] + q[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

ALWAYS f4 f4_max(f4 a, f4 b) {
    i4 mask = a > b;
    return (f4)((mask & (i4)a) | (~mask & (i4)b));
}

ALWAYS float v16_max(v16 x) {
    f4 q[4];
    memcpy(q, &x, sizeof q);
    f4 top = f4_max(f4_max(q[0], q[2]), f4_max(q[1], q[3]));
    float even = top[0] > top[2] ? top[0] : top[2], odd = top[1] > top[3] ? top[1] : top[3];
    return even > odd ? even : odd;
}

/* The first n lanes from memory, the others filled; n >= 16 reads all. */
ALWAYS v16 v16_load(const float *p, int64_t n, float fill) {
    v16 x;
    if (n >= LANES) {
        for (int i = 0; i < NV; i++) x.v[i] = v_load(p + i * VL);
        return x;
    }
    float lane[LANES];
    for (int i = 0; i < LANES; i++) lane[i] = i < n ? p[i] : fill;
    for (int i = 0; i < NV; i++) x.v[i] = v_load(lane + i * VL);
    return x;
}

ALWAYS void v16_store(float *p, v16 x, int64_t n) {
    if (n >= LANES) {
        for (int i = 0; i < NV; i++) v_store(p + i * VL, x.v[i]);
        return;
    }
    float lane[LANES];
    for (int i = 0; i < NV; i++) v_store(lane + i * VL, x.v[i]);
    for (int i = 0; i < n; i++) p[i] = lane[i];
}

#endif
