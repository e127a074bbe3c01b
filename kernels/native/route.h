/* The gate after its matrix product: softmax, optional groups, top-k, weights in id order. */
#ifndef JANUS_ROUTE_H
#define JANUS_ROUTE_H

#include "parallel.h"
#include "vmath.h"

/* Keeps the k best of n scores in ids, best first; ties and NaN leave the lower id ahead. */
static void keep_best(const float *scores, int64_t n, int64_t k, int32_t *ids) {
    int64_t held = 0;
    for (int64_t i = 0; i < n; i++) {
        if (held == k && !(scores[i] > scores[ids[k - 1]])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && scores[i] > scores[ids[at - 1]]; at--) ids[at] = ids[at - 1];
        ids[at] = (int32_t)i;
    }
}

static void sort_ascending(int32_t *ids, int64_t k) {
    for (int64_t i = 1; i < k; i++) {
        int32_t id = ids[i];
        int64_t at = i;
        for (; at > 0 && ids[at - 1] > id; at--) ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

static void softmax_row(const float *logits, int64_t n, float *p) {
    v16 best = {0}, sum = {0};
    for (int64_t e = 0; e < n; e += LANES) {
        v16 part = v16_load(logits + e, n - e, -__builtin_inff());
        for (int i = 0; i < NV; i++) best.v[i] = e ? v_max(best.v[i], part.v[i]) : part.v[i];
    }
    vf top = v_set(v16_max(best));
    for (int64_t e = 0; e < n; e += LANES) {
        v16 part = v16_load(logits + e, n - e, -__builtin_inff());
        for (int i = 0; i < NV; i++) {
            part.v[i] = v_exp(part.v[i] - top);
            sum.v[i] += part.v[i];
        }
        v16_store(p + e, part, n - e);
    }
    float total = v16_sum(sum);
    for (int64_t e = 0; e < n; e++) p[e] = p[e] / total;
}

/* Sets to 0 the scores outside the best `kept` of `groups` groups, judged by their largest score. */
static void limit_groups(float *p, int64_t n, int64_t groups, int64_t kept, float *best,
                         int32_t *ids) {
    int64_t size = n / groups, at = 0;
    for (int64_t g = 0; g < groups; g++) {
        best[g] = p[g * size];
        for (int64_t i = 1; i < size; i++)
            best[g] = p[g * size + i] > best[g] ? p[g * size + i] : best[g];
    }
    keep_best(best, groups, kept, ids);
    sort_ascending(ids, kept);
    for (int64_t g = 0; g < groups; g++) {
        if (at < kept && ids[at] == g)
            at++;
        else
            memset(p + g * size, 0, (size_t)size * 4);
    }
}

/* One row's ids, ascending, and weights. groups 0: no group limit, kept is then unused. */
static void route_row(const float *logits, int64_t num_experts, int64_t k, int renormalize,
                      float scale, int64_t groups, int64_t kept, int32_t *ids, float *weights) {
    float p[num_experts], best[groups + 1], sum = 0.0f;
    int32_t group_ids[kept + 1];
    softmax_row(logits, num_experts, p);
    if (groups) limit_groups(p, num_experts, groups, kept, best, group_ids);
    keep_best(p, num_experts, k, ids);
    sort_ascending(ids, k);
    for (int64_t i = 0; i < k; i++) sum += p[ids[i]];
    for (int64_t i = 0; i < k; i++)
        weights[i] = (renormalize ? p[ids[i]] / sum : p[ids[i]]) * scale;
}

void janus_route(const float *logits, int64_t num_rows, int64_t num_experts, int64_t k,
                 int renormalize, float scale, int64_t groups, int64_t kept, int32_t *ids,
                 float *weights, int max_threads) {
    int threads = threads_for(num_rows * num_experts * 16, num_rows, max_threads);
    PARALLEL(threads) {
        span s = my_span(num_rows, threads);
        for (int64_t n = s.lo; n < s.hi; n++)
            route_row(logits + n * num_experts, num_experts, k, renormalize, scale, groups, kept,
                      ids + n * k, weights + n * k);
    }
}

#endif
