"""What a profile says: what one kind of hardware takes for one model, as coefficients of the TPOT model.

Plain data; knows neither how it was measured (`profile/`) nor what is planned from it.
"""

from math import prod

import msgspec

from janus_hpc.models.spec import ModelSpec

# Legend of the formulas: b sequences of an attention rank, S their mean context in tokens, N tokens of all
# attention ranks, a activated experts on the fullest expert rank, r its rows (token, choice).


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all parts of the file have in common: immutable, and an unknown key is refused."""


class Hardware(Data, frozen=True, kw_only=True):
    """One rank's share of a machine. `cores_per_node` is 0 where ranks do not share cores (GPUs).

    `memory_bytes`: what a rank may fill; `price`: of a rank hour, in any unit, 1 if unknown.
    """

    name: str
    device: str
    memory_bytes: int
    ranks_per_node: int
    cores_per_node: int = 0
    price: float = 1.0


class ModelShape(Data, frozen=True, kw_only=True):
    """What planning needs of a model. Bytes are of weights as they lie in memory, in `dtype`.

    `attention_bytes`: all that an attention rank holds; `expert_bytes`: one expert of one layer;
    `gate_bytes`: the routers of all layers; `kv_bytes`: cache of a token over all layers.
    """

    name: str
    dtype: str
    hidden: int
    num_dense_layers: int
    num_sparse_layers: int
    num_experts: int
    top_k: int
    attention_bytes: int
    expert_bytes: int
    gate_bytes: int
    kv_bytes: int
    row_bytes: int


class LayerCosts(Data, frozen=True, kw_only=True):
    """T = max(c_a, c_0 + alpha b + c_kv b S) seconds of a layer's attention part (Janus, Eq. 1b, with c_0 for
    what does not depend on the batch, such as reading weights). The part of a dense layer has its MLP.
    """

    c_a: float
    c_0: float
    alpha: float
    c_kv: float


class AttentionCosts(Data, frozen=True, kw_only=True):
    """An attention rank's, while `num_sharing` ranks of its node do the same.

    `head_0` + `head_1` b: seconds a step outside the layers (embedding, LM head, sampling, book-keeping).
    """

    num_sharing: int
    sparse: LayerCosts
    dense: LayerCosts
    head_0: float
    head_1: float


class ExpertCosts(Data, frozen=True, kw_only=True):
    """T = c_e + beta a + gamma r + delta N seconds of a layer on an expert rank, while `num_sharing` ranks of
    its node do the same (Janus, Eq. 1c, which has the first two terms; gamma is arithmetic, delta the gate and
    the balancing, which every expert rank does for every token).
    """

    num_sharing: int
    c_e: float
    beta: float
    gamma: float
    delta: float


class ExchangeCoefs(Data, frozen=True, kw_only=True):
    """Seconds of a layer's exchange, there and back.

    Inside a node: fixed + per_rank (n_a + n_e) + per_row N + per_part b n_e. Between nodes each message costs
    `message_s` on either rank, and a node sends `node_rate` bytes a second (0: one node only was measured).
    """

    fixed_s: float
    per_rank_s: float
    per_row_s: float
    per_part_s: float
    message_s: float = 0.0
    node_rate: float = 0.0


class LoadRates(Data, frozen=True, kw_only=True):
    """Bytes a second a node reads from the checkpoint and a rank gets from another; `join_s`: seconds of a
    change of roles besides moving bytes.
    """

    checkpoint_rate: float
    link_rate: float
    join_s: float


class Point(Data, frozen=True, kw_only=True):
    """One measurement: `what` was timed at `at` (names and values of the formula's variables)."""

    what: str
    at: dict[str, float]
    seconds: float
    fitted_s: float = 0.0


class Profile(Data, frozen=True, kw_only=True):
    """`basis`: measured, fitted to public measurements, or from peak rates; `sources`: where figures come from.

    `attention` and `experts` are ascending in num_sharing, at least one each. `p99_ratio`: the 99th
    percentile of a step's time over its mean. `residuals`: fit -> mean relative error.
    """

    format: str
    version: int
    made: str
    basis: str
    sources: tuple[str, ...] = ()
    hardware: Hardware
    model: ModelShape
    kernels: str = ""
    attention: tuple[AttentionCosts, ...]
    experts: tuple[ExpertCosts, ...]
    exchange: ExchangeCoefs
    loading: LoadRates
    p99_ratio: float = 1.0
    residuals: dict[str, float] = {}
    points: tuple[Point, ...] = ()


def shape_of(spec: ModelSpec, dtype: str, itemsize: int, name: str) -> ModelShape:
    """The numbers of a model whose weights and KV cache have `itemsize` bytes a value."""
    num_sparse = len(spec.sparse_layers)
    return ModelShape(
        name=name,
        dtype=dtype,
        hidden=spec.hidden,
        num_dense_layers=spec.num_layers - num_sparse,
        num_sparse_layers=num_sparse,
        num_experts=spec.moe.num_experts,
        top_k=spec.moe.top_k,
        attention_bytes=spec.num_attention_params() * itemsize,
        expert_bytes=3 * spec.hidden * spec.moe.width * itemsize,
        # Routers are kept in float32.
        gate_bytes=4 * sum(prod(shape) for shape in spec.gate_tensors().values()),
        kv_bytes=spec.attention.kv_width() * itemsize * spec.num_layers,
        row_bytes=spec.hidden * itemsize,
    )
