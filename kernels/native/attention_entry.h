/* Cutting a paged-attention call into items, and its entry point. Part of attention.h. */

/* Runs of tokens of one sequence, at most `longest` tokens each. */
static void find_runs(attention_job *job, int64_t longest) {
    job->num_runs = 0;
    for (int64_t t = 0; t < job->num_tokens;) {
        int64_t end = t + 1;
        while (end < job->num_tokens && end - t < longest && job->seq_ids[end] == job->seq_ids[t])
            end++;
        job->runs[job->num_runs++] = (int32_t)t;
        t = end;
    }
    job->runs[job->num_runs] = (int32_t)job->num_tokens;
}

/* Cache strides in elements. scratch: janus_attention_scratch floats a thread, then num_tokens + 1
 * words. */
void janus_attention(const float *q, const char *k, const char *v, int64_t k_block, int64_t k_pos,
                     int64_t k_head, int64_t v_block, int64_t v_pos, int64_t v_head, int dt,
                     const int32_t *tables, int64_t table_width, const int32_t *seq_ids,
                     const int32_t *positions, int64_t num_tokens, int64_t num_heads,
                     int64_t kv_heads, int64_t head_dim, int64_t v_dim, int64_t block_size,
                     float scale, float *out, float *scratch, int max_threads) {
    int64_t scratch_size = janus_attention_scratch(head_dim, v_dim);
    int32_t *runs = (int32_t *)(scratch + max_threads * scratch_size);
    attention_job job = {
        .q = q, .k = k, .v = v, .dt = dt, .k_block = k_block, .k_pos = k_pos, .k_head = k_head,
        .v_block = v_block, .v_pos = v_pos, .v_head = v_head,
        .tables = tables, .seq_ids = seq_ids, .positions = positions, .table_width = table_width,
        .num_tokens = num_tokens, .num_heads = num_heads, .kv_heads = kv_heads,
        .head_dim = head_dim, .v_dim = v_dim, .block_size = block_size, .scale = scale,
        .out = out, .runs = runs};
    int64_t group = num_heads / kv_heads, work = 0;
    int64_t parts = (group + ITEM_HEADS - 1) / ITEM_HEADS, widest = (group + parts - 1) / parts;
    for (int64_t t = 0; t < num_tokens; t++) work += positions[t] + 1;
    find_runs(&job, ITEM_ROWS / widest);
    int64_t per_run = kv_heads * parts, items = job.num_runs * per_run;
    int threads = threads_for(work * num_heads * (head_dim + v_dim), items, max_threads);
    PARALLEL(threads) {
        int me = threads > 1 ? omp_get_thread_num() : 0;
        attention_scratch s = cut(&job, scratch + me * scratch_size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < items; item++) {
            int64_t run = item / per_run, kv = item % per_run / parts, part = item % parts;
            int64_t h0 = group * part / parts, h1 = group * (part + 1) / parts;
            run_item(&job, &s, runs[run], runs[run + 1], kv * group + h0, h1 - h0);
        }
    }
}
