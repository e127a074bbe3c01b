"""Files that a campaign of bad inputs has found to crash, hang or fill the memory: each is refused by name."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from janus_hpc.cli import main
from janus_hpc.core import FinishReason, RowResult, SampleResult, SamplingParams
from janus_hpc.errors import JournalError, ModelError, UsageError
from janus_hpc.models.registry import load_spec
from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.manifest import began_at_unix_s, load_manifest, start_launch
from janus_hpc.results.record import HEADER_BYTES, RecordType, encode_record
from janus_hpc.results.scan import read_record
from janus_hpc.results.sources import RecordReader, choose_records
from janus_hpc.results.verify import verify
from janus_hpc.routing.trace_file import read_trace, write_trace
from janus_hpc.rows.index import build_index
from janus_hpc.rows.index_file import HEADER_BYTES as INDEX_HEADER_BYTES
from janus_hpc.rows.index_file import InputIndex
from janus_hpc.rows.reader import RowReader
from janus_hpc.weights.checkpoint import INDEX_NAME, Checkpoint
from tests.fuzz.model_files import DEEPSEEK, QWEN, YARN
from tests.fuzz.traces import demo_trace
from tests.unit.test_results_verify import make_file

DEEP = "[" * 100_000 + "]" * 100_000
FINGERPRINT = bytes(32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ({"num_experts": 10**6}, "num_experts"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"rope_theta": -5.0}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"head_dim": 7}, "even number"),
        ({"rope_parameters": {**YARN, "factor": 0.0}}, "factor"),
        ({"rope_parameters": {**YARN, "beta_slow": -1}}, "beta_slow"),
        ({"architectures": [["Qwen3MoeForCausalLM"]]}, "architectures"),
        ({"hidden_size": "x" * 100_000}, "hidden_size"),
    ],
)
def test_config_of_no_model(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, **changes}))
    with pytest.raises(ModelError, match=rf"config\.json.*{told}") as caught:
        load_spec(tmp_path)
    assert len(str(caught.value)) < 1000


def test_config_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_spec(tmp_path)


def test_valid_configs_of_the_campaign(tmp_path: Path) -> None:
    for values in (QWEN, {**QWEN, "rope_parameters": YARN}, DEEPSEEK):
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert load_spec(tmp_path).hidden == 16


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "none", ".."])
def test_index_of_files_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(ModelError, match="names files that do not exist"):
        Checkpoint(tmp_path)


def test_index_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(DEEP)
    with pytest.raises(ModelError, match="not a safetensors index"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["counts", "routes", "layer_ids"])
def test_trace_that_says_it_is_huge(tmp_path: Path, name: str) -> None:
    """A chunked dataset may have any shape and no bytes; reading it would fill the memory with zeros."""
    path = tmp_path / "trace.h5"
    write_trace(path, demo_trace(), model="m", created=0)
    with h5py.File(path, "r+") as file:
        dtype = file[f"routing/{name}"].dtype
        del file[f"routing/{name}"]
        dataset = file["routing"].create_dataset(name, (2**40, 4, 4), dtype, chunks=(16, 4, 4))
        dataset.attrs["sha256"] = np.bytes_("0" * 64)
    with pytest.raises(UsageError, match=rf"trace\.h5.*{name}.*bytes are stored"):
        read_trace(path)


def test_results_that_say_they_are_huge(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        dtype = file["samples/token_ids_values"].dtype
        del file["samples/token_ids_values"]
        file.create_dataset("samples/token_ids_values", (2**40,), dtype, chunks=(16,))
    (finding,) = verify(path).findings
    assert "samples/token_ids_values" in finding and "bytes are stored" in finding


def _journal(folder: Path) -> Path:
    writer = JournalWriter(folder, 0, 0, FINGERPRINT)
    sample = SampleResult(token_ids=[1], text="a", finish_reason=FinishReason.STOP)
    for row in range(2):
        writer.append(RowResult(index=row, id=f"{row}", prompt_token_ids=[1], samples=[sample]))
    writer.close()
    return writer.path


@pytest.mark.parametrize(
    ("payload", "told"),
    [(b"\x81", "was not written"), (None, "is of row 1, but holds 0")],
)
def test_record_with_another_content(tmp_path: Path, payload: bytes | None, told: str) -> None:
    """Its checksum is right: another program wrote it."""
    path = _journal(tmp_path)
    data = path.read_bytes()
    first = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + 4], "little") + 25
    if payload is None:
        payload = data[HEADER_BYTES + 25 : HEADER_BYTES + first]
    record = encode_record(RecordType.ROW, 1, 1, payload)
    path.write_bytes(data[: HEADER_BYTES + first] + record)
    chosen = choose_records(tmp_path, 2, FINGERPRINT)
    with (
        RecordReader(chosen.journals) as reader,
        pytest.raises(JournalError, match=rf"{path.name}.*byte {HEADER_BYTES + first}.*{told}"),
    ):
        reader.read(0, int(chosen.offset[1]))
    fd = os.open(path, os.O_RDONLY)
    assert read_record(fd, HEADER_BYTES).index == 0
    os.close(fd)


@pytest.mark.parametrize("info", [{}, {"started_at_unix_s": "x"}, {"started_at_unix_s": 10**30}])
def test_manifest_without_a_start(tmp_path: Path, info: dict[str, Any]) -> None:
    manifest, _ = start_launch(tmp_path, {"seed": 0}, info)
    with pytest.raises(JournalError, match=r"manifest\.json.*started_at_unix_s"):
        began_at_unix_s(tmp_path, manifest)


@pytest.mark.parametrize("numbers", [[-1], [1, 0], [0, 0], [2**40]])
def test_manifest_with_odd_launches(tmp_path: Path, numbers: list[int]) -> None:
    manifest, _ = start_launch(tmp_path, {"seed": 0}, {})
    text = json.loads(msgspec.json.encode(manifest))
    text["launches"] = [{"number": number} for number in numbers]
    (tmp_path / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(JournalError, match=r"manifest\.json: launches are numbered"):
        load_manifest(tmp_path)


def _index(folder: Path) -> tuple[Path, Path]:
    path, index_path = folder / "rows.jsonl", folder / "index.bin"
    path.write_text('{"id": 1, "prompt": "a"}\n' * 20)
    build_index(path, index_path)
    return path, index_path


def test_index_with_negative_counts(tmp_path: Path) -> None:
    """16 more duplicates and 17 rows fewer have the same size."""
    _, index_path = _index(tmp_path)
    data = index_path.read_bytes()
    header = json.loads(data[:INDEX_HEADER_BYTES])
    header["num_rows"] += 32
    header["num_duplicates"] -= 34
    text = json.dumps(header).encode().ljust(INDEX_HEADER_BYTES)
    index_path.write_bytes(text + data[INDEX_HEADER_BYTES:])
    with pytest.raises(UsageError, match=r"index\.bin"):
        InputIndex.open(index_path)


@pytest.mark.parametrize("offset", [5, 2**63, 2**64 - 1])
def test_index_that_points_out_of_its_input(tmp_path: Path, offset: int) -> None:
    path, index_path = _index(tmp_path)
    data = bytearray(index_path.read_bytes())
    at = INDEX_HEADER_BYTES + 17 * 20
    data[at : at + 8] = offset.to_bytes(8, "little")
    index_path.write_bytes(data)
    with (
        RowReader(path, InputIndex.open(index_path), SamplingParams()) as reader,
        pytest.raises(UsageError, match=r"rows\.jsonl: its index is damaged: line 20"),
    ):
        reader.read(19)


@pytest.mark.parametrize(
    "command", ["results verify {}", "status {}", "plan --profile {} --ranks 4 --context 64"]
)
def test_names_that_no_file_can_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["janus-hpc", *command.format("n" * 300).split()])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "File name too long: nnn" in capsys.readouterr().err
