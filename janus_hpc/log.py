"""Where the package's log goes: the console of world rank 0, and one file a rank. Says where ranks may speak,
nothing of what is said.
"""

import logging
import sys
from contextlib import suppress
from pathlib import Path

ROOT_LOGGER = "janus_hpc"


def setup_logging(
    label: str, *, console: bool, level: str = "info", file: Path | None = None
) -> logging.Logger:
    """Write the package's log to stderr as `[label] message`, and with the time to `file`, appending.

    `label` names the rank, as `Topology.label` does. Without `console` only warnings go to stderr. Every line is
    written in one go, so that lines of several ranks do not mix. Raises OSError where the file cannot be written.
    """
    logger = logging.getLogger(ROOT_LOGGER)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    least = logging.getLevelNamesMapping()[level.upper()]
    on_console = logging.StreamHandler(sys.stderr)
    on_console.setLevel(least if console else max(least, logging.WARNING))
    logger.addHandler(on_console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        logger.addHandler(_LogFile(file, encoding="utf-8"))
    for handler in logger.handlers:
        handler.addFilter(_name_levels)
    relabel(label)
    logger.setLevel(least)
    logger.propagate = False
    return logger


def relabel(label: str) -> None:
    """The rank has another role from now on."""
    for handler in logging.getLogger(ROOT_LOGGER).handlers:
        time = "%(asctime)s " if isinstance(handler, logging.FileHandler) else ""
        handler.setFormatter(logging.Formatter(f"{time}[{label}] %(levelname_prefix)s%(message)s"))


class _LogFile(logging.FileHandler):
    """Says once that its file cannot be written (a full disk), and lets the program go on."""

    def __init__(self, path: Path, encoding: str) -> None:
        super().__init__(path, encoding=encoding)
        self._has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            sys.stderr.write(f"warning: {self.baseFilename}: cannot be written: {error.strerror}\n")

    def close(self) -> None:
        # What could not be written is tried again here.
        with suppress(OSError):
            super().close()


def _name_levels(record: logging.LogRecord) -> bool:
    """Progress reads as plain text; debug lines, warnings and errors say what they are."""
    is_plain = record.levelno == logging.INFO
    record.levelname_prefix = "" if is_plain else f"{record.levelname.lower()}: "
    return True


def write_to_file(text: str) -> None:
    """Into the rank's log file alone, for what is already on the console."""
    record = logging.LogRecord(ROOT_LOGGER, logging.ERROR, "", 0, text, None, None)
    for handler in logging.getLogger(ROOT_LOGGER).handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
