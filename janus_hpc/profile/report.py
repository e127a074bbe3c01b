"""What `janus-hpc profile` prints: the figures of a profile, or of a cost table, in short."""

from collections.abc import Iterator, Sequence

from janus_hpc.planner.cost_table import CostTable
from janus_hpc.planner.profile_data import AttentionCosts, ExpertCosts, LayerCosts, Profile

_US = 1e6


def profile_lines(profile: Profile, elapsed_s: float) -> Iterator[str]:
    """A table of the fits in microseconds, then what else was found."""
    yield f"{profile.model.name}, {profile.model.dtype}, {profile.kernels}: microseconds a layer"
    head = ["at once", "c_a", "c_0", "alpha", "c_kv*1000", "head_0", "head_1", "error"]
    yield from _table(head, [_attention(profile, its) for its in profile.attention])
    if profile.model.num_dense_layers:
        rows = [
            [
                its.num_sharing,
                *_layer(its.dense),
                _error(profile, f"attention.{its.num_sharing}.dense"),
            ]
            for its in profile.attention
        ]
        yield from _table(["dense", *head[1:5], "error"], rows)
    rows = [_experts(profile, its) for its in profile.experts]
    yield from _table(["experts", "c_e", "beta", "gamma", "delta", "error"], rows)
    head = ["exchange", "fixed", "rank", "row", "part", "message", "MB/s", "error"]
    yield from _table(head, [_exchange(profile)])
    loading = profile.loading
    yield (
        f"loading: {loading.checkpoint_rate / 1e6:.0f} MB/s from files, {loading.link_rate / 1e6:.0f} "
        f"MB/s from ranks, {loading.join_s * 1e3:.0f} ms to join; p99 of a step {profile.p99_ratio:.2f} x mean"
    )
    if profile.hardware.cores_per_node:
        most = profile.attention[-1].num_sharing
        yield (
            f"up to {most} ranks of a node at once were measured; for plans with more start more ranks a node"
        )
    yield f"measured in {elapsed_s:.0f} s"


def table_lines(table: CostTable) -> Iterator[str]:
    """The figures in short."""
    for name, link in table.costs.links.items():
        if link.across:
            yield (
                f"{name} between nodes: {link.across[0][1] * 1e6:.0f} us a small message, "
                f"{link.across_busy_s * 1e6:.0f} us while all send some, "
                f"{link.node_rate / 1e6:.0f} MB/s a node"
            )
        if link.inside:
            size, time_s = link.inside[-1]
            yield (
                f"{name} inside a node: {link.inside[0][1] * 1e6:.0f} us a small message, "
                f"{size / time_s / 1e6:.0f} MB/s"
            )
    memory = table.costs.memory
    yield (
        f"memory: {memory.copy_rate / 1e6:.0f} MB/s copied, {memory.add_rate / 1e6:.0f} MB/s added, "
        f"{memory.signal_s * 1e6:.1f} us a counter"
    )


def _attention(profile: Profile, costs: AttentionCosts) -> list[object]:
    error = _error(profile, f"attention.{costs.num_sharing}.sparse")
    head = costs.head_0 * _US, costs.head_1 * _US
    return [costs.num_sharing, *_layer(costs.sparse), *head, error]


def _experts(profile: Profile, costs: ExpertCosts) -> list[object]:
    values = costs.c_e, costs.beta, costs.gamma, costs.delta
    error = _error(profile, f"experts.{costs.num_sharing}")
    return [costs.num_sharing, *(its * _US for its in values), error]


def _exchange(profile: Profile) -> list[object]:
    its = profile.exchange
    values = its.fixed_s, its.per_rank_s, its.per_row_s, its.per_part_s, its.message_s
    return ["", *(x * _US for x in values), its.node_rate / 1e6, _error(profile, "exchange")]


def _layer(costs: LayerCosts) -> list[float]:
    return [costs.c_a * _US, costs.c_0 * _US, costs.alpha * _US, costs.c_kv * _US * 1000]


def _error(profile: Profile, fit: str) -> str:
    """The mean relative error of a fit."""
    residual = profile.residuals.get(fit)
    return "-" if residual is None else f"{residual:.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "".join(f"{its:>10}" for its in head)
    for row in rows:
        cells = [f"{its:.1f}" if isinstance(its, float) else str(its) for its in row]
        yield "".join(f"{its:>10}" for its in cells)
