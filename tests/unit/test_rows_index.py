"""The index finds every row and every duplicate id; the reader reads what the index says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_hpc.core import SamplingParams
from janus_hpc.errors import UsageError
from janus_hpc.rows import index as index_module
from janus_hpc.rows import parse as parse_module
from janus_hpc.rows import reader as reader_module
from janus_hpc.rows.ids import hash_id
from janus_hpc.rows.index import InputIndex, build_index
from janus_hpc.rows.parse import parse_row
from janus_hpc.rows.reader import RowReader, first_errors

DEFAULTS = SamplingParams()


def build(folder: Path, data: bytes) -> tuple[Path, InputIndex]:
    path = folder / "in.jsonl"
    path.write_bytes(data)
    return path, build_index(path, folder / "in.idx")


def test_rows_ids_and_duplicates(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "prompt": "0"},
        {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "1"}]}},
        {"id": "a", "prompt": "2"},
        {"prompt": "3"},
        {"id": "row-3", "prompt": "4"},
        {"id": "a", "prompt": "5"},
    ]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    path, index = build(tmp_path, data)
    assert (index.num_rows, index.num_duplicates, index.size_bytes) == (6, 3, len(data))
    assert index.sha256 == hashlib.sha256(data).hexdigest()
    assert [index.first_line_of(row) for row in range(6)] == [None, None, 1, None, 4, 1]
    assert index.chat.tolist() == [False, True, False, False, False, False]
    assert index.id_hashes[0] == hash_id("a") == index.id_hashes[2]
    with RowReader(path, index, DEFAULTS) as reader:
        rows = list(reader.read_range(0, 6))
        assert first_errors(reader, 2) == [rows[2].error, rows[4].error]
    assert [row.text for row in rows] == ["0", None, None, "3", None, None]
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6]
    error = rows[5].error
    assert error is not None
    assert (error.line, error.field) == (6, "id")
    assert error.reason == "duplicate id: first given on line 1"


def test_equal_hashes_are_confirmed_by_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "hash_id", len)
    data = b"".join(b'{"id": "%s", "prompt": "p"}\n' % name for name in (b"a", b"b", b"a", b"cc"))
    _, index = build(tmp_path, data)
    assert [index.first_line_of(row) for row in range(4)] == [None, None, 1, None]


def test_blank_lines(tmp_path: Path) -> None:
    path, index = build(tmp_path, b'\n{"prompt": "a"}\n  \n{"prompt": "b"}\n\n \r\n\n')
    with RowReader(path, index, DEFAULTS) as reader:
        rows = list(reader.read_range(0, reader.num_rows))
    assert [row.text for row in rows] == [None, "a", None, "b"]
    assert [row.error.reason for row in rows if row.error] == ["blank line", "blank line"]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n"])
def test_no_rows(tmp_path: Path, data: bytes) -> None:
    path, index = build(tmp_path, data)
    assert (index.num_rows, len(index.offsets), len(index.id_hashes)) == (0, 1, 0)
    with RowReader(path, index, DEFAULTS) as reader:
        assert first_errors(reader, 1) == []


def test_overlong_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (index_module, parse_module, reader_module):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 50)
    long = b'{"id": "long", "prompt": "%s"}' % (b"x" * 200)
    path, index = build(tmp_path, b'{"prompt": "a"}\n' + long + b'\n{"prompt": "b"}')
    with RowReader(path, index, DEFAULTS) as reader:
        rows = list(reader.read_range(0, 3))
    assert [row.text for row in rows] == ["a", None, "b"]
    assert rows[1].error is not None
    assert "line of 229 bytes; at most 50" in rows[1].error.reason


@given(
    lines=st.lists(
        st.sampled_from([b'{"prompt":"a"}', b'{"id":1,"prompt":"b"}', b"", b" ", b"\xff", b"{"]),
        max_size=12,
    ),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
    order=st.randoms(use_true_random=False),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_reader_agrees_with_splitting(
    tmp_path: Path, lines: list[bytes], end: bytes, order: object
) -> None:
    path, index = build(tmp_path, b"\n".join(lines) + end)
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    expected = [parse_row(line, at, at + 1, DEFAULTS) for at, line in enumerate(lines)]
    assert index.num_rows == len(expected)
    seen: dict[str, int] = {}
    rows = list(range(len(lines)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    with RowReader(path, index, DEFAULTS) as reader:
        found = {row: reader.read(row) for row in rows}
    for row, want in enumerate(expected):
        first = seen.setdefault(want.id, row)
        if first == row:
            assert found[row] == want
        else:
            error = found[row].error
            assert error is not None and f"line {first + 1}" in error.reason


def test_progress_and_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_ROWS_PER_PROGRESS", 4)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' * 10)
    seen: list[int] = []
    index = build_index(path, tmp_path / "in.idx", seen.append)
    assert seen == [4, 8]
    assert np.array_equal(index.offsets, np.arange(11) * 16)


def test_unusable_inputs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such input file"):
        build_index(tmp_path / "absent", tmp_path / "i")
    with pytest.raises(UsageError, match="expected a regular file"):
        build_index(tmp_path, tmp_path / "i")
    (tmp_path / "in").write_bytes(b"{}")
    with pytest.raises(UsageError, match="cannot index"):
        build_index(tmp_path / "in", tmp_path / "absent" / "i")


def test_changed_input_and_damaged_index(tmp_path: Path) -> None:
    path, index = build(tmp_path, b'{"prompt": "a"}\n')
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="changed since it was indexed: 16 bytes then, 2 now"):
        RowReader(path, index, DEFAULTS)
    whole = (tmp_path / "in.idx").read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"x" * len(whole)):
        (tmp_path / "bad.idx").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"bad\.idx"):
            InputIndex.open(tmp_path / "bad.idx")
