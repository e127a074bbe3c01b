"""Checks `gpus`, `cuda-ipc` and `allocator`: what ranks of a node see of each other's GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, some, warning

# One folder a GPU that the driver has, whatever this process may see of them.
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
_ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """`uuids`: the GPUs torch sees, in its order; `num_driver`: those the driver has; `no_access`: pairs
    (own, other) of torch's indices without peer access; `settings`: variables that hide GPUs.
    """

    uuids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    num_driver: int = 0
    torch_cuda: str = ""
    no_access: tuple[tuple[int, int], ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


def gather(context: Context) -> GpuFacts:
    """Asks torch, without a context on any GPU but the own one."""
    _skip_on_cpus(context)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    own = context.places.local_ranks[context.world_rank] % count if count else 0
    others = [index for index in range(count) if index != own]
    return GpuFacts(
        uuids=tuple(str(its.uuid) for its in properties),
        names=tuple(str(its.name) for its in properties),
        num_driver=len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0,
        torch_cuda=torch.version.cuda or "",
        no_access=tuple(
            (own, its) for its in others if not torch.cuda.can_device_access_peer(own, its)
        ),
        settings={
            name: value
            for name, value in context.env.settings.items()
            if "GPU" in name or "VISIBLE" in name or "TRES" in name
        },
    )


def _skip_on_cpus(context: Context) -> None:
    if context.target.device == "cpu":
        raise Skip("the run is to compute on CPUs")


def judge(facts: Sequence[GpuFacts], context: Context) -> list[Finding]:
    """Pure."""
    findings = _unseen(facts)
    if not any(its.uuids for its in facts):
        return findings or [fine("none: a run computes on CPUs")]
    findings += _some_without(facts)
    for node, ranks in enumerate(context.places.ranks_of):
        findings += _judge_node([facts[r] for r in ranks], ranks, context.places.host_of(node))
    count = len(facts[0].uuids)
    return findings or [
        fine(f"{count} a node seen by every rank: {some(sorted(set(facts[0].names)))}")
    ]


def _unseen(facts: Sequence[GpuFacts]) -> list[Finding]:
    blind = [r for r, its in enumerate(facts) if its.num_driver and not its.uuids]
    if not blind:
        return []
    its = facts[blind[0]]
    hidden = its.settings.get("CUDA_VISIBLE_DEVICES")
    if not its.torch_cuda:
        cause, fix = "torch is a build for CPUs", "install torch for CUDA (pip's index for cu12x)"
    elif hidden is not None:
        cause = f"CUDA_VISIBLE_DEVICES={hidden!r}"
        fix = "unset it, or ask Slurm for GPUs (--gpus-per-node)"
    else:
        cause, fix = (
            "none is granted, or the driver is older than torch's CUDA " + its.torch_cuda,
            "ask Slurm for GPUs (--gpus-per-node); in a container start with --nv or --gpus all; "
            "compare `nvidia-smi`",
        )
    return [
        warning(
            f"the driver has {its.num_driver} GPUs, torch sees none: {cause}",
            why="the run computes on CPUs",
            fix=fix,
            ranks=blind,
        )
    ]


def _some_without(facts: Sequence[GpuFacts]) -> list[Finding]:
    without = [r for r, its in enumerate(facts) if not its.uuids]
    if not without:
        return []
    return [
        error(
            f"{len(without)} of {len(facts)} ranks see no GPU",
            why="a run takes GPUs only where every rank has one, so all compute on CPUs",
            fix="ask for GPUs on every node (--gpus-per-node), or leave these nodes out",
            ranks=without,
        )
    ]


def _judge_node(facts: Sequence[GpuFacts], ranks: Sequence[int], host: str) -> list[Finding]:
    findings = []
    everything = set().union(*(its.uuids for its in facts))
    blind = [r for r, its in zip(ranks, facts, strict=True) if set(its.uuids) != everything]
    if blind:
        return [_hidden(facts, blind, len(everything), host)]
    if everything and len(facts) > len(everything):
        findings.append(
            warning(
                f"{host}: {len(facts)} ranks share {len(everything)} GPUs",
                why="they take turns on a GPU, share its memory, and wait for each other by the host",
                fix="start one rank a GPU (--ntasks-per-node equal to --gpus-per-node)",
                ranks=ranks,
            )
        )
    orders = {its.uuids for its in facts}
    if len(orders) > 1:
        findings.append(
            warning(
                f"{host}: ranks number the GPUs in different orders",
                why="a rank takes the GPU of its local rank: two may take the same one",
                fix="give all ranks the same CUDA_VISIBLE_DEVICES, or none; set CUDA_DEVICE_ORDER=PCI_BUS_ID",
                ranks=ranks,
            )
        )
    apart = [r for r, its in zip(ranks, facts, strict=True) if its.no_access]
    if apart and len(ranks) > 1:
        pairs = sorted({pair for its in facts for pair in its.no_access})
        findings.append(
            warning(
                f"{host}: no peer access between GPUs {some([f'{a} and {b}' for a, b in pairs])}",
                why="hidden states go through the host's memory instead of NVLink or PCIe",
                fix="see `nvidia-smi topo -p2p r`; in a virtual machine ask for peer access; switch off "
                "PCIe ACS (IOMMU) on the host",
                ranks=apart,
            )
        )
    return findings


def _hidden(facts: Sequence[GpuFacts], blind: Sequence[int], num_gpus: int, host: str) -> Finding:
    settings = {name: value for its in facts for name, value in its.settings.items()}
    causes = [
        f"{name}={settings[name]}"
        for name in (
            "SLURM_GPUS_PER_TASK",
            "SLURM_GPU_BIND",
            "SLURM_TRES_BIND",
            "CUDA_VISIBLE_DEVICES",
        )
        if name in settings
    ]
    by = f" ({', '.join(causes)})" if causes else ""
    return warning(
        f"{host}: {len(blind)} ranks do not see all {num_gpus} GPUs of their node{by}",
        why="CUDA IPC opens a peer's memory only where the peer's GPU is visible: rows would go "
        "through the host's memory, many times slower",
        fix="Slurm: --gpus-per-node=N with --gpu-bind=none, not --gpus-per-task; a rank takes its GPU by "
        "its local rank, so do not set CUDA_VISIBLE_DEVICES a rank",
        ranks=blind,
    )


def gather_ipc(context: Context) -> str:
    """Why the ranks of this node cannot use each other's GPU memory, "" where they can.

    Really opens a peer's memory, writes to it and compares. Collective over each node.
    """
    _skip_on_cpus(context)
    import torch

    world = context.world
    if world is None or max(map(len, context.places.ranks_of)) == 1:
        raise Skip("one rank a node: no peer to open memory of")
    if not all(world.allgather(torch.cuda.is_available())):
        raise Skip("no GPU on every rank")
    from janus_hpc.comm.device.cuda_slabs import why_not_peers
    from janus_hpc.engine.device import rank_device

    if world.num_local == 1:
        return ""
    return why_not_peers(world.node_comm, rank_device("cuda", world.local_rank), world.policy)  # type: ignore[arg-type]


def judge_ipc(facts: Sequence[str], context: Context) -> list[Finding]:
    """Pure."""
    findings = []
    for node, ranks in enumerate(context.places.ranks_of):
        if why := facts[ranks[0]]:
            findings.append(
                warning(
                    f"{context.places.host_of(node)}: {why}",
                    why="ranks of a node exchange hidden states through each other's GPU memory; without it "
                    "they go through the host's, many times slower",
                    fix="let every rank see all GPUs (--gpu-bind=none), install janus-hpc[cuda12], share the IPC "
                    "namespace between containers (--ipc=host)",
                    ranks=ranks,
                )
            )
    return findings or [
        fine("every rank wrote into every peer's GPU memory of its node, and it came")
    ]


def gather_allocator(context: Context) -> dict[str, str]:
    """The allocator's settings."""
    return {its: text for its, text in context.env.settings.items() if its in _ALLOCATOR_SETTINGS}


def judge_allocator(facts: Sequence[dict[str, str]], context: Context) -> list[Finding]:
    """Pure."""
    wrong = {
        r: f"{name}={value}"
        for r, settings in enumerate(facts)
        for name, value in settings.items()
        if "expandable_segments:true" in value.replace(" ", "").lower()
    }
    if not wrong:
        return [fine("torch's GPU memory is not in expandable segments")]
    return [
        warning(
            next(iter(wrong.values())),
            why="torch's memory then has no CUDA IPC handle, and what shares it between processes falls back from "
            "some 200 GB/s to 0.3 GB/s without a word; the slabs of the exchange are CuPy's, and keep theirs",
            fix="unset it, or write expandable_segments:False",
            ranks=wrong,
        )
    ]


GPUS = Check(name="gpus", gather=gather, judge=judge)
CUDA_IPC = Check(name="cuda-ipc", gather=gather_ipc, judge=judge_ipc, communicates=True)
ALLOCATOR = Check(name="allocator", gather=gather_allocator, judge=judge_allocator)
