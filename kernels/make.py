"""Which implementation of the operations a device gets."""

from pathlib import Path

import torch
from janus_hpc.kernels.native.build import BuildError, build_library
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.ops import Ops
from janus_hpc.kernels.torch_ops import TorchOps


def make_ops(device: torch.device, num_threads: int, cache_dir: Path) -> Ops:
    """The fastest implementation for a device; where C cannot be built on a CPU, torch with the reason."""
    if device.type != "cpu":
        return TorchOps(device)
    try:
        return NativeOps(build_library(cache_dir), num_threads)
    except BuildError as error:
        return TorchOps(device, why=str(error))
    except OSError as error:
        return TorchOps(device, why=f"the compiled kernels do not load: {error}")
