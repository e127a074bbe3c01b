"""The native library, built once a session: for this CPU, and for the oldest one of its architecture."""

from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.native import build
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.torch_ops import TorchOps


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Torch's threads would only wait for each other on a busy machine; the C kernels have their own."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["this-cpu", "any-cpu"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags: tuple[str, ...] = build.FLAGS
    if request.param == "any-cpu":
        flags = ("-O1", *[flag for flag in flags if not flag.startswith(("-O", "-march"))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", flags)
        try:
            return build.build_library(tmp_path_factory.mktemp("cache"))
        except build.BuildError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def native(library: Path) -> NativeOps:
    return NativeOps(library, num_threads=1)


@pytest.fixture(scope="session")
def twin() -> TorchOps:
    return TorchOps(torch.device("cpu"))
