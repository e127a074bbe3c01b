/* Paged attention: online softmax over blocks of 32 absolute positions.
 *
 * A work item is a run of tokens of one sequence times some query heads of one KV head. Keys and
 * values of a block are laid out once as panels and shared by the item's rows. A row takes blocks
 * 0..position/32 in order; which rows share an item never enters its chains.
 */
#ifndef JANUS_ATTENTION_H
#define JANUS_ATTENTION_H

#include "micro.h"
#include "parallel.h"
#include "vmath.h"

#define SPAN 32          /* positions a block */
#define ITEM_ROWS 48     /* rows an item holds at most */
#define ITEM_HEADS 16    /* query heads an item holds at most */
#define KEY_DIMS 64      /* dimensions transposed at a time: a piece of a panel stays in L1 */

typedef struct {
    const float *q;              /* [num_tokens, num_heads, head_dim] */
    const char *k, *v;           /* [blocks, block_size, kv_heads, dim], strides in elements */
    int64_t k_block, k_pos, k_head, v_block, v_pos, v_head;
    int dt;
    const int32_t *tables;       /* [num_seqs, table_width] */
    const int32_t *seq_ids, *positions;
    int64_t table_width, num_tokens, num_heads, kv_heads, head_dim, v_dim, block_size;
    float scale;
    float *out;                  /* [num_tokens, num_heads, v_dim] */
    int32_t *runs;               /* [num_tokens + 1] first token of every run */
    int64_t num_runs, head_groups;
} attention_job;

/* Scratch of one thread, cut from one float array. */
typedef struct {
    float *q, *keys, *values, *scores, *acc, *top, *total;
} attention_scratch;

static int64_t pad16(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

int64_t janus_attention_scratch(int64_t head_dim, int64_t v_dim) {
    int64_t rows = ITEM_ROWS, v = pad16(v_dim);
    return rows * (head_dim + SPAN + v + 2) + SPAN * (head_dim + v) + LANES;
}

static attention_scratch cut(const attention_job *job, float *base) {
    attention_scratch s;
    s.keys = base;
    s.values = s.keys + SPAN * job->head_dim;
    s.scores = s.values + SPAN * pad16(job->v_dim);
    s.acc = s.scores + ITEM_ROWS * SPAN;
    s.q = s.acc + ITEM_ROWS * pad16(job->v_dim);
    s.top = s.q + ITEM_ROWS * job->head_dim;
    s.total = s.top + ITEM_ROWS;
    return s;
}

ALWAYS f4 load4(const char *base, size_t i, int dt) {
    f4 x;
    h4 h;
    if (dt == F32) {
        memcpy(&x, base + i * 4, 16);
        return x;
    }
    memcpy(&h, base + i * 2, 8);
    if (dt == BF16) return (f4)(__builtin_convertvector(h, u4) << 16);
#if defined(__F16C__)
    return (f4)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(base + i * 2)));
#else
    for (int lane = 0; lane < 4; lane++) x[lane] = f16_to_f32(h[lane]);
    return x;
#endif
}

ALWAYS float load1(const char *base, size_t i, int dt) {
    f4 x = {0};
    char pad[16] = {0};
    memcpy(pad, base + i * dtype_bytes(dt), dtype_bytes(dt));
    x = load4(pad, 0, dt);
    return x[0];
}

/* Dimensions [d, end) of four positions' keys, transposed into four columns of a panel: dst[d * 16]. */
ALWAYS void keys_of_four(const char *const *src, int64_t d, int64_t end, float *dst, const int dt) {
    for (; d + 4 <= end; d += 4) {
        f4 a = load4(src[0], d, dt), b = load4(src[1], d, dt);
        f4 c = load4(src[2], d, dt), e = load4(src[3], d, dt);
        f4 ab0 = __builtin_shuffle(a, b, (i4){0, 4, 1, 5});
        f4 ab1 = __builtin_shuffle(a, b, (i4){2, 6, 3, 7});
        f4 ce0 = __builtin_shuffle(c, e, (i4){0, 4, 1, 5});
        f4 ce1 = __builtin_shuffle(c, e, (i4){2, 6, 3, 7});
        f4 t0 = __builtin_shuffle(ab0, ce0, (i4){0, 1, 4, 5});
        f4 t1 = __builtin_shuffle(ab0, ce0, (i4){2, 3, 6, 7});
        f4 t2 = __builtin_shuffle(ab1, ce1, (i4){0, 1, 4, 5});
        f4 t3 = __builtin_shuffle(ab1, ce1, (i4){2, 3, 6, 7});
        memcpy(dst + (d + 0) * LANES, &t0, 16);
        memcpy(dst + (d + 1) * LANES, &t1, 16);
        memcpy(dst + (d + 2) * LANES, &t2, 16);
        memcpy(dst + (d + 3) * LANES, &t3, 16);
    }
    for (; d < end; d++)
        for (int i = 0; i < 4; i++) dst[d * LANES + i] = load1(src[i], d, dt);
}

/* One position's values into row `pos` of the value panels [v / 16][SPAN][16]. */
ALWAYS void values_of_one(const char *src, int64_t dim, float *dst, const int dt) {
    int64_t j = 0;
    for (; j + LANES <= dim; j += LANES)
        for (int i = 0; i < NV; i++)
            v_store(dst + j * SPAN + i * VL, w_load(src, j + i * VL, dt));
    for (; j < pad16(dim); j++)
        dst[j / LANES * SPAN * LANES + j % LANES] = j < dim ? load1(src, j, dt) : 0.0f;
}

/* Where the keys and values of consecutive positions lie: a walk through a sequence's blocks. */
typedef struct {
    const int32_t *table;
    int64_t block, inside;
} walk;

ALWAYS void walk_step(const attention_job *job, walk *w, int64_t kv_head, const char **k,
                      const char **v) {
    size_t bytes = dtype_bytes(job->dt);
    int64_t block = w->table[w->block];
    *k = job->k + (size_t)(block * job->k_block + w->inside * job->k_pos + kv_head * job->k_head) * bytes;
    *v = job->v + (size_t)(block * job->v_block + w->inside * job->v_pos + kv_head * job->v_head) * bytes;
    if (++w->inside == job->block_size) w->inside = 0, w->block++;
}

ALWAYS void fetch_ahead(const char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/* Lays out `count` positions from where w stands; the rest of the block repeats the last one, which
 * is finite. Meanwhile the next block, `following` positions of it, is fetched into the cache. */
ALWAYS void load_block(const attention_job *job, walk *w, int64_t kv_head, int64_t count,
                       int64_t following, attention_scratch *s, const int dt) {
    const char *keys[SPAN], *value, *next_key;
    int64_t bytes = (int64_t)dtype_bytes(dt);
    walk next;
    for (int64_t i = 0; i < count; i++) {
        walk_step(job, w, kv_head, &keys[i], &value);
        values_of_one(value, job->v_dim, s->values + i * LANES, dt);
    }
    for (int64_t i = count; i < SPAN; i++) keys[i] = keys[count - 1];
    next = *w;
    for (int64_t i = 0; i < following; i++) {
        walk_step(job, &next, kv_head, &next_key, &value);
        fetch_ahead(next_key, job->head_dim * bytes);
        fetch_ahead(value, job->v_dim * bytes);
    }
    for (int64_t half = 0; half < SPAN; half += LANES)
        for (int64_t d = 0; d < job->head_dim; d += KEY_DIMS) {
            int64_t end = d + KEY_DIMS < job->head_dim ? d + KEY_DIMS : job->head_dim;
            for (int64_t i = 0; i < LANES; i += 4)
                keys_of_four(keys + half + i, d, end, s->keys + half * job->head_dim + i, dt);
        }
}

/* One row's online softmax over a block: scores become weights, acc and total are rescaled. */
static void softmax_block(float *scores, int64_t valid, float *acc, int64_t v_dim, float *top,
                          float *total) {
    v16 part[SPAN / LANES], sum;
    float best = *top;
    for (int h = 0; h < SPAN / LANES; h++) {
        part[h] = v16_load(scores + h * LANES, valid - h * LANES, -__builtin_inff());
        float m = v16_max(part[h]);
        best = m > best ? m : best;
    }
    for (int h = 0; h < SPAN / LANES; h++)
        for (int i = 0; i < NV; i++) {
            part[h].v[i] = v_exp(part[h].v[i] - v_set(best));
            v_store(scores + h * LANES + i * VL, part[h].v[i]);
            sum.v[i] = h ? sum.v[i] + part[h].v[i] : part[h].v[i];
        }
    float scale = v_exp(v_set(*top - best))[0];
    *total = *total * scale + v16_sum(sum);
    *top = best;
    if (scale != 1.0f)
        for (int64_t j = 0; j < v_dim; j += VL) v_store(acc + j, v_load(acc + j) * v_set(scale));
}

/* Rows [r0, r1) of the item against the block that is laid out, `valid` positions of it. */
static void attend(const attention_job *job, attention_scratch *s, int64_t r0, int64_t r1,
                   int64_t valid) {
    const float *rows[ITEM_ROWS];
    int64_t v = pad16(job->v_dim), num_rows = r1 - r0;
    for (int64_t r = r0; r < r1; r++) rows[r - r0] = s->q + r * job->head_dim;
    gemm_panels(F32, rows, num_rows, (const char *)s->keys, (size_t)job->head_dim * LANES * 4,
                SPAN / LANES, job->head_dim, s->scores + r0 * SPAN, SPAN, 0);
    for (int64_t r = r0; r < r1; r++) {
        softmax_block(s->scores + r * SPAN, valid, s->acc + r * v, v, s->top + r, s->total + r);
        rows[r - r0] = s->scores + r * SPAN;
    }
    gemm_panels(F32, rows, num_rows, (const char *)s->values, SPAN * LANES * 4, (int)(v / LANES),
                valid, s->acc + r0 * v, v, 1);
}

static void item_begin(const attention_job *job, attention_scratch *s, int64_t t0, int64_t t1,
                       int64_t h0, int64_t heads) {
    int64_t r = 0, v = pad16(job->v_dim);
    for (int64_t t = t0; t < t1; t++)
        for (int64_t h = h0; h < h0 + heads; h++, r++) {
            const float *q = job->q + (t * job->num_heads + h) * job->head_dim;
            for (int64_t d = 0; d < job->head_dim; d++)
                s->q[r * job->head_dim + d] = q[d] * job->scale;
            s->top[r] = -__builtin_inff();
            s->total[r] = 0.0f;
            memset(s->acc + r * v, 0, (size_t)v * 4);
        }
}

static void item_end(const attention_job *job, attention_scratch *s, int64_t t0, int64_t t1,
                     int64_t h0, int64_t heads) {
    int64_t r = 0, v = pad16(job->v_dim);
    for (int64_t t = t0; t < t1; t++)
        for (int64_t h = h0; h < h0 + heads; h++, r++)
            for (int64_t j = 0; j < job->v_dim; j++)
                job->out[(t * job->num_heads + h) * job->v_dim + j] =
                    s->acc[r * v + j] / s->total[r];
}

/* Tokens [t0, t1) of one sequence, `heads` query heads from h0, all of one KV head. */
static void run_item(const attention_job *job, attention_scratch *s, int64_t t0, int64_t t1,
                     int64_t h0, int64_t heads) {
    walk w = {job->tables + (int64_t)job->seq_ids[t0] * job->table_width, 0, 0};
    int64_t kv_head = h0 / (job->num_heads / job->kv_heads), last = 0;
    for (int64_t t = t0; t < t1; t++) last = job->positions[t] > last ? job->positions[t] : last;
    item_begin(job, s, t0, t1, h0, heads);
    for (int64_t first = 0; first <= last; first += SPAN) {
        int64_t left = last - first + 1, count = left < SPAN ? left : SPAN;
        int64_t following = left - count < SPAN ? left - count : SPAN;
        if (job->dt == F32)
            load_block(job, &w, kv_head, count, following, s, F32);
        else if (job->dt == BF16)
            load_block(job, &w, kv_head, count, following, s, BF16);
        else
            load_block(job, &w, kv_head, count, following, s, F16);
        for (int64_t t = t0; t < t1;) {
            int64_t valid = job->positions[t] - first + 1, end = t + 1;
            if (valid >= SPAN) /* tokens that see the whole block go together */
                while (end < t1 && job->positions[end] - first + 1 >= SPAN) end++;
            if (valid > 0)
                attend(job, s, (t - t0) * heads, (end - t0) * heads, valid < SPAN ? valid : SPAN);
            t = end;
        }
    }
    item_end(job, s, t0, t1, h0, heads);
}

#include "attention_entry.h"

#endif
