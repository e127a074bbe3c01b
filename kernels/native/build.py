"""Compiles the C kernels for this CPU at first use, into a cache folder that many ranks may share.

The file's name tells sources, compiler and CPU apart, so a home folder on several kinds of nodes is safe.
Does not import torch: a planner uses the library, too.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

SOURCE_DIR = Path(__file__).parent
COMPILERS = ("gcc", "cc", "clang")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-std=gnu11")
TIME_LIMIT_S = 300


class BuildError(Exception):
    """Why there is no compiled library; the caller says so and uses torch."""


def build_library(cache_dir: Path) -> Path:
    """Path of the shared library, compiled now unless the cache has it. Errors: BuildError."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildError(f"no C compiler found ({', '.join(COMPILERS)})")
    target = cache_dir / f"janus_cpu-{_key(compiler)}.so"
    if target.is_file():
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: ranks of several nodes may compile at the same time.
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder:
            built = Path(folder) / "janus_cpu.so"
            _compile(compiler, Path(folder), built)
            os.replace(built, target)
    except OSError as error:
        raise BuildError(f"cannot write the kernel cache {cache_dir}: {error.strerror}") from error
    return target


def _compile(compiler: str, folder: Path, built: Path) -> None:
    object_path = folder / "janus_cpu.o"
    source = str(SOURCE_DIR / "janus_cpu.c")
    _run([compiler, *FLAGS, "-fopenmp", "-c", source, "-o", str(object_path)])
    link = [compiler, "-shared", str(object_path), "-o", str(built)]
    runtime = _torch_openmp()
    if runtime is None:
        _run([*link, "-fopenmp", "-lm"])
    else:
        # Torch's own OpenMP runtime: two of them would keep two pools of spinning threads.
        _run([*link, str(runtime), f"-Wl,-rpath,{runtime.parent}", "-lm"])


def _torch_openmp() -> Path | None:
    """The OpenMP runtime that torch brings, if it brings GNU's."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    folder = Path(torch.origin).parent
    candidates = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
    return min(candidates, default=None)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _key(compiler: str) -> str:
    """A hash of all that the library depends on."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCE_DIR.glob("*.c"), *SOURCE_DIR.glob("*.h"))):
        digest.update(path.read_bytes())
    stat = os.stat(compiler)
    facts = (FLAGS, compiler, stat.st_size, stat.st_mtime_ns, version("torch"), _torch_openmp())
    digest.update(f"{facts} {platform.machine()} {_cpu_flags()}".encode())
    return digest.hexdigest()[:16]


def _cpu_flags() -> str:
    """The CPU's features, as the kernel lists them; they decide what -march=native means."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
