"""Made-up profiles for planner tests: random ones, one like GPUs, and one of the demo model. No measurements."""

import random
from dataclasses import dataclass

import numpy as np

from janus_hpc.demo import demo_model_dir
from janus_hpc.models.registry import load_spec
from janus_hpc.planner.profile_data import (
    AttentionCosts,
    ExchangeCoefs,
    ExpertCosts,
    Hardware,
    LayerCosts,
    LoadRates,
    ModelShape,
    Profile,
    shape_of,
)
from janus_hpc.planner.profile_file import FORMAT, VERSION


@dataclass(frozen=True)
class SmoothAMax:
    """Stands in for AMaxLookup: even routing, each expert on one rank. More slots even out the loads."""

    num_experts: int
    top_k: int
    how: str = "a made-up a_max"

    def a_max(self, num_expert_ranks, num_slots, batch):
        """As AMaxLookup's."""
        share = 1 - (1 - self.top_k / self.num_experts) ** np.asarray(batch, float)
        spare = num_slots * num_expert_ranks / self.num_experts
        return np.maximum(self.num_experts * share / num_expert_ranks * (1 + 0.3 / spare), 1.0)


def make_profile(hardware: Hardware, model: ModelShape, **parts) -> Profile:
    """A profile of these parts, with costs that suit a GPU where none are given."""
    layer = LayerCosts(c_a=6e-5, c_0=5e-5, alpha=4e-7, c_kv=1.5e-10)
    values = {
        "attention": (
            AttentionCosts(num_sharing=1, sparse=layer, dense=layer, head_0=2e-4, head_1=1e-6),
        ),
        "experts": (ExpertCosts(num_sharing=1, c_e=3e-5, beta=1.4e-5, gamma=2e-8, delta=1e-8),),
        "exchange": ExchangeCoefs(
            fixed_s=2e-5,
            per_rank_s=1e-6,
            per_row_s=5e-9,
            per_part_s=2e-9,
            message_s=8e-6,
            node_rate=4e11,
        ),
        "loading": LoadRates(checkpoint_rate=5e9, link_rate=2e10, join_s=5.0),
        **parts,
    }
    return Profile(
        format=FORMAT,
        version=VERSION,
        made="2026-01-01T00:00:00+00:00",
        basis="made up",
        hardware=hardware,
        model=model,
        **values,
    )


def gpu_profile(**parts) -> Profile:
    """A model of 160 experts on nodes of 8 large GPUs."""
    model = ModelShape(
        name="made-up-160",
        dtype="bfloat16",
        hidden=5120,
        num_dense_layers=1,
        num_sparse_layers=59,
        num_experts=160,
        top_k=6,
        attention_bytes=20_000_000_000,
        expert_bytes=47_000_000,
        gate_bytes=190_000_000,
        kv_bytes=69_000,
        row_bytes=10_240,
    )
    hardware = Hardware(
        name="made-up-gpu", device="cuda", memory_bytes=76_000_000_000, ranks_per_node=8
    )
    return make_profile(hardware, model, **parts)


def demo_profile(num_cores: int = 2) -> Profile:
    """The demo model on a small CPU node."""
    spec = load_spec(demo_model_dir())
    hardware = Hardware(
        name="made-up-cpu",
        device="cpu",
        memory_bytes=2_000_000_000,
        ranks_per_node=2,
        cores_per_node=num_cores,
    )
    layer = LayerCosts(c_a=1e-4, c_0=5e-5, alpha=1e-5, c_kv=1e-8)
    return make_profile(
        hardware,
        shape_of(spec, "float32", 4, "demo"),
        attention=(
            AttentionCosts(num_sharing=1, sparse=layer, dense=layer, head_0=1e-4, head_1=5e-5),
        ),
        experts=(ExpertCosts(num_sharing=1, c_e=1e-4, beta=2e-6, gamma=1e-6, delta=1e-6),),
        exchange=ExchangeCoefs(
            fixed_s=1e-5,
            per_rank_s=1e-6,
            per_row_s=1e-7,
            per_part_s=1e-7,
            message_s=2e-5,
            node_rate=1e9,
        ),
        loading=LoadRates(checkpoint_rate=1e9, link_rate=1e9, join_s=0.1),
    )


def random_profile(seed: int) -> Profile:
    """Costs over several orders of magnitude; some with few cores, little memory or no link between nodes."""
    rng = random.Random(seed)

    def cost(low: float, high: float) -> float:
        return low * (high / low) ** rng.random()

    num_experts = rng.choice([4, 8, 12])
    model = ModelShape(
        name=f"random-{seed}",
        dtype="float32",
        hidden=64,
        num_dense_layers=rng.choice([0, 0, 1, 2]),
        num_sparse_layers=rng.choice([1, 2, 5]),
        num_experts=num_experts,
        top_k=rng.choice([1, 2, 4]),
        attention_bytes=rng.randrange(1_000_000, 20_000_000),
        expert_bytes=rng.randrange(100_000, 2_000_000),
        gate_bytes=4 * 64 * num_experts,
        kv_bytes=rng.randrange(100, 20_000),
        row_bytes=256,
    )
    hardware = Hardware(
        name="random",
        device="cpu",
        memory_bytes=int(cost(8e6, 2e8)),
        ranks_per_node=rng.choice([1, 2, 4, 8]),
        cores_per_node=rng.choice([0, 0, 2, 4]),
        price=rng.choice([1.0, 1.0, 0.5, 3.0]),
    )

    def layer() -> LayerCosts:
        return LayerCosts(
            c_a=rng.choice([0.0, cost(1e-5, 1e-3)]),
            c_0=cost(1e-6, 1e-4),
            alpha=cost(1e-7, 1e-4),
            c_kv=cost(1e-10, 1e-6),
        )

    sharing = rng.choice([[1], [1, 2], [1, 2, 4]])
    exchange = ExchangeCoefs(
        fixed_s=cost(1e-6, 1e-4),
        per_rank_s=cost(1e-8, 1e-5),
        per_row_s=cost(1e-9, 1e-6),
        per_part_s=cost(1e-9, 1e-6),
        message_s=cost(1e-6, 1e-4),
        node_rate=rng.choice([0.0, cost(1e7, 1e10), cost(1e7, 1e10)]),
    )
    return make_profile(
        hardware,
        model,
        attention=tuple(
            AttentionCosts(
                num_sharing=n,
                sparse=layer(),
                dense=layer(),
                head_0=cost(1e-6, 1e-3),
                head_1=cost(1e-7, 1e-4),
            )
            for n in sharing
        ),
        experts=tuple(
            ExpertCosts(
                num_sharing=n,
                c_e=cost(1e-6, 1e-4),
                beta=cost(1e-6, 1e-4),
                gamma=cost(1e-8, 1e-5),
                delta=cost(1e-8, 1e-5),
            )
            for n in sharing
        ),
        exchange=exchange,
        p99_ratio=rng.choice([1.0, 1.3]),
    )
