"""Sets up the standard library's logging for a program on many ranks.

Knows how a line is prefixed and which ranks may speak, nothing of what is said.
"""

import logging
import sys

ROOT_LOGGER = "janus_hpc"


def setup_logging(label: str, *, console: bool, level: int = logging.INFO) -> logging.Logger:
    """Write the package's log to stderr as `[label] message`; without `console` only warnings.

    `label` names the rank, as `Topology.label` does. May be called again when the role is known.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"[{label}] %(levelname_prefix)s%(message)s"))
    handler.addFilter(_name_levels)
    logger = logging.getLogger(ROOT_LOGGER)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level if console else max(level, logging.WARNING))
    logger.propagate = False
    return logger


def _name_levels(record: logging.LogRecord) -> bool:
    """Progress reads as plain text; warnings and errors say what they are."""
    is_notable = record.levelno >= logging.WARNING
    record.levelname_prefix = f"{record.levelname.lower()}: " if is_notable else ""
    return True
