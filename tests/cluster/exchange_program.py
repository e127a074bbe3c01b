"""Run under mpirun on several nodes: every kind, gate, link and microbatch count, with exact sums.

Usage: python -m tests.cluster.exchange_program SPLIT...   (e.g. 2a2e 1a3e); rank 0 prints a line each.
"""

import sys
from importlib.util import find_spec

from janus_hpc.comm.guard import guard
from janus_hpc.comm.plan.fabric import Kind
from janus_hpc.comm.world import World
from janus_hpc.topology import Role, Topology
from tests.mpi.driver import run

LETTERS = {"a": Role.ATTENTION, "e": Role.EXPERT, "c": Role.COLOCATED, "p": Role.PARKED}
LINKS = ["mpi"] + (["ucx"] if find_spec("ucxx") else [])


def run_all(world: World, topology: Topology, letters: str) -> None:
    for kind in Kind:
        for gate in ("egate", "agate"):
            for inter in LINKS:
                for num_microbatches in (1, 2, 3):
                    sent = run(
                        world,
                        topology,
                        str(kind),
                        gate,
                        inter=inter,
                        num_microbatches=num_microbatches,
                        num_steps=3,
                    )
                    total = sum(world.allgather(sent))
                    if world.world_rank == 0:
                        print("ok", letters, kind, gate, inter, num_microbatches, total, flush=True)


def main() -> None:
    world = World.start()
    with guard(world):
        for letters in sys.argv[1:]:
            run_all(world, world.topology([LETTERS[letter] for letter in letters]), letters)


if __name__ == "__main__":
    main()
