"""Damage to a results file is found and named, whatever it is, or changes nothing that is read."""

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from janus_hpc.core import FinishReason, RowResult, SampleResult, TokenLogprobs
from janus_hpc.errors import UsageError
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.reader import ResultsFile
from janus_hpc.results.verify import verify


def make_file(folder: Path) -> Path:
    results = [
        RowResult(
            index=index,
            id=f"id{index}",
            prompt_token_ids=[index, 2],
            samples=[
                SampleResult(
                    token_ids=[index],
                    text="\u00e9",
                    finish_reason=FinishReason.STOP,
                    logprobs=[TokenLogprobs(chosen=-1.0, top_ids=[1], top_logprobs=[-1.0])],
                    token_times_s=[0.5],
                )
            ],
        )
        for index in range(3)
    ]
    writer = JournalWriter(folder, 0, 0, bytes(32))
    writer.append_group(results)
    writer.close()
    merge(folder, folder / "out.h5", 3, bytes(32), {"model": "m"})
    return folder / "out.h5"


def edit(path: Path, name: str, at: int, value: int) -> None:
    with h5py.File(path, "r+") as file:
        file[name][at] = value


def test_whole_file(tmp_path: Path) -> None:
    report = verify(make_file(tmp_path))
    assert report.findings == []
    assert (report.num_rows, report.num_failed, report.num_samples) == (3, 0, 3)


@pytest.mark.parametrize("name", ["rows/index", "samples/token_ids_values", "rows/id_offsets"])
def test_changed_values_are_named(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path)
    edit(path, name, 1, 77)
    (finding,) = verify(path).findings
    assert finding.startswith(f"{name}: ") and "hashes to" in finding


def test_changed_attributes_and_missing_columns(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["model"] = "other"
        del file["samples/text_values"]
    findings = verify(path).findings
    assert [finding.split(":")[0] for finding in findings] == ["attributes", "samples/text_values"]


# What a wrong writer could make: the hashes hold, the columns do not fit together.
STRUCTURE = [
    ("rows/index", 1, 2, "order broken"),
    ("rows/status", 0, 9, "unknown status"),
    ("rows/status", 0, 1, "1 rows failed, expected 0"),
    ("rows/sample_offsets", 1, 3, "falls after item"),
    ("rows/sample_offsets", 3, 4, "ends at 4, expected 3"),
    ("rows/id_offsets", 0, 1, "starts at 1"),
    ("samples/row", 1, 2, "not those of their rows"),
    ("samples/finish_reason", 1, 7, "unknown finish reason"),
    ("samples/logprobs_present", 1, 0, "log probabilities do not stand"),
    ("samples/text_values", 0, 0xA9, "codec can't decode"),
    ("samples/text_offsets", 1, 1, "codec can't decode|starts inside a character"),
    ("samples/top_logprobs_offsets", 3, 2, "ends at 2"),
]


@pytest.mark.parametrize(("name", "at", "value", "message"), STRUCTURE)
def test_columns_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int, value: int, message: str
) -> None:
    path = make_file(tmp_path)
    edit(path, name, at, value)
    monkeypatch.setattr("janus_hpc.results.verify._check_dataset", lambda *_: None)
    found = "; ".join(verify(path).findings)
    assert any(part in found for part in message.split("|")), found


def test_wrong_type(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["rows/index"]
        file["rows/index"] = np.arange(3, dtype=np.int16)
    assert "rows/index: expected type <u8, found <i2" in verify(path).findings


def test_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such results file"):
        verify(tmp_path / "absent.h5")
    with h5py.File(tmp_path / "plain.h5", "w"):
        pass
    assert "no Janus-HPC results file" in verify(tmp_path / "plain.h5").findings[0]
    (tmp_path / "text.h5").write_text("hello")
    assert "not a readable HDF5 file" in verify(tmp_path / "text.h5").findings[0]


def test_truncation_is_found(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    whole = path.read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 8, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:length])
        assert verify(path).findings, length


def test_bit_flips_are_found_or_harmless(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    whole = path.read_bytes()
    with ResultsFile(path) as file:
        expected, attrs = list(file), file.attrs
    rng = random.Random(0)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        if not verify(path).findings:
            with ResultsFile(path) as file:
                assert (list(file), file.attrs) == (expected, attrs)
