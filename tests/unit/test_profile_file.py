"""The file of a profile: what is written comes back, and nonsense is refused with file, key and fault."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from janus_hpc.errors import UsageError
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.profile_file import (
    check_hardware,
    check_model,
    read_profile,
    write_profile,
)
from tests.unit.planner_profiles import gpu_profile


@pytest.fixture
def profile() -> Profile:
    return gpu_profile()


def test_what_is_written_comes_back(profile: Profile, tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", profile)
    assert read_profile(tmp_path / "p.json") == profile


def _set(*keys: str | int, to: object) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("attention", 0, "sparse", "alpha", to=-1e-6), "attention[0].sparse.alpha is -1e-06"),
        (_set("attention", 0, "head_0", to=1e9), "attention[0].head_0 is 1000000000.0"),
        (_set("experts", 0, "beta", to=-1.0), "experts[0].beta is -1.0"),
        (_set("exchange", "per_row_s", to=-1.0), "exchange.per_row_s"),
        (_set("exchange", "node_rate", to=-1.0), "exchange.node_rate"),
        (_set("loading", "checkpoint_rate", to=0.0), "loading.checkpoint_rate is 0.0"),
        (_set("p99_ratio", to=0.5), "p99_ratio is 0.5"),
        (_set("hardware", "memory_bytes", to=0), "hardware.memory_bytes is 0"),
        (_set("model", "num_experts", to=0), "model.num_experts is 0"),
        (_set("model", "top_k", to=999), "model.top_k is 999"),
        (_set("attention", to=[]), "attention has num_sharing []"),
        (_set("experts", 0, "num_sharing", to=0), "experts has num_sharing [0]"),
        (_set("version", to=99), "version 99"),
        (_set("format", to="something"), "'something'"),
        (_set("extra", to=1), "extra"),
        (_set("experts", 0, "gamma", to="fast"), "experts[0].gamma"),
    ],
)
def test_nonsense_is_refused(
    profile: Profile, tmp_path: Path, change: Callable[[Any], None], told: str
) -> None:
    values = json.loads(msgspec.json.encode(profile))
    change(values)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError) as caught:
        read_profile(path)
    assert told in str(caught.value) and str(path) in str(caught.value)
    assert "janus-hpc profile" in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(profile: Profile, tmp_path: Path, number: str) -> None:
    text = msgspec.json.encode(profile).decode()
    changed, count = re.subn(r'"beta":[0-9.e-]+', f'"beta":{number}', text)
    assert count == 1
    path = tmp_path / "bad.json"
    path.write_text(changed)
    with pytest.raises(UsageError, match=r"bad\.json"):
        read_profile(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\xff"])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"bad\.json"):
        read_profile(path)


def test_files_that_cannot_be_read_or_written(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_profile(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="cannot be written"):
        write_profile(tmp_path / "missing" / "p.json", profile)


def test_another_model_is_refused(profile: Profile) -> None:
    renamed = msgspec.structs.replace(profile.model, name="other")
    check_model(profile, "p.json", renamed)
    other = msgspec.structs.replace(renamed, num_experts=161)
    with pytest.raises(UsageError, match="num_experts 160, but 'other' has 161"):
        check_model(profile, "p.json", other)


def test_other_hardware_is_refused(profile: Profile) -> None:
    check_hardware(profile, "p.json", profile.hardware.device, 7)
    with pytest.raises(UsageError, match="this run is on tpu"):
        check_hardware(profile, "p.json", "tpu", 0)
    on_cpu = msgspec.structs.replace(profile.hardware, device="cpu", cores_per_node=4)
    shared = msgspec.structs.replace(profile, hardware=on_cpu)
    check_hardware(shared, "p.json", "cpu", 4)
    with pytest.raises(UsageError, match="4 cores, but these have 2"):
        check_hardware(shared, "p.json", "cpu", 2)
