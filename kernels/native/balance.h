/* Which replica serves each choice of an expert; assign.py says what every policy does and why.
 *
 * A rank set is `words` 64-bit words, bit g of word g / 64 for expert rank g. One thread: a decision takes
 * microseconds.
 */
#ifndef JANUS_BALANCE_H
#define JANUS_BALANCE_H

#include <stdint.h>
#include <string.h>

enum { POLICY_AEBS, POLICY_GREEDY, POLICY_EPLB, POLICY_RANDOM, POLICY_FIRST };

typedef struct {
    int64_t num_experts, num_ranks, words;
    const int32_t *slot_of;   /* [experts, ranks] slot counted over all ranks, or -1 */
    const uint64_t *hosts;    /* [experts, words] */
    const int32_t *primary;   /* [experts] */
} slot_map;

typedef struct {
    int64_t num_active;
    int32_t *active;          /* [experts] activated experts, ascending */
    int32_t *rank_of;         /* [experts] of activated ones */
    int32_t *loads;           /* [ranks] activated experts */
} assignment;

static int lowest_rank(const uint64_t *set, int64_t words) {
    for (int64_t w = 0; w < words; w++)
        if (set[w]) return (int)(w * 64 + __builtin_ctzll(set[w]));
    return -1;
}

static int64_t num_hosts(const slot_map *map, int64_t expert) {
    int64_t count = 0;
    for (int64_t w = 0; w < map->words; w++)
        count += __builtin_popcountll(map->hosts[expert * map->words + w]);
    return count;
}

static int nth_host(const slot_map *map, int64_t expert, int64_t n) {
    const uint64_t *set = map->hosts + expert * map->words;
    for (int64_t w = 0; w < map->words; w++) {
        uint64_t word = set[w];
        int64_t here = __builtin_popcountll(word);
        if (n < here) {
            for (; n > 0; n--) word &= word - 1;
            return (int)(w * 64 + __builtin_ctzll(word));
        }
        n -= here;
    }
    return -1;
}

static int meets(const uint64_t *a, const uint64_t *b, int64_t words) {
    uint64_t both = 0;
    for (int64_t w = 0; w < words; w++) both |= a[w] & b[w];
    return both != 0;
}

static void put(assignment *a, int32_t expert, int expert_rank) {
    a->rank_of[expert] = expert_rank;
    a->loads[expert_rank]++;
}

/* Moves an expert from each rank of a path to the next, from `from` at level `depth` to level 0. */
static void shift(const slot_map *map, assignment *a, const uint64_t *levels, int64_t depth,
                  int from) {
    a->loads[from]--;
    for (; depth > 0; depth--) {
        const uint64_t *below = levels + (depth - 1) * map->words;
        int64_t i = 0;
        while (a->rank_of[a->active[i]] != from ||
               !meets(map->hosts + a->active[i] * map->words, below, map->words))
            i++;
        const uint64_t *hosts = map->hosts + a->active[i] * map->words;
        uint64_t able[map->words];
        for (int64_t w = 0; w < map->words; w++) able[w] = hosts[w] & below[w];
        from = lowest_rank(able, map->words);
        a->rank_of[a->active[i]] = from;
    }
    a->loads[from]++;
}

/* One search from the ranks below the bound; moves experts if it comes to a rank above it. */
static int lower_one(const slot_map *map, assignment *a, int32_t bound) {
    int64_t words = map->words;
    uint64_t levels[(map->num_ranks + 1) * words], reached[words], over[words];
    memset(levels, 0, (size_t)words * 8);
    memset(over, 0, (size_t)words * 8);
    for (int64_t g = 0; g < map->num_ranks; g++) {
        if (a->loads[g] < bound) levels[g / 64] |= 1ull << (g % 64);
        if (a->loads[g] > bound) over[g / 64] |= 1ull << (g % 64);
    }
    memcpy(reached, levels, (size_t)words * 8);
    for (int64_t depth = 1, grown = lowest_rank(levels, words) >= 0; grown; depth++) {
        uint64_t *level = levels + depth * words, hit[words];
        memset(level, 0, (size_t)words * 8);
        for (int64_t i = 0; i < a->num_active; i++) {
            int32_t expert = a->active[i], g = a->rank_of[expert];
            if (meets(map->hosts + expert * words, reached, words)) level[g / 64] |= 1ull << (g % 64);
        }
        grown = 0;
        for (int64_t w = 0; w < words; w++) {
            level[w] &= ~reached[w];
            reached[w] |= level[w];
            hit[w] = level[w] & over[w];
            grown |= level[w] != 0;
        }
        int from = lowest_rank(hit, words);
        if (from >= 0) {
            shift(map, a, levels, depth, from);
            return 1;
        }
    }
    return 0;
}

static int32_t fullest(const int32_t *loads, int64_t num_ranks) {
    int32_t most = 0;
    for (int64_t g = 0; g < num_ranks; g++) most = loads[g] > most ? loads[g] : most;
    return most;
}

static void assign_balanced(const slot_map *map, assignment *a) {
    for (int64_t i = 0; i < a->num_active; i++) put(a, a->active[i], map->primary[a->active[i]]);
    int32_t bound = (int32_t)((a->num_active + map->num_ranks - 1) / map->num_ranks);
    while (fullest(a->loads, map->num_ranks) > bound)
        if (!lower_one(map, a, bound)) bound++;
}

static void assign_greedy(const slot_map *map, assignment *a) {
    for (int single = 1; single >= 0; single--)
        for (int64_t i = 0; i < a->num_active; i++) {
            int32_t expert = a->active[i];
            if ((num_hosts(map, expert) == 1) != single) continue;
            int best = -1;
            for (int64_t w = 0; w < map->words; w++)
                for (uint64_t set = map->hosts[expert * map->words + w]; set; set &= set - 1) {
                    int g = (int)(w * 64 + __builtin_ctzll(set));
                    if (best < 0 || a->loads[g] < a->loads[best]) best = g;
                }
            put(a, expert, best);
        }
}

static uint64_t mix(uint64_t draw, uint64_t expert) {
    uint64_t z = draw * 0x9E3779B97F4A7C15ull + (expert + 1) * 0xD1B54A32D192ED03ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

/* counts [experts] tokens of each; slots may be null. scratch: [2 * experts] words of 4 bytes. */
void janus_balance(int policy, const int32_t *ids, int64_t num_choices, int64_t num_experts,
                   int64_t num_ranks, int64_t words, const int32_t *slot_of, const uint64_t *hosts,
                   const int32_t *primary, uint64_t draw, int32_t *slots, int32_t *counts,
                   int32_t *loads, int32_t *scratch) {
    slot_map map = {num_experts, num_ranks, words, slot_of, hosts, primary};
    assignment a = {0, scratch, scratch + num_experts, loads};
    memset(counts, 0, (size_t)num_experts * 4);
    memset(loads, 0, (size_t)num_ranks * 4);
    if (policy == POLICY_EPLB) {
        for (int64_t i = 0; i < num_choices; i++) {
            int32_t expert = ids[i], turn = counts[expert]++;
            int64_t replicas = num_hosts(&map, expert);
            int g = nth_host(&map, expert, turn % replicas);
            if (turn < replicas) loads[g]++;
            if (slots) slots[i] = slot_of[expert * num_ranks + g];
        }
        return;
    }
    for (int64_t i = 0; i < num_choices; i++) counts[ids[i]]++;
    for (int32_t e = 0; e < num_experts; e++)
        if (counts[e]) a.active[a.num_active++] = e;
    if (policy == POLICY_AEBS) assign_balanced(&map, &a);
    if (policy == POLICY_GREEDY) assign_greedy(&map, &a);
    for (int64_t i = 0; i < a.num_active; i++) {
        int32_t e = a.active[i];
        if (policy == POLICY_RANDOM)
            put(&a, e, nth_host(&map, e, (int64_t)(mix(draw, (uint64_t)e) % (uint64_t)num_hosts(&map, e))));
        if (policy == POLICY_FIRST) put(&a, e, lowest_rank(hosts + e * words, words));
    }
    if (!slots) return;
    /* From here on the slot of each activated expert. */
    for (int64_t i = 0; i < a.num_active; i++) {
        int32_t e = a.active[i];
        a.rank_of[e] = slot_of[e * num_ranks + a.rank_of[e]];
    }
    for (int64_t i = 0; i < num_choices; i++) slots[i] = a.rank_of[ids[i]];
}

/* The largest load of each of `num_draws` sets of choices, ids [draws, choices]. */
void janus_a_max(int policy, const int32_t *ids, int64_t num_draws, int64_t num_choices,
                 int64_t num_experts, int64_t num_ranks, int64_t words, const uint64_t *hosts,
                 const int32_t *primary, uint64_t draw, int32_t *a_max, int32_t *scratch) {
    int32_t *counts = scratch + 2 * num_experts, *loads = counts + num_experts;
    for (int64_t d = 0; d < num_draws; d++) {
        janus_balance(policy, ids + d * num_choices, num_choices, num_experts, num_ranks, words, 0,
                      hosts, primary, draw + (uint64_t)d, 0, counts, loads, scratch);
        a_max[d] = fullest(loads, num_ranks);
    }
}

#endif
