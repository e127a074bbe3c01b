"""The exceptions of the package and the exit codes of its commands.

Knows nothing of MPI or of what raised the error; doors (cli, engine) turn these into messages and exit codes.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means; the same on every rank."""

    OK = 0
    USAGE = 2
    ROWS_FAILED = 3
    INTERNAL = 70
    TIMEOUT = 71
    INTERRUPTED = 75


class JanusError(Exception):
    """Base of the errors this package raises on purpose."""

    exit_code: ExitCode = ExitCode.INTERNAL


class UsageError(JanusError):
    """A mistake of the user's: the message names file, line or key, what was expected and what was found."""

    exit_code = ExitCode.USAGE


class ModelError(UsageError):
    """A model folder that cannot be used: missing, unreadable, of another shape or architecture."""


class JournalError(UsageError):
    """A journal or results file that is damaged or belongs to another run."""


class CommTimeout(JanusError):
    """A peer did not answer within the communication time limit."""

    exit_code = ExitCode.TIMEOUT


class LinkError(CommTimeout):
    """A link to another rank broke: the peer is gone, or what came does not fit."""
