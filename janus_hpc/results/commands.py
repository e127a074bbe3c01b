"""The `results` commands: verify, export, batches. Errors pass through to the door that runs them."""

import json
import os
import sys
from pathlib import Path

import click

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.batches import decisions, read_batches, table
from janus_hpc.results.durable import check_replaceable
from janus_hpc.results.export import FORMATS, export
from janus_hpc.results.verify import verify


@click.group()
def results() -> None:
    """Check and convert results files."""


@results.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
def verify_command(file: Path) -> None:
    """Re-read FILE and check checksums, order, offsets, text and counts."""
    report = verify(file)
    for finding in report.findings:
        click.echo(finding)
    if report.findings:
        raise JournalError(f"{file}: {len(report.findings)} findings")
    click.echo(
        f"{file}: whole; {report.num_rows} rows, {report.num_failed} failed,"
        f" {report.num_samples} samples"
    )


@results.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), default="jsonl", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write; standard output if not given.",
)
@click.option(
    "--timing/--no-timing",
    default=True,
    show_default=True,
    help="Without timing, two runs that gave the same answers export the same bytes.",
)
def export_command(file: Path, to: str, output: Path | None, timing: bool) -> None:
    """Write the rows of FILE as JSON lines, OpenAI batch output lines or Parquet, or its routing trace."""
    if output is None:
        export(file, to, sys.stdout.buffer, timing)
    else:
        _export_to_file(file, to, output, timing)


def _export_to_file(file: Path, to: str, output: Path, timing: bool) -> None:
    """Writes aside and renames, so that `output` is whole or untouched."""
    check_replaceable(output, "-o")
    aside = output.with_name(f"{output.name}.tmp")
    try:
        with aside.open("wb") as out:
            export(file, to, out, timing)
        os.replace(aside, output)
    except OSError as error:
        raise UsageError(f"{output}: cannot write: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


@results.command("batches")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="All columns as JSON instead of a table.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Also draw the ranks' roles over time."
)
def batches_command(file: Path, as_json: bool, plot: Path | None) -> None:
    """What was decided before each batch of FILE, and its step times in ms, predicted/measured."""
    found = read_batches(file)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join([*table(found), *decisions(found)]))
    if plot is not None:
        from janus_hpc.results.timeline import draw_roles

        draw_roles(found, plot)
