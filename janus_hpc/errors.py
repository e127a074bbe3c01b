"""The exceptions of the package and the exit codes of its commands.

Knows nothing of MPI or of what raised the error; doors (cli, engine) turn these into messages and exit codes.
"""

import errno
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


# What a file system refuses for reasons that lie outside of the program.
_REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    | {errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE}
)


def refusal_text(error: BaseException) -> str | None:
    """In one line what the file system refused: a full disk, lost permissions, a file that is gone. None for any
    other error, which is the program's own.
    """
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    name = "" if error.filename is None else f"{error.filename}: "
    return f"{name}{error.strerror} (errno {error.errno})"
