"""The error of one row: what ends that row and lets all others run."""

from janus_hpc.errors import JanusError


class RowRejected(JanusError):
    """A row that cannot be run; becomes the row's error, never the run's.

    `field` is the key of the row at fault, `reason` what was expected and what was found.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason
