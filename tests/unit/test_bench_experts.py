"""The experts' benchmark: its peers compute what they should, and its records and fit are right."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from janus_hpc.bench.commands import bench
from janus_hpc.bench.expert_peers import Layout, PeerExperts
from janus_hpc.bench.experts import Record, _fit
from janus_hpc.bench.timing import times_us
from janus_hpc.launch import LaunchEnv

CPU = torch.device("cpu")


def test_layout_lists_entries_by_slot() -> None:
    slots_TJ = torch.tensor([[2, -1], [0, 2], [-1, -1], [3, 0]], dtype=torch.int32)
    layout = Layout.sorted(slots_TJ, 5)
    assert layout.entries_P.tolist() == [2, 7, 0, 3, 6]
    assert layout.tokens_P.tolist() == [1, 3, 0, 1, 3]
    assert layout.ends_S.tolist() == [2, 2, 4, 5, 5]
    assert layout.ends_S.dtype == torch.int32


def test_peers_give_the_plain_sum() -> None:
    peers = PeerExperts.random(3, 24, 16, torch.float32, CPU)
    peers.gate_up_SND.mul_(torch.tensor([1.0, 0.5, -2.0])[:, None, None])
    slots_TJ = torch.tensor([[2, -1], [0, 2], [-1, -1], [0, 2]], dtype=torch.int32)
    x_TD, weights_TJ = torch.randn(4, 24), torch.rand(4, 2)
    want_TD = torch.zeros(4, 24)
    for token, choice in (slots_TJ >= 0).nonzero().tolist():
        slot = slots_TJ[token, choice]
        gate_I, up_I = (peers.gate_up_SND[slot] @ x_TD[token]).chunk(2)
        inner_I = gate_I * torch.sigmoid(gate_I) * up_I
        want_TD[token] += weights_TJ[token, choice] * (peers.down_SDI[slot] @ inner_I)
    layout = Layout.sorted(slots_TJ, 3)
    torch.testing.assert_close(peers.grouped(layout, x_TD[layout.tokens_P], weights_TJ, 4), want_TD)
    torch.testing.assert_close(peers.sorting(x_TD, slots_TJ, weights_TJ, 5), want_TD)
    torch.testing.assert_close(peers.loop(layout, x_TD, weights_TJ)(), want_TD)


def record(tokens: int, entries: int, activated: int, time_us: float) -> Record:
    return {
        "shape": "a",
        "slots": 16,
        "tokens": tokens,
        "dtype": "bfloat16",
        "entries": entries,
        "activated": activated,
        "time_us": {"janus": time_us},
        "weight_bytes": activated * 6_000_000,
    }


def test_fit_finds_the_line_and_leaves_out_what_does_more_than_read() -> None:
    records = [record(t, 8 * t, a, 20.0 + 3.0 * a) for t, a in ((1, 8), (2, 12), (4, 16))]
    records.append(record(64, 512, 16, 500.0))
    found = _fit(records, {"read_gb_s": 4000.0, "copy_gb_s": 3000.0})
    assert found["tokens_fitted"] == [1, 2, 4]
    assert found["t0_us"] == pytest.approx(20.0)
    assert found["us_per_expert"] == pytest.approx(3.0)
    assert found["gb_s"] == pytest.approx(2000.0)
    assert found["share_of_memory_speed"] == pytest.approx(0.5)
    assert found["rms_us"] == pytest.approx(0.0, abs=1e-9)
    assert _fit(records[:1], {"read_gb_s": 1.0})["t0_us"] is None


def test_every_call_is_timed_so_often() -> None:
    counts = {"a": 0, "b": 0}

    def call(name: str) -> None:
        counts[name] += 1

    found = times_us({name: lambda name=name: call(name) for name in counts}, CPU, 3)  # type: ignore[misc]
    assert set(found) == {"a", "b"} and all(time > 0 for time in found.values())
    assert all(count >= 5 for count in counts.values())


@pytest.mark.parametrize("name", ["experts", "kernels"])
def test_commands_write_records(name: str, tmp_path: Path) -> None:
    env = LaunchEnv(num_cpus=1, cache_dir=tmp_path)
    options = ["--shape", "moe-3m", "--slots", "8", "--tokens", "1,3", "--repeats", "1"]
    options += ["--threads", "1", "--device", "cpu", "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(bench, [name, *options], obj=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    records = json.loads((tmp_path / "out.json").read_text())
    if name == "experts":
        assert [its.get("tokens") for its in records] == [1, 3, None]
        assert set(records[0]["time_us"]) == {"janus", "grouped_mm", "grouped_mm_sorting", "loop"}
        for its in records[:2]:
            assert its["activated"] <= min(its["entries"], 8)
            assert its["weight_bytes"] == its["activated"] * 3 * 96 * 64 * 2
    else:
        assert len(records) == 2 * len({its["kernel"] for its in records}) == 16
        assert all(its["time_us"] > 0 and its["twin_us"] > 0 for its in records)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["experts", "--shape", "moe-3m", "--slots", "33"], "--slots 33: moe-3m has 32 experts"),
        (["experts", "--shape", "moe-4m"], "--shape: 'moe-4m' is unknown"),
        (["experts", "--tokens", "0"], "--tokens: expected numbers"),
        (["kernels", "--shape", "moe-3m", "--slots", "33"], "--slots 33: moe-3m has 32 experts"),
        (["kernels", "--kernels", "gates"], "--kernels: 'gates' is unknown"),
    ],
)
def test_mistakes_are_named(options: list[str], said: str, tmp_path: Path) -> None:
    env = LaunchEnv(num_cpus=1, cache_dir=tmp_path)
    done = CliRunner().invoke(bench, [*options, "--device", "cpu"], obj=env)
    assert said in str(done.exception)
