/* Row-wise and element-wise operations: norms, rotary embedding, SiLU times up. */
#ifndef JANUS_ROWS_H
#define JANUS_ROWS_H

#include <math.h>

#include "parallel.h"
#include "vmath.h"

static void norm_row(const float *x, const float *weight, int64_t dim, float eps, float *y) {
    v16 sum = {0};
    for (int64_t d = 0; d < dim; d += LANES) {
        v16 part = v16_load(x + d, dim - d, 0.0f);
        for (int i = 0; i < NV; i++) sum.v[i] = v_fma(part.v[i], part.v[i], sum.v[i]);
    }
    float scale = 1.0f / sqrtf(v16_sum(sum) / (float)dim + eps);
    for (int64_t d = 0; d < dim; d++) y[d] = weight[d] * (x[d] * scale);
}

/* y = rms_norm(x) * weight; with residual: sum = x + residual first, and y from sum. */
void janus_rms_norm(const float *x, int64_t ldx, const float *residual, float *sum,
                    const float *weight, int64_t num_rows, int64_t dim, float eps, float *y,
                    int max_threads) {
    int threads = threads_for(num_rows * dim, num_rows, max_threads);
    PARALLEL(threads) {
        span s = my_span(num_rows, threads);
        for (int64_t n = s.lo; n < s.hi; n++) {
            const float *row = x + n * ldx;
            if (residual) {
                for (int64_t d = 0; d < dim; d++) sum[n * dim + d] = row[d] + residual[n * dim + d];
                row = sum + n * dim;
            }
            norm_row(row, weight, dim, eps, y + n * dim);
        }
    }
}

/* In place over the last axis of x [num_tokens, num_heads, 2 * half]; cos, sin [num_tokens, half]. */
void janus_rope(float *x, int64_t token_stride, int64_t head_stride, const float *cos,
                const float *sin, int64_t num_tokens, int64_t num_heads, int64_t half,
                int interleaved, int max_threads) {
    int threads = threads_for(num_tokens * num_heads * half * 2, num_tokens, max_threads);
    PARALLEL(threads) {
        span s = my_span(num_tokens, threads);
        for (int64_t t = s.lo; t < s.hi; t++)
            for (int64_t h = 0; h < num_heads; h++) {
                float *row = x + t * token_stride + h * head_stride;
                const float *c = cos + t * half, *n = sin + t * half;
                for (int64_t d = 0; d < half; d++) {
                    float *first = interleaved ? row + 2 * d : row + d;
                    float *second = interleaved ? row + 2 * d + 1 : row + half + d;
                    float a = *first, b = *second;
                    *first = a * c[d] - b * n[d];
                    *second = b * c[d] + a * n[d];
                }
            }
    }
}

/* y = silu(gate) * up over rows with their own strides. */
void janus_silu_mul(const float *gate, int64_t ldg, const float *up, int64_t ldu, int64_t num_rows,
                    int64_t dim, float *y, int max_threads) {
    int threads = threads_for(num_rows * dim * 8, num_rows, max_threads);
    PARALLEL(threads) {
        span s = my_span(num_rows, threads);
        for (int64_t n = s.lo; n < s.hi; n++)
            for (int64_t d = 0; d < dim; d += LANES) {
                v16 g = v16_load(gate + n * ldg + d, dim - d, 0.0f);
                v16 u = v16_load(up + n * ldu + d, dim - d, 0.0f);
                for (int i = 0; i < NV; i++) g.v[i] = v_silu(g.v[i]) * u.v[i];
                v16_store(y + n * dim + d, g, dim - d);
            }
    }
}

#endif
