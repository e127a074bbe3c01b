"""Standard output that nobody reads any more, or that cannot be written."""

import os
import sys

import click


def say_verdict(text: str) -> None:
    """Prints `text`, whose verdict the exit code tells, too: a reader that left does not change it.

    Raises OSError for any other refusal.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        drop_unwritten()


def drop_unwritten() -> None:
    """Forgets what standard output refused: Python would try again at its end, and exit with a code of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
