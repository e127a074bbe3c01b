"""`janus-hpc doctor`: the options, the start of MPI as far as it goes, and the exit code."""

import socket
import time
import warnings
from pathlib import Path

import click

from janus_hpc import config
from janus_hpc.demo import demo_model_dir
from janus_hpc.doctor import mpi
from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context, Places, Target, places_alone
from janus_hpc.doctor.finding import Finding
from janus_hpc.doctor.report import lines_of, summary, to_json
from janus_hpc.doctor.run import SomeRanksSilent, examine, exit_code
from janus_hpc.doctor.table import CHECKS, chosen
from janus_hpc.doctor.watchdog import Watchdog
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.stdout import say_verdict

_NAMES = ", ".join(check.name for check in CHECKS)
# Starting as many processes as there are may take longer than any check.
_START_FACTOR = 5.0
_BAD = 2


@click.command(epilog="Exit codes: 0 nothing wrong; 1 warnings; 2 errors, or a wrong option.")
@click.option(
    "--model", "model_dir", type=click.Path(path_type=Path), help="model folder [the demo model]"
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="results file to be [in the working folder]",
)
@click.option(
    "--job", type=click.Path(path_type=Path), help="take model, output and more from this TOML file"
)
@click.option("--json", "json_path", help="write the findings here as JSON; - is standard output")
@click.option("--only", metavar="NAMES", help=f"only these checks: {_NAMES}")
@click.option("--skip", metavar="NAMES", help="all checks but these")
@click.option("--quick", is_flag=True, help="measure no bandwidth")
@click.option(
    "--timeout-s",
    default=60.0,
    type=click.FloatRange(0.1),
    help="longest wait of a check, seconds [60]",
)
@click.pass_obj
def doctor(
    env: LaunchEnv,
    /,
    model_dir: Path | None,
    output: Path | None,
    job: Path | None,
    json_path: str | None,
    only: str | None,
    skip: str | None,
    quick: bool,
    timeout_s: float,
) -> int:
    """Look for what would make a run fail or crawl here: alone, under mpirun or under srun.

    Start it the way the run will be started, on the same nodes, with as many ranks.
    """
    checks = chosen(only, skip)
    target = _target(job, model_dir, output)
    label = f"process {env.world_rank} on {socket.gethostname()}"
    with Watchdog(label) as watchdog:
        watchdog.expect("starting MPI with all other processes", _START_FACTOR * timeout_s)
        context = _start(env, target, quick, timeout_s)
        if context.is_alone and env.world_rank > 0:
            # Without MPI it may be so on this host alone; else every process would say the same.
            if context.world is None:
                text = f"{label}: mpi4py finds no MPI library: {context.no_mpi}"
                click.echo(f"janus-hpc doctor: {text}", err=True)
            return _BAD
        if context.is_alone and mpi.CHECK not in checks:
            # No other check may call this world good.
            checks = [mpi.CHECK, *checks]
        if context.world is None:
            return _report(context, checks, json_path, watchdog)
        from janus_hpc.comm.guard import guard

        with guard(context.world):
            code = _report(context, checks, json_path, watchdog)
            agreed: int = context.world.bcast(code)
            return agreed
    raise AssertionError("the guard ends the program on every error")


def _target(job: Path | None, model_dir: Path | None, output: Path | None) -> Target:
    """What the job file says, where the command line says nothing else."""
    prompts = "prompts.jsonl"
    run = config.load(None, {"prompts": prompts}) if job is None else config.load_job(job)[0]
    name = run.output or Path(run.prompts or prompts).with_suffix(".h5").name
    return Target(
        model_dir=model_dir or (Path(run.model) if run.model else demo_model_dir()),
        output=output or Path(name),
        device=run.device,
        dtype=run.dtype,
        threads=run.threads,
    )


def _start(env: LaunchEnv, target: Target, quick: bool, timeout_s: float) -> Context:
    """This rank's view, with MPI where there is one. Collective over the world."""
    world, no_mpi = None, ""
    places = places_alone(socket.gethostname())
    try:
        with warnings.catch_warnings():
            # mpi4py suspects a foreign launcher; check `mpi` knows, and says it better.
            warnings.simplefilter("ignore", RuntimeWarning)
            from janus_hpc.comm.world import World

        world = World.start()
        places = Places(node_ids=world.node_ids, hosts=world.hosts, local_ranks=world.local_ranks)
    except (ImportError, RuntimeError) as problem:
        no_mpi = str(problem)
    return Context(
        env=env,
        places=places,
        world_rank=0 if world is None else world.world_rank,
        world=world,
        no_mpi=no_mpi,
        target=target,
        quick=quick,
        timeout_s=timeout_s,
    )


def _report(
    context: Context, checks: list[Check], json_path: str | None, watchdog: Watchdog
) -> int:
    """Make the checks and say what they found; the exit code on rank 0, 0 elsewhere."""
    num_ranks = context.places.world_size
    findings: list[Finding] = []
    is_over = False

    def say(finding: Finding) -> None:
        findings.append(finding)
        tell("\n".join(lines_of(finding, num_ranks)))

    def tell(text: str) -> None:
        if json_path != "-":
            say_verdict(text)

    try:
        examine(context, checks, say, watchdog)
    except SomeRanksSilent:
        is_over = True
    if context.world_rank > 0:
        return 0
    tell(summary(findings, num_ranks, context.places.num_nodes))
    if json_path is not None:
        _write(json_path, to_json(findings))
    if is_over and context.world is not None:
        from janus_hpc.comm.guard import FORWARD_S

        # Those that hang cannot be told; the launcher ends them.
        time.sleep(FORWARD_S)
        context.world.abort(_BAD)
    return exit_code(findings)


def _write(json_path: str, text: bytes) -> None:
    try:
        with click.open_file(json_path, "wb") as out:
            out.write(text)
    except OSError as problem:
        raise UsageError(f"--json {json_path}: cannot be written: {problem.strerror}") from problem
