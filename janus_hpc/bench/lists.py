"""Lists on the command line: numbers and names separated by commas, checked with a message that says what was
expected.
"""

from collections.abc import Sequence

from janus_hpc.errors import UsageError


def sizes(text: str, option: str) -> list[int]:
    """Positive numbers. UsageError for anything else."""
    found = text.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in found):
        raise UsageError(f"{option}: expected numbers such as 1,8,32, got {text!r}")
    return [int(size) for size in found]


def names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Names that are all known. UsageError listing these."""
    found = text.split(",")
    if unknown := [name for name in found if name not in known]:
        raise UsageError(f"{option}: {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return found
