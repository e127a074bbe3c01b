"""Building the C kernels: the cache is shared and reused, and what fails says so and leaves torch."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.native import build
from janus_hpc.kernels.native_ops import NativeOps

from tests.kernels.helpers import normal

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="no C compiler"
)


def without_optimisation() -> None:
    """A build in about a second."""
    build.FLAGS = ("-O0", *build.FLAGS[1:])


@pytest.fixture(autouse=True)
def _quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FLAGS", build.FLAGS)
    without_optimisation()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def assert_falls_back(cache_dir: Path, reason: str) -> None:
    with pytest.raises(build.BuildError, match=reason):
        build.build_library(cache_dir)
    ops = make_ops(CPU, 1, cache_dir)
    assert ops.name == "torch"
    assert reason in ops.why


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_torch_takes_over_and_says_why(tmp_path: Path) -> None:
    assert_falls_back(tmp_path / "cache", "no C compiler found")
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho unknown target >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_falls_back(tmp_path / "cache", "unknown target")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_falls_back(tmp_path / "file" / "cache", "cannot write the kernel cache")


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    assert_falls_back(tmp_path, "cannot write the kernel cache")


@needs_compiler
def test_the_cache_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.build_library(tmp_path)
    stat = built.stat()
    assert list(tmp_path.iterdir()) == [built]
    tmp_path.chmod(0o555)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_run", None)  # nothing may be compiled
        assert make_ops(CPU, 1, tmp_path).name.startswith("native-")
    assert (built.stat().st_ino, built.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    tmp_path.chmod(0o755)


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    name = build.build_library(tmp_path / "other").name
    (tmp_path / name).write_bytes(b"not a library")
    ops = make_ops(CPU, 1, tmp_path)
    assert ops.name == "torch"
    assert name in ops.why


def _build(cache_dir: Path) -> Path:
    without_optimisation()
    return build.build_library(cache_dir)


@needs_compiler
def test_two_processes_at_once_end_with_one_working_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_build, [tmp_path, tmp_path], chunksize=1)
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    ops = NativeOps(first, 1)
    packed = ops.pack_linear(torch.eye(20))
    assert torch.equal(ops.linear(normal(3, 20), packed), normal(3, 20))
