"""The manifest lets a run resume only with what gives the same answers, and names what differs."""

from pathlib import Path

import pytest

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.manifest import (
    Fingerprint,
    check_resume,
    fingerprint_bytes,
    load_manifest,
    run_dir_for,
    save_manifest,
    start_launch,
)

FIELDS: Fingerprint = {"input_sha256": "ab", "seed": 0, "temperature": 1.0, "model": "/m"}


def test_launches_are_counted(tmp_path: Path) -> None:
    run_dir = run_dir_for(tmp_path / "prompts.h5")
    assert run_dir.name == "prompts.h5.run"
    assert load_manifest(run_dir) is None
    for number in range(3):
        manifest, launch = start_launch(run_dir, FIELDS, {"split": f"{number}"})
        assert launch.number == number
    assert load_manifest(run_dir) == manifest
    assert [each.info["split"] for each in manifest.launches] == ["0", "1", "2"]
    assert [path.name for path in run_dir.iterdir()] == ["manifest.json"]


def test_differences_are_named(tmp_path: Path) -> None:
    start_launch(tmp_path, FIELDS, {})
    changed: Fingerprint = {"input_sha256": "cd", "seed": 0, "temperature": 1.0, "top_p": 0.5}
    with pytest.raises(UsageError) as caught:
        start_launch(tmp_path, changed, {})
    assert str(caught.value).splitlines()[1:] == [
        "  input_sha256: was 'ab', now 'cd'",
        "  model: was '/m', now absent",
        "  top_p: was absent, now 0.5",
    ]
    manifest = load_manifest(tmp_path)
    assert manifest is not None and len(manifest.launches) == 1


def test_fingerprint_bytes() -> None:
    assert len(fingerprint_bytes(FIELDS)) == 32
    assert fingerprint_bytes(dict(reversed(list(FIELDS.items())))) == fingerprint_bytes(FIELDS)
    assert fingerprint_bytes({**FIELDS, "seed": 1}) != fingerprint_bytes(FIELDS)
    check_resume(FIELDS, {**FIELDS})


def test_unusable_manifests(tmp_path: Path) -> None:
    manifest, _ = start_launch(tmp_path, FIELDS, {})
    path = tmp_path / "manifest.json"
    for damaged in (b"", b"{}", b"\xff", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=r"manifest\.json"):
            load_manifest(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        save_manifest(tmp_path / "file" / "run", manifest)
