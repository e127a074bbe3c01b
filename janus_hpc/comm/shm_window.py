"""Where things lie in the shared window of a node: counters, headers, rows and partial sums.

Owns the MPI window and the views into it; knows nothing of the order they are used in.
"""

import mmap
import os
from itertools import count

import torch
from mpi4py import MPI

from janus_hpc.comm.exchange import HEADER_WORDS
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.objects import barrier
from janus_hpc.comm.waits import WaitPolicy

_SHM_FOLDER = "/dev/shm"
# A line holds what one rank writes, so that no two ranks write to one cache line.
_LINE_WORDS = 8
_HEADER_LINES = -(-HEADER_WORDS // _LINE_WORDS)


def shm_free_bytes() -> int | None:
    """Free bytes of the file system that backs shared windows; None where there is none to ask."""
    if not os.path.isdir(_SHM_FOLDER):
        return None
    stats = os.statvfs(_SHM_FOLDER)
    return stats.f_bavail * stats.f_frsize


def window_bytes(peers: Peers, sizes: Sizes) -> int:
    """Bytes of the whole window."""
    _, y_start = _starts(peers, sizes)
    return y_start + peers.num_expert * sizes.max_rows(peers) * sizes.hidden * 8


class ShmWindow:
    """The mapped window. Lines are given as the index of their first word in `words`.

    arrived[r], r in active order; sent[m][a]; answered[m][e]; header_words[parity][r]; x_ND in the
    row dtype and y_END in float64, N up to the maximum of a step.
    """

    def __init__(self, comm: MPI.Intracomm, peers: Peers, sizes: Sizes) -> None:
        """Allocate on the first rank, map on all. Collective over `comm`, which it takes over."""
        self._comm = comm
        size = window_bytes(peers, sizes)
        self._win = MPI.Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        memory, _ = self._win.Shared_query(0)
        # Fences need an access epoch; nothing is locked with NOCHECK.
        self._win.Lock_all(MPI.MODE_NOCHECK)
        self.fence = self._win.Sync
        x_start, y_start = _starts(peers, sizes)
        self.words = memory.cast("B")[:x_start].cast("q")
        lines = count(0, _LINE_WORDS)
        microbatches = range(sizes.num_microbatches)
        self.arrived = [next(lines) for _ in peers.topology.active_ranks]
        self.sent = [[next(lines) for _ in range(peers.num_attention)] for _ in microbatches]
        self.answered = [[next(lines) for _ in range(peers.num_expert)] for _ in microbatches]
        headers = count(next(lines), _HEADER_LINES * _LINE_WORDS)
        self.header_words = [[next(headers) for _ in self.arrived] for _ in range(2)]
        all_bytes = torch.frombuffer(memory, dtype=torch.uint8)
        max_rows, hidden = sizes.max_rows(peers), sizes.hidden
        x_end = x_start + max_rows * sizes.row_bytes
        self.x_ND = all_bytes[x_start:x_end].view(sizes.row_dtype).view(max_rows, hidden)
        y_bytes = all_bytes[y_start:].view(torch.float64)
        self.y_END = y_bytes.view(peers.num_expert, max_rows, hidden)
        barrier(comm, WaitPolicy())

    def write_words(self, start: int, values: list[int]) -> None:
        """Store words one after the other from `start`."""
        for offset, value in enumerate(values):
            self.words[start + offset] = value

    def read_words(self, start: int) -> list[int]:
        """The HEADER_WORDS words from `start`."""
        return self.words[start : start + HEADER_WORDS].tolist()

    def free(self, policy: WaitPolicy) -> None:
        """Unmap. Collective over the communicator; views handed out are invalid from then on."""
        barrier(self._comm, policy)
        del self.x_ND, self.y_END
        self.words.release()
        self._win.Unlock_all()
        self._win.Free()
        self._comm.Free()


def _starts(peers: Peers, sizes: Sizes) -> tuple[int, int]:
    """First byte of x and of y, on page borders."""
    num_active = len(peers.topology.active_ranks)
    num_pairs = sizes.num_microbatches * (peers.num_attention + peers.num_expert)
    num_lines = num_active + num_pairs + 2 * num_active * _HEADER_LINES
    x_start = _page_up(num_lines * _LINE_WORDS * 8)
    return x_start, _page_up(x_start + sizes.max_rows(peers) * sizes.row_bytes)


def _page_up(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
