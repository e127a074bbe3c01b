"""The balancing functions of the C library over raw addresses; needs neither torch nor tensors.

The caller owns all memory and its shapes; see balance.h.
"""

import ctypes
from pathlib import Path

from janus_hpc.kernels.assign import POLICIES
from janus_hpc.kernels.native.build import BuildError, build_library

_P, _L, _I, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_uint64


class BalanceLibrary:
    """`path`: what `build_library` gave."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._balance = library.janus_balance
        self._balance.argtypes = [_I, _P, _L, _L, _L, _L, _P, _P, _P, _U, _P, _P, _P, _P]
        self._balance.restype = None
        self._a_max = library.janus_a_max
        self._a_max.argtypes = [_I, _P, _L, _L, _L, _L, _L, _P, _P, _U, _P, _P]
        self._a_max.restype = None

    def balance(
        self,
        policy: str,
        choices: tuple[int, int],
        sizes: tuple[int, int, int],
        slot_map: tuple[int, int, int],
        draw: int,
        outputs: tuple[int, int, int, int],
    ) -> None:
        """choices: address and number of ids; sizes: experts, ranks, words; slot_map: addresses of slot_of,
        hosts, primary; outputs: addresses of slots, counts, loads and [2 experts] words of scratch.
        """
        number = POLICIES.index(policy)
        self._balance(number, *choices, *sizes, *slot_map, draw, *outputs)

    def a_max(
        self,
        policy: str,
        draws: tuple[int, int, int],
        sizes: tuple[int, int, int],
        slot_map: tuple[int, int],
        draw: int,
        outputs: tuple[int, int],
    ) -> None:
        """draws: address of ids, number of draws, choices a draw; slot_map: addresses of hosts, primary;
        outputs: addresses of a_max and of [3 experts + ranks] words of scratch.
        """
        number = POLICIES.index(policy)
        self._a_max(number, *draws, *sizes, *slot_map, draw, *outputs)


def open_balance_library(cache_dir: Path) -> tuple[BalanceLibrary | None, str]:
    """The library, compiled now unless the cache has it; or None, and why there is none."""
    try:
        return BalanceLibrary(build_library(cache_dir)), ""
    except (BuildError, OSError) as error:
        return None, str(error)
