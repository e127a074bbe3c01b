/* exp and SiLU on vectors: polynomials whose result for an element depends on that element alone. */
#ifndef JANUS_VMATH_H
#define JANUS_VMATH_H

#include "simd.h"

/* Below it exp would be subnormal, which is slow to compute on many CPUs; it is 0 instead. */
#define EXP_MIN -87.33654f
#define EXP_MAX 89.0f

/* exp(x), about 1 ulp; 0 below EXP_MIN, inf above 88.73, NaN stays NaN. */
ALWAYS vf v_exp(vf x) {
    const vf magic = v_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vi tiny = x < v_set(EXP_MIN);
    x = v_select(tiny, v_set(0.0f), x);
    x = v_select(x > v_set(EXP_MAX), v_set(EXP_MAX), x);
    vf shifted = v_fma(x, v_set(1.44269504088896341f), magic);
    vf n = shifted - magic;
    vf r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vf p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_fma(p, r * r, r) + v_set(1.0f);
    /* 2^n in two factors, so that results near the ends of the range round once. */
    vi whole = (vi)shifted - (vi)magic;
    vi half = whole >> 1;
    vf low = (vf)((half + 127) << 23), high = (vf)((whole - half + 127) << 23);
    return v_select(x == x, (vf)(~tiny & (vi)(p * low * high)), x);
}

ALWAYS vf v_silu(vf x) { return x / (v_set(1.0f) + v_exp(-x)); }

#endif
