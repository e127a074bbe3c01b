"""The `janus-hpc` command: options in, exit code out. Heavy imports wait until a sub-command needs them."""

import errno
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from janus_hpc import __version__, config
from janus_hpc.cli_options import run_options
from janus_hpc.cli_world import start_world
from janus_hpc.errors import ExitCode, JanusError, UsageError, refusal_text
from janus_hpc.launch import LaunchEnv, limit_openmp_spinning, read_launch


def main() -> None:
    """Entry point of the console script: a user's mistake is one message and exit 2, never a traceback."""
    speaks = True
    try:
        env = read_launch()
        limit_openmp_spinning()
        speaks = env.world_rank == 0
        code = _command(env)
        if sys.stdout is not None:
            # What a command left unwritten is refused here, not when Python ends.
            sys.stdout.flush()
        sys.exit(code)
    except click.Abort:
        sys.exit(int(ExitCode.INTERRUPTED))
    except JanusError as error:
        if speaks:
            click.echo(f"janus-hpc: {error}", err=True)
        sys.exit(int(error.exit_code))
    except OSError as error:
        sys.exit(_refused(error, speaks))


def _refused(error: OSError, speaks: bool) -> int:
    """One message for what the system refused, and the exit code. Raises an error of the program's own."""
    from janus_hpc.results.stdout import drop_unwritten

    drop_unwritten()
    if error.errno == errno.EPIPE:
        # As click does where it sees the reader leave.
        return 1
    if error.errno == errno.ENAMETOOLONG:
        # Whatever asks for such a name was given it by the user, and so was every rank.
        if speaks:
            click.echo(f"janus-hpc: {error.strerror}: {error.filename}", err=True)
        return int(ExitCode.USAGE)
    text = refusal_text(error)
    if text is None:
        raise error
    # Other ranks may be refused nothing, so each says its own.
    click.echo(f"janus-hpc: {text}", err=True)
    return int(ExitCode.INTERNAL)


def _command(env: LaunchEnv) -> int:
    try:
        code: int = cli.main(standalone_mode=False, obj=env)
    except click.ClickException as error:
        # Every rank has the same command line, so all of them are here.
        if env.world_rank == 0:
            error.show()
        if env.world_size > 1:
            world = start_world(env)

            from janus_hpc.comm.guard import leave_together

            leave_together(world)
        return int(ExitCode.USAGE)
    return code


SUB_COMMANDS = {
    "bench": "janus_hpc.bench.commands:bench",
    "doctor": "janus_hpc.doctor.commands:doctor",
    "model": "janus_hpc.models.commands:model",
    "plan": "janus_hpc.plan.commands:plan",
    "profile": "janus_hpc.profile.commands:profile",
    "results": "janus_hpc.results.commands:results",
    "simulate": "janus_hpc.simulate.commands:simulate",
    "status": "janus_hpc.status.commands:status",
}


class LazyGroup(click.Group):
    """Imports a sub-command's module only when it is called or listed: torch takes seconds to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *SUB_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUB_COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = SUB_COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="janus-hpc")
def cli() -> None:
    """Batch inference for Mixture-of-Experts models on clusters.

    Start it alone, under mpirun or under srun: every rank runs the same command.
    """


@cli.command()
@click.argument("prompts", required=False)
@click.option(
    "--job", type=click.Path(path_type=Path), default=None, help="TOML file of these options"
)
@run_options()
@click.pass_obj
def infer(env: LaunchEnv, /, prompts: str | None, job: Path | None, **flags: Any) -> int:
    """Answer every row of PROMPTS (a JSONL file) and write one HDF5 file.

    Exit codes: 0 all rows answered; 2 usage; 3 finished, some rows failed; 70 internal error;
    71 communication time-out; 75 interrupted, and the same command resumes.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if prompts is not None:
        given["prompts"] = prompts
    run_config, error = _load(job, given)
    if error is not None and env.world_size == 1:
        raise error
    world = start_world(env)

    from janus_hpc.comm.guard import guard

    with guard(world):
        world.agree(error)
        assert run_config is not None

        from janus_hpc.engine.run import infer as run_infer

        return int(run_infer(world, env, run_config))
    raise AssertionError("the guard ends the program on every error")


def _load(
    job: Path | None, given: dict[str, Any]
) -> tuple[config.RunConfig | None, UsageError | None]:
    try:
        return config.load(job, given), None
    except UsageError as error:
        return None, error
