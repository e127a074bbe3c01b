"""A short form of the campaign of bad inputs; docs/reliability.md has the long one."""

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.campaign import Report, all_kinds, run_files_campaign, run_lines
from tests.fuzz.lines import check_lines
from tests.fuzz.odd import mutate_bytes
from tests.fuzz.oracle import Finding, expect
from tests.fuzz.rows import Line, Lines, make_file, valid_row
from tests.fuzz.sandbox import run_cases

SEED = 7


def test_lines(tmp_path: Path) -> None:
    report = Report()
    run_lines(SEED, 2000, tmp_path, tmp_path / "kept", report)
    assert report.findings == []
    assert report.num_cases >= 2000


def test_files(tmp_path: Path) -> None:
    kinds, report = all_kinds(tmp_path), Report()
    run_files_campaign(SEED, 4 * len(kinds), kinds, tmp_path, tmp_path / "kept", report)
    assert report.findings == []
    assert report.counts["refused"] and report.counts["accepted"]


def test_a_seed_gives_the_same_file() -> None:
    first, again = (make_file(Random("1:lines:3"), 200) for _ in range(2))
    assert first == again
    assert first.data != make_file(Random("1:lines:4"), 200).data


def test_the_oracle_knows_json() -> None:
    lines = Lines()
    for data in (b'{"a": 1}', b"[]", b'{"a": 1', b"", b"\xff", b'{"a": NaN}', b'{"a":"\x01"}'):
        lines.add(Line(data))
    assert expect(lines).must_fail == {1, 2, 3, 4, 6}


def test_what_the_package_gets_wrong_is_found(tmp_path: Path) -> None:
    """A row that must run, but cannot, is a finding."""
    lines = Lines()
    lines.add(Line(b'{"prompt": ""}', {"id": "row-0", "prompt": "", "messages": None}))
    with pytest.raises(Finding, match="line 1 is valid, but refused"):
        check_lines(lines, tmp_path)


def test_valid_rows_are_unlike_each_other() -> None:
    rng = Random(0)
    rows = [valid_row(rng, str(number)) for number in range(300)]
    keys = set().union(*rows, *(row.get("body", {}) for row in rows))
    assert {"prompt", "messages", "prompt_token_ids", "body", "custom_id", "logit_bias"} <= keys
    assert mutate_bytes(rng, b"abc" * 9) != b"abc" * 9


def _ends_badly(number: int, folder: Path) -> str:
    if number == 1:
        import os

        os.abort()
    if number == 2:
        while True:
            pass
    if number == 3:
        raise RecursionError("deep")
    return "fine"


def test_crashes_and_hangs_are_findings(tmp_path: Path) -> None:
    outcomes = run_cases(_ends_badly, range(5), tmp_path, limit_s=2.0)
    assert outcomes.counts["fine"] == 2
    told = dict(outcomes.findings)
    assert "died, exit code -6" in told[1] and "hangs" in told[2] and "RecursionError" in told[3]
