"""The memory that a control group leaves, read from files laid out as the kernel does."""

from pathlib import Path

import pytest

from janus_hpc.engine import device


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """A model that was copied to the node fills the cache, which counts as usage."""
    limit, usage, total = "memory.max", "memory.current", ""
    folder, line = tmp_path / "job", "0::/job\n"
    if version == 1:
        limit, usage, total = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        folder, line = tmp_path / "memory" / "job", "4:memory:/job\n"
    folder.mkdir(parents=True)
    (tmp_path / "self").write_text(line)
    (folder / limit).write_text("1000\n")
    (folder / usage).write_text("900\n")
    (folder / "memory.stat").write_text(
        f"anon 100\n{total}inactive_file 500\n{total}active_file 200\n"
    )
    monkeypatch.setattr(device, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(device, "CGROUPS", tmp_path / "self")
    (tmp_path / "meminfo").write_text("MemAvailable: 1000000 kB\n")
    monkeypatch.setattr(device, "MEMINFO", tmp_path / "meminfo")
    assert device.room_bytes("cpu", 0, 2) == (1000 - 200) // 2
