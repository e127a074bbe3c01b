"""The `results` commands. Errors pass through to the door that runs them."""

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.batches import decisions, read_batches, table, without_nan
from janus_hpc.results.compare import compare
from janus_hpc.results.compare_text import comparison_lines
from janus_hpc.results.durable import refuse_input, write_file
from janus_hpc.results.export import FORMATS, export
from janus_hpc.results.join import join, join_journals
from janus_hpc.results.stdout import say_verdict
from janus_hpc.results.verify import verify


@click.group()
@click.pass_context
def results(ctx: click.Context) -> None:
    """Check, compare, join and show results files."""
    # A file begun is removed on the way out. Whoever has the signal ignored keeps it so.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)
        ctx.call_on_close(lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


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
        refuse_input(output, "-o", [file])
        write_file(output, "-o", lambda out: export(file, to, out, timing))


@results.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many rows that differ are shown.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How far log probabilities may be apart (0: not one bit).",
)
@click.option("--json", "json_to", help="Write what was found as JSON to this file, - for stdout.")
@click.pass_context
def compare_command(
    ctx: click.Context, a: Path, b: Path, limit: int, tolerance: float, json_to: str | None
) -> None:
    """Tell whether the runs of A and B gave the same bytes, and where not. Times do not count.

    Exit codes: 0 the same; 1 different; 2 usage, or a damaged file; 70 the output cannot be written.
    """
    target = None if json_to in (None, "-") else Path(json_to)
    if target is not None:
        refuse_input(target, "--json", [a, b])
    found = compare(a, b, limit=limit, tolerance=tolerance)
    record = json.dumps(found.record(), indent=1, allow_nan=False)
    if target is not None:
        write_file(target, "--json", lambda out: out.write(f"{record}\n".encode()))
    say_verdict(record if json_to == "-" else "\n".join(comparison_lines(found, tolerance)))
    ctx.exit(0 if found.same else 1)


@results.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--partial", is_flag=True, help="Rows before or after the FILES may be missing.")
def merge_command(files: tuple[Path, ...], output: Path, overwrite: bool, partial: bool) -> None:
    """Join FILES, the results of one run's shards (infer --shard), into one results file.

    One folder X.h5.run instead: the journals of an interrupted run, if all its rows are finished.
    """
    folders = [path for path in files if path.is_dir()]
    if folders and len(files) > 1:
        raise UsageError(f"{folders[0]}: a run folder is merged alone, got {len(files)} names")
    if folders and partial:
        raise UsageError(f"{folders[0]}: --partial is for files; resume the run to finish its rows")
    if folders:
        report = join_journals(folders[0], output, overwrite=overwrite, progress=_tell)
    else:
        report = join(files, output, partial=partial, overwrite=overwrite, progress=_tell)
    click.echo(f"{output}: {report.num_rows} rows, {report.num_failed} failed")


def _tell(what: str) -> None:
    # Nothing is lost where nobody reads it.
    with suppress(OSError):
        click.echo(what, err=True)


@results.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write [FILE with .html]"
)
def report_command(file: Path, output: Path | None) -> None:
    """Write FILE as one page of HTML with plots, which needs no network: look at it in a browser."""
    from janus_hpc.results.report.page import report_page

    output = file.with_suffix(".html") if output is None else output
    refuse_input(output, "-o", [file])
    page = report_page(file).encode()
    write_file(output, "-o", lambda out: out.write(page))
    click.echo(f"{output}: {len(page) / 1e3:.0f} kB")


@results.command("batches")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="All columns as JSON instead of a table.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Also draw the ranks' roles over time."
)
def batches_command(file: Path, as_json: bool, plot: Path | None) -> None:
    """What was decided before each batch of FILE, and its step times in ms, predicted/measured."""
    if plot is not None:
        refuse_input(plot, "--plot", [file])
    found = read_batches(file)
    if as_json:
        click.echo(json.dumps(without_nan(found), indent=1, allow_nan=False))
    else:
        click.echo("\n".join([*table(found), *decisions(found)]))
    if plot is not None:
        from janus_hpc.results.timeline import draw_roles

        draw_roles(found, plot)
