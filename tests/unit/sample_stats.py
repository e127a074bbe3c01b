"""What a made-up run measured about itself: two layers of three experts, one choice a token."""

import numpy as np

from janus_hpc.results.manifest import Launch
from janus_hpc.results.stats import BatchStats, LayerStats, PlacementStats, RunStats
from janus_hpc.routing.trace import RoutingTrace

TRACE = RoutingTrace(
    layer_ids=(0, 2),
    num_experts=3,
    top_k=1,
    num_tokens_L=np.array([3, 1]),
    counts_LE=np.array([[2, 0, 1], [0, 1, 0]]),
    coactivation_LEE=np.zeros((2, 3, 3), np.int64),
    num_routes_L=np.array([2, 1]),
    routes_LWK=np.array([[[2], [0]], [[1], [-1]]], np.int16),
)
STATS = RunStats(
    batches=[
        BatchStats(
            plan="{}",
            split="1a3e",
            exchange="host",
            num_rows=4,
            num_tokens=9,
            seconds=2.5,
            tpot_s=0.125,
        ),
        BatchStats(
            plan="{}",
            split="1a2e",
            exchange="host",
            num_rows=2,
            num_tokens=5,
            seconds=1.5,
            tpot_s=0.25,
            epoch=1,
            slots_moved=3,
            move_s=0.75,
            a_max_mean=1.25,
            experts_s=0.5,
            num_passes=11,
            placement="even: no trace \u00e9",
            roles="aee",
            decision="re-split: \u00e9",
            began_s=3.5,
            num_decode_steps=5,
            decode_tpot_s=0.25,
            attention_s=0.125,
            moe_s=0.0625,
            comm_s=0.0625,
            attention_predicted_s=0.5,
            moe_predicted_s=1.5,
            comm_predicted_s=2.5,
            mean_batch=7.5,
            mean_context=30.25,
            microbatches=2,
            moved_bytes=4096,
            move_predicted_s=3.5,
            gain_predicted_s=4.5,
        ),
    ],
    layers=LayerStats(
        expert_activations=np.arange(6, dtype=np.int64).reshape(2, 3),
        a_max_mean=np.array([1.5, 2.5]),
        a_max_max=np.array([2, 3]),
        num_steps=7,
        activated_mean=np.array([2.25, 2.75]),
    ),
    placements=[
        PlacementStats(
            epoch=0,
            slots_LRC=np.array([[[0, 1, 2]], [[2, 1, 0]]], np.int32),
            kind="even",
            why="no trace",
            digest="ab12",
        ),
        PlacementStats(
            epoch=1,
            slots_LRC=np.array([[[0, 1], [2, -1]], [[2, 0], [1, 0]]], np.int32),
            kind="balanced",
            why="\u00e9",
            digest="",
        ),
    ],
    routing=TRACE,
    launches=[Launch(0, {"split": "1a3e"}), Launch(1, {"split": "2a2e"})],
)
