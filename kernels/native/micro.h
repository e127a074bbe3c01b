/* The one matrix product all others are built from: rows times panels of 16 columns.
 *
 * c[r][j] = sum over k of a[r][k] * b[k][j], each element one sequential fma chain over k = 0..K-1.
 * How many rows and panels a call takes together never enters an element's chain; nor does cutting
 * K into blocks, since a chain is stored and taken up again in float32.
 */
#ifndef JANUS_MICRO_H
#define JANUS_MICRO_H

#include "simd.h"

#define MAX_ROWS 6
#define MAX_PANELS 4
/* Accumulators that fit the register file beside one weight vector and one broadcast. */
#define MAX_ACC (VL == 8 ? 12 : 24)
/* Depth of a block over k: the rows of one block stay in L1 while panels stream past. */
#define BLOCK_K 1024

typedef void micro_fn(const float *const *a, const char *b, size_t panel_bytes, int64_t k0,
                      int64_t k1, float *c, int64_t ldc, int add, const char *ahead,
                      int64_t ahead_step);

/* Vector j of step k over panels side by side. */
ALWAYS vf panel_load(const char *b, size_t panel_bytes, int64_t k, int j, const int dt) {
    const char *panel = b + (size_t)(j / NV) * panel_bytes;
    return w_load(panel, (size_t)k * LANES + (size_t)(j % NV) * VL, dt);
}

ALWAYS void micro_body(const int rows, const int panels, const int dt, const float *const *a,
                       const char *b, size_t panel_bytes, int64_t k0, int64_t k1, float *c,
                       int64_t ldc, int add, const char *ahead, int64_t ahead_step) {
    vf acc[MAX_ROWS][MAX_PANELS * NV];
    const float *row[MAX_ROWS];
    const int vectors = panels * NV;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        row[r] = a[r];
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) acc[r][j] = add ? v_load(c + r * ldc + j * VL) : v_set(0);
    }
    /* The fewer of the two, broadcasts or weight vectors, stays in registers over a step. */
    for (int64_t k = k0; k < k1; k++) {
        if (panels == 1) {
            __builtin_prefetch(ahead);
            ahead += ahead_step;
        }
        vf held[MAX_PANELS * NV > MAX_ROWS ? MAX_PANELS * NV : MAX_ROWS];
        if (rows <= vectors) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) held[r] = v_set(row[r][k]);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) {
                vf w = panel_load(b, panel_bytes, k, j, dt);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) acc[r][j] = v_fma(held[r], w, acc[r][j]);
            }
        } else {
#pragma GCC unroll 16
            for (int j = 0; j < vectors; j++) held[j] = panel_load(b, panel_bytes, k, j, dt);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                vf x = v_set(row[r][k]);
#pragma GCC unroll 16
                for (int j = 0; j < vectors; j++) acc[r][j] = v_fma(x, held[j], acc[r][j]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int j = 0; j < vectors; j++) v_store(c + r * ldc + j * VL, acc[r][j]);
}

#define MICRO(R, P, DT)                                                                          \
    static void micro_##R##_##P##_##DT(const float *const *a, const char *b, size_t pb,          \
                                       int64_t k0, int64_t k1, float *c, int64_t ldc, int add,   \
                                       const char *ahead, int64_t ahead_step) {                  \
        micro_body(R, P, DT, a, b, pb, k0, k1, c, ldc, add, ahead, ahead_step);                  \
    }
#define MICRO_DT(R, P) MICRO(R, P, 0) MICRO(R, P, 1) MICRO(R, P, 2)
#define MICRO_R(R) MICRO_DT(R, 1) MICRO_DT(R, 2) MICRO_DT(R, 4)
MICRO_R(1) MICRO_R(2) MICRO_R(3) MICRO_R(4) MICRO_R(5) MICRO_R(6)

#define ENTRY_P(R, P) {micro_##R##_##P##_0, micro_##R##_##P##_1, micro_##R##_##P##_2}
#define ENTRY(R) {ENTRY_P(R, 1), ENTRY_P(R, 2), ENTRY_P(R, 4)}
static micro_fn *const micro_table[MAX_ROWS][3][3] = {ENTRY(1), ENTRY(2), ENTRY(3),
                                                      ENTRY(4), ENTRY(5), ENTRY(6)};

/* One block of rows times panels side by side, taken as many at once as registers allow.
 * Meanwhile part `part` of `parts` of what follows each panel in memory is fetched into the cache. */
static void row_block(int dt, const float *const *a, int rows, const char *b, size_t panel_bytes,
                      int panels, int64_t k0, int64_t k1, float *c, int64_t ldc, int add,
                      int64_t part, int64_t parts) {
    int widest = MAX_ACC / (rows * NV);
    int64_t k_bytes = LANES * (int64_t)dtype_bytes(dt), block_bytes = (k1 - k0) * k_bytes;
    for (int p = 0; p < panels;) {
        int room = panels - p < widest ? panels - p : widest;
        int level = room >= 4 ? 2 : room >= 2 ? 1 : 0;
        const char *panel = b + (size_t)p * panel_bytes;
        micro_table[rows - 1][level][dt](a, panel, panel_bytes, k0, k1, c + p * LANES, ldc, add,
                                         panel + k1 * k_bytes + block_bytes * part / parts,
                                         k_bytes / parts);
        p += 1 << level;
    }
}

/* num_rows rows times `panels` panels into c (row stride ldc, panels * 16 columns wide).
 * add: take up the chains that c already holds. Panels lie panel_bytes apart. */
static void gemm_panels(int dt, const float *const *a, int64_t num_rows, const char *b,
                        size_t panel_bytes, int panels, int64_t num_k, float *c, int64_t ldc,
                        int add) {
    int64_t blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t k0 = 0; k0 < num_k; k0 += BLOCK_K) {
        int64_t k1 = k0 + BLOCK_K < num_k ? k0 + BLOCK_K : num_k;
        for (int64_t i = 0; i < blocks; i++) {
            int64_t r0 = num_rows * i / blocks, r1 = num_rows * (i + 1) / blocks;
            row_block(dt, a + r0, (int)(r1 - r0), b, panel_bytes, panels, k0, k1, c + r0 * ldc,
                      ldc, add || k0 > 0, i, blocks);
        }
    }
}

#endif
