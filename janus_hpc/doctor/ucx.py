"""Check `ucx`: whether ucxx works here, over which UCX, and with which transports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, note, some, warning
from janus_hpc.doctor.mpi import has_fabric

if TYPE_CHECKING:
    from janus_hpc.comm.libraries import UcxLibrary

_FABRIC = ("rc", "dc", "ud", "ib", "gga")
_SHARED_MEMORY = ("shm", "sm", "posix", "sysv", "xpmem", "knem", "cma", "mm", "all")
_PREFER = "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"


@dataclass(frozen=True, kw_only=True)
class UcxFacts:
    """`settings`: the UCX_* variables of the user's; `prefers_system`: the value of RAPIDS_LIBUCX_..."""

    library: "UcxLibrary"
    has_fabric: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    prefers_system: str = ""


def gather(context: Context) -> UcxFacts:
    """Loads UCX, over MPI's own where there is one, as the link does."""
    if context.world is None:
        raise Skip("without MPI ranks cannot swap addresses")
    from janus_hpc.comm.libraries import ucx_library

    return UcxFacts(
        library=ucx_library(context.env.ucx_settings),
        has_fabric=has_fabric(),
        settings=context.env.ucx_settings,
        prefers_system=context.env.settings.get(_PREFER, ""),
    )


def judge(facts: Sequence[UcxFacts], context: Context) -> list[Finding]:
    """Pure."""
    without = [r for r, its in enumerate(facts) if its.library.why_not]
    if without:
        return [_absent(facts, without, context)]
    findings = [*_several(facts), *_fabric(facts, context), *_settings(facts, context)]
    details = sorted({its.library.detail for its in facts})
    if len(details) > 1:
        findings.append(
            warning(
                f"ranks use different UCX: {some(details, 3)}",
                why="two versions may not find a common transport, or only a slow one",
                fix="use one environment on all hosts",
            )
        )
    return findings or [fine(details[0])]


def _absent(facts: Sequence[UcxFacts], without: Sequence[int], context: Context) -> Finding:
    reason = facts[without[0]].library.why_not
    if len(without) < len(facts):
        return warning(
            f"{len(without)} of {len(facts)} ranks have no UCX: {reason}",
            why="nodes then talk over MPI, which all have; --inter ucx is refused",
            fix="install janus-hpc[ucx] on every host",
            ranks=without,
        )
    if context.places.num_nodes == 1:
        return note(f"not usable ({reason}), and not needed on one node")
    return note(
        f"not usable ({reason}): nodes talk over MPI",
        fix="pip install 'janus-hpc[ucx]', and compare with `janus-hpc bench exchange --inter mpi,ucx`",
    )


def _several(facts: Sequence[UcxFacts]) -> list[Finding]:
    double = [r for r, its in enumerate(facts) if len(its.library.files) > 1]
    if not double:
        return []
    return [
        error(
            f"one process has loaded several UCX libraries: {some(facts[double[0]].library.files)}",
            why="the loader binds one to parts of the other: crashes or wrong bytes",
            fix=f"set {_PREFER}=true so that ucxx takes the site's UCX; with Open MPI also try "
            "OMPI_MCA_pml=ob1",
            ranks=double,
        )
    ]


def _fabric(facts: Sequence[UcxFacts], context: Context) -> list[Finding]:
    slow = [
        r
        for r, its in enumerate(facts)
        if its.has_fabric and not any(t.startswith(_FABRIC) for t in its.library.transports)
    ]
    if not slow or context.places.num_nodes == 1:
        return []
    its = facts[slow[0]]
    set_to = f"; {_PREFER}={its.prefers_system}" if its.prefers_system else ""
    return [
        warning(
            f"hosts have InfiniBand, but UCX has none: {its.library.detail}{set_to}",
            why="messages between nodes go by TCP, at a tenth of the rate and ten times the latency",
            fix=f"load the site's UCX (module load ucx) and set {_PREFER}=true; see UCX_TLS and "
            "UCX_NET_DEVICES as well",
            ranks=slow,
        )
    ]


def _settings(facts: Sequence[UcxFacts], context: Context) -> list[Finding]:
    findings = []
    tls = {r: its.settings["UCX_TLS"] for r, its in enumerate(facts) if "UCX_TLS" in its.settings}
    if not tls:
        return []
    listed = {r: [t.strip() for t in value.split(",")] for r, value in tls.items()}
    several = len(facts) > context.places.num_nodes
    bare = [
        r
        for r, names in listed.items()
        if several and not names[0].startswith("^") and not set(names) & set(_SHARED_MEMORY)
    ]
    if bare:
        findings.append(
            warning(
                f"UCX_TLS={tls[bare[0]]} leaves out shared memory",
                why="ranks of a node then talk through the network adapter",
                fix="add sm, or unset UCX_TLS",
                ranks=bare,
            )
        )
    return findings


CHECK = Check(name="ucx", gather=gather, judge=judge)
