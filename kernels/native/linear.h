/* y = x W^T + bias over packed panels, and the packing. */
#ifndef JANUS_LINEAR_H
#define JANUS_LINEAR_H

#include "micro.h"
#include "parallel.h"

#define ROWS_AT_ONCE 96

/* One weight matrix [num_out, num_in] (row stride `stride` elements) into panels of 16 outputs,
 * panel p at dst + p * panel_elements; outputs beyond num_out are zeros. */
ALWAYS void pack_panels(const char *w, int64_t num_out, int64_t num_in, int64_t stride,
                        size_t bytes, char *dst, int64_t panel_elements) {
    for (int64_t n = 0; n < (num_out + LANES - 1) / LANES * LANES; n++) {
        char *out = dst + ((size_t)(n / LANES) * panel_elements + n % LANES) * bytes;
        const char *in = w + (size_t)n * stride * bytes;
        for (int64_t k = 0; k < num_in; k++) {
            if (n >= num_out)
                memset(out + (size_t)k * LANES * bytes, 0, bytes);
            else
                memcpy(out + (size_t)k * LANES * bytes, in + (size_t)k * bytes, bytes);
        }
    }
}

void janus_pack(const char *w, int64_t num_out, int64_t num_in, int64_t stride, int dt, char *dst,
                int64_t panel_elements) {
    if (dt == F32)
        pack_panels(w, num_out, num_in, stride, 4, dst, panel_elements);
    else
        pack_panels(w, num_out, num_in, stride, 2, dst, panel_elements);
}

/* Panels [p0, p1) for rows [r0, r1), r1 - r0 <= ROWS_AT_ONCE. */
static void linear_block(const float *x, int64_t ldx, int64_t r0, int64_t r1, const char *w, int dt,
                         int64_t num_out, int64_t num_in, const float *bias, float *y, int64_t ldy,
                         int64_t p0, int64_t p1) {
    const float *rows[ROWS_AT_ONCE];
    float tile[ROWS_AT_ONCE * LANES];
    size_t panel_bytes = (size_t)num_in * LANES * dtype_bytes(dt);
    int64_t num_rows = r1 - r0, whole = num_out / LANES;
    for (int64_t r = r0; r < r1; r++) rows[r - r0] = x + r * ldx;
    int step = num_rows <= 3 ? MAX_PANELS : 1;
    for (int64_t p = p0; p < p1;) {
        int64_t left = (p1 < whole ? p1 : whole) - p;
        int take = left >= step ? step : left >= 1 ? (int)left : 1;
        float *c = left >= 1 ? y + r0 * ldy + p * LANES : tile;
        int64_t ldc = left >= 1 ? ldy : LANES;
        int64_t cols = left >= 1 ? take * LANES : num_out - p * LANES;
        gemm_panels(dt, rows, num_rows, w + (size_t)p * panel_bytes, panel_bytes, take, num_in, c,
                    ldc, 0);
        for (int64_t r = 0; r < num_rows; r++) {
            float *out = y + (r0 + r) * ldy + p * LANES;
            if (c == tile) memcpy(out, tile + r * LANES, (size_t)cols * 4);
            if (bias)
                for (int64_t j = 0; j < cols; j++) out[j] += bias[p * LANES + j];
        }
        p += take;
    }
}

/* x [num_rows, num_in] and y [num_rows, num_out], row strides ldx and ldy, unit column strides. */
void janus_linear(const float *x, int64_t ldx, int64_t num_rows, const char *w, int dt,
                  int64_t num_out, int64_t num_in, const float *bias, float *y, int64_t ldy,
                  int max_threads) {
    int64_t panels = (num_out + LANES - 1) / LANES;
    int64_t work = num_in * num_out * (2 + num_rows);
    int threads = threads_for(work, panels, max_threads);
    PARALLEL(threads) {
        span s = my_span(panels, threads);
        for (int64_t r0 = 0; r0 < num_rows; r0 += ROWS_AT_ONCE) {
            int64_t r1 = r0 + ROWS_AT_ONCE < num_rows ? r0 + ROWS_AT_ONCE : num_rows;
            linear_block(x, ldx, r0, r1, w, dt, num_out, num_in, bias, y, ldy, s.lo, s.hi);
        }
    }
}

#endif
