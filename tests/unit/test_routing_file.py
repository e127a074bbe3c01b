"""A trace file gives back what was written, as plain h5py reads it; every unusable file is named."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from janus_hpc.errors import UsageError
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import check_fits, read_trace, trace_bytes, write_trace

ROUTES = [[[0, 2], [3, 2], [2, 0]], [[1, 0]]]


def make_trace() -> RoutingTrace:
    """Counted by hand from ROUTES: two layers of four experts, two choices a token."""
    together = np.zeros((2, 4, 4), np.int64)
    together[0, 0, 2] = together[0, 2, 0] = 2
    together[0, 2, 3] = together[0, 3, 2] = 1
    together[1, 0, 1] = together[1, 1, 0] = 1
    routes = np.full((2, 5, 2), -1, np.int16)
    routes[0, :3] = ROUTES[0]
    routes[1, :1] = ROUTES[1]
    return RoutingTrace(
        layer_ids=(1, 3),
        num_experts=4,
        top_k=2,
        num_tokens_L=np.array([3, 1]),
        counts_LE=np.array([[2, 0, 3, 1], [1, 1, 0, 0]]),
        coactivation_LEE=together,
        num_routes_L=np.array([3, 1]),
        routes_LWK=routes,
    )


def make_file(folder: Path) -> Path:
    path = folder / "trace.h5"
    write_trace(path, make_trace(), model="org/name", created=7)
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = make_file(tmp_path)
    read, written = read_trace(path), make_trace()
    for field in fields(RoutingTrace):
        one, other = getattr(read, field.name), getattr(written, field.name)
        assert np.array_equal(one, other), field.name
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None), field.name
    assert [each.name for each in tmp_path.iterdir()] == ["trace.h5"]
    assert path.read_bytes() == trace_bytes(make_trace(), model="org/name", created=7)


def test_plain_h5py_reads_it(tmp_path: Path) -> None:
    with h5py.File(make_file(tmp_path)) as file:
        assert dict(file.attrs) == {
            "schema_name": "janus-hpc trace",
            "janus_version": file.attrs["janus_version"],
            "model": "org/name",
            "created": 7,
        }
        group = file["routing"]
        assert (group.attrs["num_experts"], group.attrs["top_k"]) == (4, 2)
        assert group["layer_ids"][:].tolist() == [1, 3]
        assert group["routes"][0, :3].tolist() == ROUTES[0]
        assert all(dataset.fletcher32 and dataset.compression for dataset in group.values())


def test_unusable_files_are_named(tmp_path: Path) -> None:
    fix = "give the results file of a run"
    with pytest.raises(UsageError, match=rf"absent\.h5: no such file; {fix}"):
        read_trace(tmp_path / "absent.h5")
    with pytest.raises(UsageError, match=f"not a file; {fix}"):
        read_trace(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UsageError, match=r"text\.h5: not a readable HDF5 file"):
        read_trace(tmp_path / "text.h5")
    with h5py.File(tmp_path / "plain.h5", "w"):
        pass
    with pytest.raises(UsageError, match=rf"plain\.h5: no group 'routing'.*; {fix}"):
        read_trace(tmp_path / "plain.h5")


def write_hashed(group: h5py.Group, name: str, values: Any) -> None:
    """What a wrong writer could leave: the hash holds."""
    import hashlib

    del group[name]
    dataset = group.create_dataset(name, data=values)
    dataset.attrs["sha256"] = np.bytes_(hashlib.sha256(dataset[()].tobytes()).hexdigest())


def test_other_versions_and_wrong_contents(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=rf"trace\.h5: {match}"):
            read_trace(path)

    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file["routing"].attrs["schema_version"] = 9
    refused("group 'routing' is 'janus-hpc routing' version 9; this program reads .* version 1")
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["routing"].attrs["top_k"]
    refused("group 'routing' is damaged")
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["routing/counts"]
    refused("group 'routing' is damaged")
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file["routing/counts"][0, 0] = 1
    refused("routing/counts: content hashes to")
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        write_hashed(file["routing"], "counts", np.zeros((2, 4), np.int32))
    refused("routing/counts: expected type <i8, found <i4")
    path = make_file(tmp_path)
    with h5py.File(path, "r+") as file:
        write_hashed(file["routing"], "counts", np.zeros((2, 5), np.int64))
    refused(r"counts has shape \(2, 5\), expected \(2, 4\)")
    path = make_file(tmp_path)
    routes = make_trace().routes_LWK
    routes[0, 0, 0] = 4
    with h5py.File(path, "r+") as file:
        write_hashed(file["routing"], "routes", routes)
    refused("routes of layer 1: expert ids out of range; expected 0 to 3")
    path = make_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("")


def test_a_run_that_recorded_nothing(tmp_path: Path) -> None:
    from janus_hpc.routing.trace_file import write_routing

    path = tmp_path / "none.h5"
    with h5py.File(path, "w") as file:
        write_routing(file, None)
    with pytest.raises(UsageError, match=r"none\.h5: its run recorded no routing"):
        read_trace(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.h5"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UsageError, match=r"trace\.h5: cannot write: No space left"):
        make_file(tmp_path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_trace_must_be_of_the_model() -> None:
    model: dict[str, Any] = {"num_experts": 4, "top_k": 2, "layer_ids": (1, 3)}
    path = Path("t.h5")
    check_fits(make_trace(), path, **model)
    for change, message in (
        ({"num_experts": 128}, "trace t.h5 has 4 experts, the model 128; give a trace of this"),
        ({"top_k": 8}, "trace t.h5 has 2 choices a token, the model 8"),
        ({"layer_ids": (0, 1, 2)}, "trace t.h5 has 2 MoE layers, the model 3"),
        ({"layer_ids": (1, 2)}, "trace t.h5 has MoE layer 3, the model 2"),
    ):
        with pytest.raises(UsageError, match=message):
            check_fits(make_trace(), path, **{**model, **change})


def test_the_documented_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    exec(example.replace("prompts.h5", str(make_file(tmp_path))), {})
    assert capsys.readouterr().out.splitlines() == [
        "layer 1: experts 0 and 2 together for 2 of 3 tokens",
        "layer 1: experts 2 and 3 together for 1 of 3 tokens",
        "layer 3: experts 0 and 1 together for 1 of 1 tokens",
    ]
