/* The routed experts of one rank: rows grouped by slot, gate and up in one pass, exact combine.
 *
 * Storage: gate_up[slot] holds panels gate 0, up 0, gate 1, up 1, ... of `hidden` depth;
 * down[slot] holds panels of `inter` depth.
 */
#ifndef JANUS_EXPERTS_H
#define JANUS_EXPERTS_H

#include <math.h>

#include "linear.h"
#include "vmath.h"

/* Quanta below a token's largest input: bits kept in the combine, and the C of (v + C) - C. */
#define QUANTUM_BITS 38

typedef struct {
    const float *x;
    int64_t ldx, num_rows, top_k;
    const int32_t *slots;  /* [num_rows, top_k], -1: not here */
    const float *weights;  /* [num_rows, top_k] */
    const char *gate_up, *down;
    int dt;
    int64_t num_slots, hidden, inter;
    double *out;           /* [num_rows, hidden], added to */
    /* Scratch, cut from one array of words in this order. */
    double *carry;         /* [num_rows] 1.5 * 2^52 * quantum */
    float *act;            /* [num_rows * top_k, inter padded] silu(gate) * up */
    int32_t *entries;      /* [num_rows * top_k] flat (row, choice), by slot */
    int32_t *starts;       /* [num_slots + 1] */
} experts_job;

static int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* Counting sort of the (row, choice) pairs by slot, stable. Returns the number of pairs here. */
static int64_t group_by_slot(experts_job *job) {
    int64_t pairs = job->num_rows * job->top_k, total = 0;
    memset(job->starts, 0, (size_t)(job->num_slots + 1) * 4);
    for (int64_t i = 0; i < pairs; i++)
        if (job->slots[i] >= 0) job->starts[job->slots[i] + 1]++, total++;
    for (int64_t s = 0; s < job->num_slots; s++) job->starts[s + 1] += job->starts[s];
    for (int64_t i = 0; i < pairs; i++)
        if (job->slots[i] >= 0) job->entries[job->starts[job->slots[i]]++] = (int32_t)i;
    for (int64_t s = job->num_slots; s > 0; s--) job->starts[s] = job->starts[s - 1];
    job->starts[0] = 0;
    return total;
}

/* e is the least exponent with max |x| < 2^e (0 for a row of zeros, 128 if not finite). */
static double carry_of_row(const float *x, int64_t n) {
    int32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float top;
    int exponent = 0;
    memcpy(&top, &largest, 4);
    if (largest >= 0x7f800000)
        exponent = 128;
    else if (largest)
        frexpf(top, &exponent);
    return ldexp(1.5, 52 - QUANTUM_BITS + exponent);
}

/* Inter panels [p0, p1) of one slot's gate and up, for entries [e0, e1) of at most ROWS_AT_ONCE. */
ALWAYS void gate_up_block(const experts_job *job, int64_t slot, int64_t e0, int64_t e1, int64_t p0,
                          int64_t p1, const int dt) {
    const float *rows[ROWS_AT_ONCE];
    float tile[ROWS_AT_ONCE * MAX_PANELS * LANES];
    size_t panel_bytes = (size_t)job->hidden * LANES * dtype_bytes(dt);
    int64_t inter = round_up(job->inter), num_rows = e1 - e0;
    const char *w = job->gate_up + (size_t)slot * (size_t)(2 * inter / LANES) * panel_bytes;
    for (int64_t e = e0; e < e1; e++)
        rows[e - e0] = job->x + job->entries[e] / job->top_k * job->ldx;
    int step = num_rows <= 3 ? MAX_PANELS / 2 : 1;
    for (int64_t p = p0; p < p1; p += step) {
        int take = p1 - p < step ? (int)(p1 - p) : step, width = 2 * take * LANES;
        gemm_panels(dt, rows, num_rows, w + (size_t)(2 * p) * panel_bytes, panel_bytes, 2 * take,
                    job->hidden, tile, width, 0);
        for (int64_t r = 0; r < num_rows; r++)
            for (int i = 0; i < take * NV; i++) {
                const float *gate = tile + r * width + i / NV * 2 * LANES + i % NV * VL;
                vf g = v_round_to(v_load(gate), dt), u = v_round_to(v_load(gate + LANES), dt);
                vf h = v_round_to(v_round_to(v_silu(g), dt) * u, dt);
                v_store(job->act + (e0 + r) * inter + p * LANES + i * VL, h);
            }
    }
}

/* Hidden panels [p0, p1) of one slot's down, weighted and added to the rows' double sums. */
ALWAYS void down_block(const experts_job *job, int64_t slot, int64_t e0, int64_t e1, int64_t p0,
                       int64_t p1, const int dt) {
    const float *rows[ROWS_AT_ONCE];
    float tile[ROWS_AT_ONCE * MAX_PANELS * LANES];
    size_t panel_bytes = (size_t)job->inter * LANES * dtype_bytes(dt);
    int64_t inter = round_up(job->inter), num_rows = e1 - e0;
    const char *w = job->down + (size_t)slot * (size_t)(round_up(job->hidden) / LANES) * panel_bytes;
    for (int64_t e = e0; e < e1; e++) rows[e - e0] = job->act + e * inter;
    int step = num_rows <= 3 ? MAX_PANELS : 1;
    for (int64_t p = p0; p < p1; p += step) {
        int take = p1 - p < step ? (int)(p1 - p) : step, width = take * LANES;
        gemm_panels(dt, rows, num_rows, w + (size_t)p * panel_bytes, panel_bytes, take, job->inter,
                    tile, width, 0);
        int64_t cols = job->hidden - p * LANES < width ? job->hidden - p * LANES : width;
        for (int64_t r = 0; r < num_rows; r++) {
            int32_t entry = job->entries[e0 + r];
            int64_t n = entry / job->top_k;
            double *out = job->out + n * job->hidden + p * LANES, carry = job->carry[n];
            vf weight = v_set(job->weights[entry]);
            float *o = tile + r * width;
            for (int i = 0; i < take * NV; i++)
                v_store(o + i * VL, weight * v_round_to(v_load(o + i * VL), dt));
            for (int64_t j = 0; j < cols; j++) out[j] += ((double)o[j] + carry) - carry;
        }
    }
}

typedef void block_fn(const experts_job *, int64_t, int64_t, int64_t, int64_t, int64_t);
#define BLOCKS(NAME, DT)                                                                       \
    static void NAME##_##DT(const experts_job *job, int64_t slot, int64_t e0, int64_t e1,      \
                            int64_t p0, int64_t p1) {                                          \
        NAME##_block(job, slot, e0, e1, p0, p1, DT);                                           \
    }
BLOCKS(gate_up, 0) BLOCKS(gate_up, 1) BLOCKS(gate_up, 2)
BLOCKS(down, 0) BLOCKS(down, 1) BLOCKS(down, 2)

/* Every slot with rows, for this thread's span of panels; no two threads share a column. */
static void over_slots(const experts_job *job, block_fn *block, span panels) {
    if (panels.lo == panels.hi) return;
    for (int64_t slot = 0; slot < job->num_slots; slot++)
        for (int64_t e = job->starts[slot]; e < job->starts[slot + 1]; e += ROWS_AT_ONCE) {
            int64_t end = e + ROWS_AT_ONCE;
            if (end > job->starts[slot + 1]) end = job->starts[slot + 1];
            block(job, slot, e, end, panels.lo, panels.hi);
        }
}

void janus_experts(const float *x, int64_t ldx, int64_t num_rows, int64_t top_k,
                   const int32_t *slots, const float *weights, const char *gate_up,
                   const char *down, int dt, int64_t num_slots, int64_t hidden, int64_t inter,
                   double *out, void *scratch, int max_threads) {
    double *carry = scratch;
    float *act = (float *)(carry + num_rows);
    int32_t *entries = (int32_t *)(act + num_rows * top_k * round_up(inter));
    experts_job job = {x,         ldx,    num_rows, top_k, slots, weights, gate_up, down,    dt,
                       num_slots, hidden, inter,    out,   carry, act,     entries,
                       entries + num_rows * top_k};
    block_fn *const up_fns[3] = {gate_up_0, gate_up_1, gate_up_2};
    block_fn *const down_fns[3] = {down_0, down_1, down_2};
    int64_t pairs = group_by_slot(&job);
    int64_t inter_panels = round_up(inter) / LANES, hidden_panels = round_up(hidden) / LANES;
    if (!pairs) return;
    int threads = threads_for(pairs * 3 * hidden * inter, inter_panels, max_threads);
    PARALLEL(threads) {
        span rows = my_span(num_rows, threads);
        for (int64_t n = rows.lo; n < rows.hi; n++) carry[n] = carry_of_row(x + n * ldx, hidden);
        over_slots(&job, up_fns[dt], my_span(inter_panels, threads));
        if (threads > 1) {
#pragma omp barrier
        }
        over_slots(&job, down_fns[dt], my_span(hidden_panels, threads));
    }
}

#endif
