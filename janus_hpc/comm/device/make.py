"""Builds the device exchange where the GPUs of a node allow it, or says why they do not.

Knows what it takes, not what else could be taken. CuPy and Triton are imported only for GPUs.
"""

from importlib import import_module

import torch
from mpi4py import MPI

from janus_hpc.comm.device.cuda_slabs import CudaSlabs, PeerMemoryError, why_not_peers
from janus_hpc.comm.device.exchange import DeviceExchange, why_too_large
from janus_hpc.comm.device.slots import slab_sizes
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.objects import allgather_objects
from janus_hpc.comm.waits import WaitPolicy


def make_device_exchange(
    comm: MPI.Intracomm, peers: Peers, sizes: Sizes, policy: WaitPolicy, device: torch.device
) -> DeviceExchange | str:
    """The exchange, which takes over `comm`, or why there is none; then `comm` stays the caller's.

    `comm`: the active ranks in world order, all of one node. `device`: this rank's. The outcome is
    the same on all ranks. Collective over `comm`.
    """
    why = why_too_large(peers) or why_not_peers(comm, device, policy)
    if why:
        return why
    try:
        slabs = CudaSlabs(comm, slab_sizes(peers, sizes), device, policy)
    except PeerMemoryError as error:
        return str(error)
    waits = allgather_objects(comm, slabs.waits_on_device, policy)
    why = "the ranks' GPUs open memory to each other"
    if not all(waits):
        why += f"; {waits.count(False)} of {len(waits)} ranks share a GPU, so their hosts wait"
    flags = import_module("janus_hpc.kernels.flags_triton")
    return DeviceExchange(comm, peers, sizes, policy, why, slabs=slabs, flags=flags)
