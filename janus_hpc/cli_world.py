"""Starting MPI for a command, with messages for what goes wrong on the way."""

from typing import TYPE_CHECKING

from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv, check_world
from janus_hpc.log import setup_logging

if TYPE_CHECKING:
    from janus_hpc.comm.world import World


def start_world(env: LaunchEnv) -> "World":
    """The world, its log set up. Collective over the world.

    Errors: UsageError without an MPI library, or where the launcher belongs to another one.
    """
    try:
        from janus_hpc.comm.world import World
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"mpi4py finds no MPI library ({error}): install janus-hpc[mpich], or load the site's MPI"
        ) from error
    world = World.start()
    check_world(env, world.world_size, world.library_version)
    setup_logging(world.label, console=world.world_rank == 0)
    return world
