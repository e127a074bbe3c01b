"""The names and types of the results file, version 4: what writer, reader and verification agree
on.
 A ragged column NAME is two datasets, NAME_values and NAME_offsets; item i is values[offsets[i] :
offsets[i + 1]].
"""

from typing import Final

SCHEMA_NAME: Final = "janus-hpc results"
SCHEMA_VERSION: Final = 4

STATUS_NAMES: Final = ("ok", "error")
FINISH_REASONS: Final = ("stop", "length", "error")

BYTES: Final = "<u1"
OFFSET: Final = "<u8"

# One value an item.
ROW_COLUMNS: Final = {
    "index": "<u8",
    "line": "<u8",
    "status": "<u1",
    "chat": "<u1",
    "launch": "<u4",
    "world_rank": "<u4",
    "error_line": "<u8",
    "finished_at_unix_s": "<f8",
}
ROW_RAGGED: Final = {
    "id": BYTES,
    "error_field": BYTES,
    "error_reason": BYTES,
    "prompt_token_ids": "<i4",
}
SAMPLE_COLUMNS: Final = {
    "row": "<u8",
    "finish_reason": "<u1",
    "logprobs_present": "<u1",
    "ttft_s": "<f4",
    "tpot_s": "<f4",
}
SAMPLE_RAGGED: Final = {
    "text": BYTES,
    "stop_reason": BYTES,
    "token_ids": "<i4",
    "token_times_s": "<f4",
    "logprobs": "<f4",
}
# Per position with log probabilities, over all samples; the two values share their offsets.
TOP_OFFSETS: Final = "top_logprobs_offsets"
TOP_VALUES: Final = {"top_token_ids_values": "<i4", "top_logprobs_values": "<f4"}

BATCH_COLUMNS: Final = {
    "num_rows": "<u8",
    "num_tokens": "<u8",
    "began_s": "<f8",
    "seconds": "<f8",
    "tpot_s": "<f8",
    "tpot_predicted_s": "<f8",
    "num_decode_steps": "<u8",
    "decode_tpot_s": "<f8",
    "attention_s": "<f8",
    "moe_s": "<f8",
    "comm_s": "<f8",
    "attention_predicted_s": "<f8",
    "moe_predicted_s": "<f8",
    "comm_predicted_s": "<f8",
    "mean_batch": "<f8",
    "mean_context": "<f8",
    "microbatches": "<u8",
    "epoch": "<u8",
    "slots_moved": "<u8",
    "moved_bytes": "<u8",
    "move_s": "<f8",
    "move_predicted_s": "<f8",
    "gain_predicted_s": "<f8",
    "a_max_mean": "<f8",
    "experts_s": "<f8",
    "num_passes": "<u8",
    "shard": "<u4",
}
BATCH_RAGGED: Final = {
    "plan": BYTES,
    "split": BYTES,
    "roles": BYTES,
    "decision": BYTES,
    "exchange": BYTES,
    "placement": BYTES,
}
PLACEMENT_COLUMNS: Final = {"epoch": "<u8", "shard": "<u4"}
PLACEMENT_RAGGED: Final = {"kind": BYTES, "why": BYTES, "digest": BYTES}
# Beside the columns of `placements`: [P, L, R, C], the expert in each slot.
PLACEMENT_SLOTS: Final = "slots"
SLOT: Final = "<i4"
EMPTY_SLOT: Final = -1
LAUNCH_COLUMNS: Final = {"number": "<u4", "num_rows": "<u8", "shard": "<u4"}
LAUNCH_RAGGED: Final = {"info": BYTES}

# Columns and ragged columns of every group whose items stand in step; `layers` and `routing` hold
# plain arrays.
TABLES: Final = {
    "rows": (ROW_COLUMNS, ROW_RAGGED),
    "samples": (SAMPLE_COLUMNS, SAMPLE_RAGGED),
    "batches": (BATCH_COLUMNS, BATCH_RAGGED),
    "placements": (PLACEMENT_COLUMNS, PLACEMENT_RAGGED),
    "launches": (LAUNCH_COLUMNS, LAUNCH_RAGGED),
}
LAYER_ARRAYS: Final = {
    "expert_activations": "<i8",
    "a_max_mean": "<f8",
    "a_max_max": "<i8",
    "activated_mean": "<f8",
}

# Ragged columns that hold UTF-8 text.
TEXT_COLUMNS: Final = (
    "rows/id",
    "rows/error_field",
    "rows/error_reason",
    "samples/text",
    "samples/stop_reason",
    "batches/plan",
    "batches/split",
    "batches/roles",
    "batches/decision",
    "batches/exchange",
    "batches/placement",
    "placements/kind",
    "placements/why",
    "placements/digest",
    "launches/info",
)
