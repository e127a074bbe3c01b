"""Chooses and connects the link between nodes: UCX or MPI.

The choice is one for all ranks; it must not know exchanges or what the link is used for.
"""

from collections.abc import Mapping, Sequence

from mpi4py import MPI

from janus_hpc.comm.links.link import Link
from janus_hpc.comm.links.mpi import MpiLink
from janus_hpc.comm.links.ucx import UcxLink
from janus_hpc.comm.objects import group_comm
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.errors import LinkError, UsageError

INTERS = ("auto", "ucx", "mpi")
_GROUP_TAG = 78


def make_link(
    world_comm: MPI.Intracomm,
    world_ranks: Sequence[int],
    inter: str = "auto",
    *,
    policy: WaitPolicy,
    why: str | None = None,
    user_settings: Mapping[str, str] | None = None,
) -> Link:
    """Connect the ranks `world_ranks` of the world, ascending. Collective over them alone.

    "auto" takes UCX where every rank has ucxx and reaches every peer with it, MPI otherwise; `why`
    of the link tells. `why`: by what rule `inter` was taken if it was not asked for.
    `user_settings`: the UCX_* variables the user set, which win over ours.
    UsageError, on every rank alike, for an unknown link or a forced UCX that cannot be had.
    """
    if inter not in INTERS:
        raise UsageError(f"link {inter!r} is unknown; one of {', '.join(INTERS)}")
    comm = group_comm(world_comm, world_ranks, _GROUP_TAG)
    if inter == "mpi":
        return MpiLink(comm, world_ranks, why or "asked for")
    reaches = "asked for" if inter == "ucx" else "every rank reaches every other with it"
    try:
        return UcxLink(comm, world_ranks, policy, why or reaches, user_settings)
    except LinkError as error:
        if inter == "auto":
            return MpiLink(comm, world_ranks, str(error))
        comm.Free()
        fix = "install janus-hpc[ucx] on every node, or take --inter auto or mpi"
        raise UsageError(f"link 'ucx': {error}: {fix}") from error
