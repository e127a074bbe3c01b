"""The command `python -m tests.cluster`: one job on an emulated cluster, and its exit code."""

import argparse
import signal
import subprocess
import sys
from types import FrameType

from tests.cluster.bed import Bed, emulated_cluster, end_job
from tests.cluster.requirements import missing

EXIT_USAGE = 2
EXIT_CANNOT_RUN = 77


def main(argv: list[str]) -> int:
    """Run the command after `--` on the nodes asked for; 77 where this machine cannot."""
    parser = _parser()
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.print_help()
        return EXIT_USAGE
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    reason = missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return EXIT_CANNOT_RUN
    ranks = options.ranks or [options.ranks_per_node] * options.nodes
    try:
        with emulated_cluster(ranks, options.rate) as bed:
            return _run(bed, command)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE


def _run(bed: Bed, command: list[str]) -> int:
    job: subprocess.Popen[bytes] = bed.popen(command)
    try:
        return _as_exit_code(job.wait())
    finally:
        end_job(job)


def _as_exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode


def _stop(number: int, frame: FrameType | None) -> None:
    # Later signals must not interrupt the clean-up that this one starts.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _ranks(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        usage="%(prog)s [--nodes N --ranks-per-node M | --ranks M,M,...] [--rate RATE] -- COMMAND",
        description="Runs an MPI command on emulated nodes with links of a given rate.",
    )
    parser.add_argument("--nodes", type=int, default=2, help="number of nodes (2)")
    parser.add_argument("--ranks-per-node", type=int, default=1, help="MPI ranks on each (1)")
    parser.add_argument("--ranks", type=_ranks, help="ranks of each node, such as 3,1")
    parser.add_argument("--rate", default="1gbit", help="of a node's link, each way (1gbit)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what mpirun starts, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
