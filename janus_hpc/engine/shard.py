"""Which rows of the input a launch answers: all of them, or one of n contiguous shards. Pure."""

import re

from janus_hpc.errors import UsageError


def shard_rows(text: str, num_rows: int) -> range:
    """The rows of `--shard K/N`, K from 1 to N; all for "". Sizes within one of another.

    Errors: UsageError for anything else.
    """
    if not text:
        return range(num_rows)
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text!r}: expected K/N with 1 <= K <= N, such as 2/3")
    shard, num_shards = int(match[1]), int(match[2])
    return range((shard - 1) * num_rows // num_shards, shard * num_rows // num_shards)
