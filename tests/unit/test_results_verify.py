"""Damage to a results file is found and named, whatever it is, or changes nothing that is read."""

import hashlib
import random
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from janus_hpc.core import FinishReason, RowResult, SampleResult, TokenLogprobs
from janus_hpc.errors import UsageError
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.merge import merge
from janus_hpc.results.reader import ResultsFile
from janus_hpc.results.stats import LayerStats, PlacementStats, RunStats
from janus_hpc.results.verify import verify
from tests.unit.sample_stats import TRACE


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
    merge(folder, folder / "out.h5", 3, bytes(32), {"model": "m"}, stats=make_stats())
    return folder / "out.h5"


def make_stats() -> RunStats:
    """Two layers of three experts, one choice a token, one placement on two ranks of two slots."""
    layers = LayerStats(
        expert_activations=np.array([[2, 0, 1], [0, 1, 0]]),
        a_max_mean=np.ones(2),
        a_max_max=np.ones(2, np.int64),
        num_steps=1,
    )
    slots_LRC = np.array([[[0, 1], [2, -1]], [[2, 1], [0, 1]]], np.int32)
    placement = PlacementStats(epoch=0, slots_LRC=slots_LRC, kind="even", why="\u00e9", digest="d")
    return RunStats(layers=layers, placements=[placement], routing=TRACE)


At = int | tuple[int, ...]


def edit(path: Path, name: str, at: At, value: int) -> None:
    with h5py.File(path, "r+") as file:
        file[name][at] = value


def test_whole_file(tmp_path: Path) -> None:
    report = verify(make_file(tmp_path))
    assert report.findings == []
    assert (report.num_rows, report.num_failed, report.num_samples) == (3, 0, 3)


CHANGED: list[tuple[str, At]] = [
    ("rows/index", 1),
    ("samples/token_ids_values", 1),
    ("rows/id_offsets", 1),
    ("layers/activated_mean", 1),
    ("placements/epoch", 0),
    ("placements/slots", (0, 1, 1, 1)),
    ("placements/kind_values", 0),
    ("routing/layer_ids", 0),
    ("routing/num_tokens", 1),
    ("routing/counts", (1, 1)),
    ("routing/coactivation", (0, 1, 2)),
    ("routing/num_routes", 0),
    ("routing/routes", (1, 0, 0)),
]


@pytest.mark.parametrize(("name", "at"), CHANGED)
def test_changed_values_are_named(tmp_path: Path, name: str, at: At) -> None:
    path = make_file(tmp_path)
    edit(path, name, at, 77)
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
STRUCTURE: list[tuple[str, At, int, str]] = [
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
    ("placements/why_values", 0, 0xA9, "codec can't decode"),
    ("placements/slots", (0, 1, 1, 1), 3, "out of range in the slots of placement 0"),
    ("placements/slots", (0, 0, 0, 0), -2, "out of range in the slots of placement 0"),
]
# The same for whole arrays.
SHAPES = [
    ("layers/activated_mean", np.zeros(3), "activated_mean has 3 layers, expected 2"),
    ("placements/slots", np.zeros((2, 2, 2, 2), np.int32), "2 of slots, expected 1"),
    ("placements/slots", np.zeros((1, 3, 2, 2), np.int32), "slots of 3 layers, expected 2"),
    ("placements/slots", np.zeros((1, 2, 4), np.int32), "slots have 3 dimensions, expected 4"),
    ("routing/routes", np.zeros((2, 2, 2), np.int16), "routes has shape"),
    ("routing/routes", np.full((2, 2, 1), 3, np.int16), "expert ids out of range"),
    ("routing/num_routes", np.zeros(3, np.int64), "num_routes has shape"),
    ("routing/counts", np.zeros((2, 3), np.int64), "counts of layer 0 do not fit its tokens"),
    ("layers/expert_activations", np.zeros((2, 4), np.int64), "layers and experts, expected"),
]


@pytest.mark.parametrize(("name", "at", "value", "message"), STRUCTURE)
def test_columns_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: At, value: int, message: str
) -> None:
    path = make_file(tmp_path)
    edit(path, name, at, value)
    monkeypatch.setattr("janus_hpc.results.verify._check_dataset", lambda *_: None)
    found = "; ".join(verify(path).findings)
    assert any(part in found for part in message.split("|")), found


@pytest.mark.parametrize(("name", "values", "message"), SHAPES)
def test_arrays_that_do_not_fit(
    tmp_path: Path, name: str, values: npt.NDArray[np.generic], message: str
) -> None:
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        file[name].attrs["sha256"] = np.bytes_(digest)
    found = "; ".join(verify(path).findings)
    assert message in found, found


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


def test_a_file_of_another_version_says_so(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 1
    message = "schema_version 1; this program reads 4; read it with the version"
    (finding,) = verify(path).findings
    assert message in finding
    with pytest.raises(UsageError, match=message):
        ResultsFile(path)


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
