"""Loads ucxx, which is optional, over the one UCX of this process, and says which one that is.

Knows nothing of peers or messages.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_UCX = "libucp.so.0"
# The Python package that carries UCX itself; ucxx does without where it is not installed.
_BUNDLE = "libucx"
# What ucxx sets on import is meant for GPU memory. With larger segments than UCX's own choice TCP
# moved messages of 1 to 4 MB 1.4 to 2.7 times as fast where the wire was not the limit.
_SETTINGS = {"RNDV_THRESH": "auto", "TCP_TX_SEG_SIZE": "256k", "TCP_RX_SEG_SIZE": "256k"}


def load_ucx() -> Any:
    """The module with ucxx's synchronous core. ImportError or OSError, with the reason, without it.

    MPI may have loaded a UCX of its own, and two of different versions cannot live in one process:
    the loader binds the second to parts of the first. ucxx then runs over MPI's.
    """
    with _hidden(_BUNDLE) if _loaded_ucx() is not None else _nothing():
        return import_module("ucxx._lib.libucxx")


def settings(user_settings: Mapping[str, str]) -> dict[str, str]:
    """UCX options of the link, without those set in `user_settings` (UCX_* variables)."""
    return {key: value for key, value in _SETTINGS.items() if f"UCX_{key}" not in user_settings}


def describe(core: Any, context: Any) -> str:
    """Version, file and transports of the UCX in use, one line, for people."""
    version = ".".join(map(str, core.get_ucx_version()))
    transports = sorted(set(re.findall(r"-- (\S+?)/", context.info)))
    return f"UCX {version} ({_path_of(_loaded_ucx())}) with {', '.join(transports)}"


def _loaded_ucx() -> ctypes.CDLL | None:
    """The UCX that this process has loaded, None without one; loads nothing."""
    try:
        return ctypes.CDLL(_UCX, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None


def _path_of(library: ctypes.CDLL | None) -> str:
    """The file a loaded library comes from, by the dynamic loader's word."""
    if library is None:
        return "unknown file"
    address = ctypes.cast(library.ucp_init_version, ctypes.c_void_p)
    info = (ctypes.c_void_p * 4)()
    if not ctypes.CDLL(None).dladdr(address, info):
        return "unknown file"
    return ctypes.string_at(info[0] or 0).decode()


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Python takes the module for not installed."""
    previous = sys.modules.pop(module, None)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if previous is not None:
            sys.modules[module] = previous


@contextmanager
def _nothing() -> Iterator[None]:
    yield
