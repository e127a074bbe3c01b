"""What a run says of itself is lost where it cannot be written, said once, and never a reason to end."""

import errno
import logging
from pathlib import Path

import pytest

from janus_hpc.engine.progress import Progress
from janus_hpc.errors import refusal_text
from janus_hpc.log import ROOT_LOGGER, setup_logging

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_log_file_on_a_full_disk_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger = setup_logging("rank 0", console=False, file=FULL)
    try:
        logger.info("one")
        logger.info("two")
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    said = capsys.readouterr().err
    assert said == "warning: /dev/full: cannot be written: No space left on device\n"
    assert not logging.getLogger(ROOT_LOGGER).handlers


def test_a_progress_file_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "janus_hpc.engine.progress.log.warning", lambda text, *values: said.append(text % values)
    )
    path = tmp_path / "gone" / "progress.json"
    progress = Progress(path, 3, 0, 0)
    progress.update([(0,) * 6], "running")
    progress.complete()
    assert said == [f"{path}.tmp: cannot be written: No such file or directory"]


def test_what_the_file_system_refuses_is_one_line() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "a/b.jnl")
    assert refusal_text(full) == "a/b.jnl: No space left on device (errno 28)"
    assert refusal_text(OSError(errno.EROFS, "Read-only file system")) is not None
    for own in (OSError(errno.EBADF, "Bad file descriptor"), ValueError("x"), OSError("x")):
        assert refusal_text(own) is None
