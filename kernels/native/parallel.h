/* Threads: one region a call, work cut into contiguous spans; with one thread no region at all. */
#ifndef JANUS_PARALLEL_H
#define JANUS_PARALLEL_H

#include <omp.h>
#include <stdint.h>

/* Multiply-adds below which another thread costs more than it brings. */
#define WORK_PER_THREAD 131072

#define PRAGMA(x) _Pragma(#x)
#define PARALLEL(threads) PRAGMA(omp parallel num_threads(threads) if (threads > 1))

typedef struct {
    int64_t lo, hi;
} span;

static inline int threads_for(int64_t work, int64_t pieces, int max_threads) {
    int64_t threads = work / WORK_PER_THREAD + 1;
    if (threads > pieces) threads = pieces;
    if (threads > max_threads) threads = max_threads;
    return threads < 1 ? 1 : (int)threads;
}

/* The region may get fewer threads than asked for; spans follow the number it got. */
static inline span my_span(int64_t pieces, int threads) {
    int got = threads > 1 ? omp_get_num_threads() : 1, me = threads > 1 ? omp_get_thread_num() : 0;
    span s = {pieces * me / got, pieces * (me + 1) / got};
    return s;
}

#endif
