/* The gate after its matrix product: scores, optional groups, top-k, weights in id order. */
#ifndef JANUS_ROUTE_H
#define JANUS_ROUTE_H

#include "parallel.h"
#include "vmath.h"

/* What experts are chosen by: their score, at least LEAST, which also stands for NaN; OUTSIDE the
 * groups kept. */
#define LEAST -1e38f
#define OUTSIDE -2e38f

/* Added to a sum of sigmoid scores before dividing by it, as in DeepSeek-V3's reference. */
#define SIGMOID_SUM_EPS 1e-20f

/* Keeps the k best of n keys, none NaN, in ids, best first; ties leave the lower id ahead. */
static void keep_best(const float *keys, int64_t n, int64_t k, int32_t *ids) {
    int64_t held = 0;
    for (int64_t i = 0; i < n; i++) {
        if (held == k && !(keys[i] > keys[ids[k - 1]])) continue;
        int64_t at = held < k ? held++ : k - 1;
        for (; at > 0 && keys[i] > keys[ids[at - 1]]; at--) ids[at] = ids[at - 1];
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

static void sigmoid_row(const float *logits, int64_t n, float *p) {
    for (int64_t e = 0; e < n; e += LANES) {
        v16 part = v16_load(logits + e, n - e, 0.0f);
        for (int i = 0; i < NV; i++) part.v[i] = v_set(1.0f) / (v_set(1.0f) + v_exp(-part.v[i]));
        v16_store(p + e, part, n - e);
    }
}

/* The largest of n keys, or the sum of the two largest. */
static float group_score(const float *keys, int64_t n, int two) {
    float first = keys[0], second = -__builtin_inff();
    for (int64_t i = 1; i < n; i++) {
        float next = keys[i] > first ? first : keys[i];
        second = next > second ? next : second;
        first = keys[i] > first ? keys[i] : first;
    }
    return two ? first + second : first;
}

/* Scores 0 and keys OUTSIDE for experts outside the best `kept` of `groups` groups. */
static void limit_groups(float *p, float *keys, int64_t n, int64_t groups, int64_t kept, int two) {
    float score[groups];
    int32_t ids[kept];
    int64_t size = n / groups, at = 0;
    for (int64_t g = 0; g < groups; g++) score[g] = group_score(keys + g * size, size, two);
    keep_best(score, groups, kept, ids);
    sort_ascending(ids, kept);
    for (int64_t g = 0; g < groups; g++) {
        if (at < kept && ids[at] == g)
            at++;
        else
            for (int64_t e = g * size; e < (g + 1) * size; e++) p[e] = 0.0f, keys[e] = OUTSIDE;
    }
}

typedef struct {
    int64_t num_experts;
    int sigmoid;        /* else softmax */
    const float *bias;  /* [num_experts] or null: added for the choice alone */
    int64_t k;
    int renormalize;
    float scale;
    int64_t groups, kept; /* groups 0: no group limit, kept is then unused */
} route_rule;

/* One row's ids, ascending, and weights. */
static void route_row(const route_rule *rule, const float *logits, int32_t *ids, float *weights) {
    int64_t n = rule->num_experts, k = rule->k;
    float p[n], keys[n], sum = 0.0f;
    if (rule->sigmoid)
        sigmoid_row(logits, n, p);
    else
        softmax_row(logits, n, p);
    for (int64_t e = 0; e < n; e++) {
        float key = rule->bias ? p[e] + rule->bias[e] : p[e];
        keys[e] = key >= LEAST ? key : LEAST;
    }
    if (rule->groups) limit_groups(p, keys, n, rule->groups, rule->kept, rule->sigmoid);
    keep_best(keys, n, k, ids);
    sort_ascending(ids, k);
    for (int64_t i = 0; i < k; i++) sum += p[ids[i]];
    if (rule->sigmoid) sum += SIGMOID_SUM_EPS;
    for (int64_t i = 0; i < k; i++)
        weights[i] = (rule->renormalize ? p[ids[i]] / sum : p[ids[i]]) * rule->scale;
}

void janus_route(const float *logits, int64_t num_rows, int64_t num_experts, int sigmoid,
                 const float *bias, int64_t k, int renormalize, float scale, int64_t groups,
                 int64_t kept, int32_t *ids, float *weights, int max_threads) {
    route_rule rule = {num_experts, sigmoid, bias, k, renormalize, scale, groups, kept};
    int threads = threads_for(num_rows * num_experts * 16, num_rows, max_threads);
    PARALLEL(threads) {
        span s = my_span(num_rows, threads);
        for (int64_t n = s.lo; n < s.hi; n++)
            route_row(&rule, logits + n * num_experts, ids + n * k, weights + n * k);
    }
}

#endif
