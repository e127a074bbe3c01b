"""Shards cover every row once, in order, and a wrong one is refused."""

import pytest

from janus_hpc.engine.shard import shard_rows
from janus_hpc.errors import UsageError


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 8])
def test_shards_cover_every_row_once(num_rows: int, num_shards: int) -> None:
    shards = [shard_rows(f"{k}/{num_shards}", num_rows) for k in range(1, num_shards + 1)]
    assert [row for rows in shards for row in rows] == list(range(num_rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_no_shard_is_all() -> None:
    assert shard_rows("", 5) == range(5)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", "1.5/2", " 1/3"]
)
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="K/N"):
        shard_rows(text, 10)
