"""Faults on journals between two launches: torn ends, and bits that flipped."""

import signal
from pathlib import Path

from tests.faults.bed import COMPLETE, NUM_ROWS
from tests.faults.case import DOCUMENTED, Case, Missed
from tests.faults.launch import records, send
from tests.faults.moments import after_rows, launch_until, victim
from tests.faults.process_faults import KILLED

MAX_TAIL_BYTES = 4096


def _interrupted(case: Case) -> Path:
    """A random journal of a run that was killed or stopped in its middle."""
    launch = launch_until(case, after_rows(case.choice.randrange(2, NUM_ROWS - 6)))
    number = case.choice.choice([signal.SIGKILL, signal.SIGUSR1])
    send(victim(case, launch), number)
    if case.end(launch, DOCUMENTED | KILLED) == COMPLETE:
        raise Missed("the run was complete")
    journals = sorted(case.run_dir.glob("*.jnl"))
    return case.choice.choice(journals)


def torn(case: Case) -> None:
    """A journal's end as after a crash of the host: cut off, zeros, or garbage. Its rows are computed again."""
    journal = _interrupted(case)
    size_bytes = journal.stat().st_size
    how = case.choice.choice(["cut", "zeros over", "zeros after", "garbage after"])
    if how == "cut":
        num_bytes = case.choice.randrange(size_bytes)
        cut(journal, num_bytes)
    else:
        num_bytes = case.choice.randrange(1, MAX_TAIL_BYTES)
        at = max(size_bytes - num_bytes, 0) if how == "zeros over" else size_bytes
        data = case.choice.randbytes(num_bytes) if how == "garbage after" else bytes(num_bytes)
        overwrite(journal, at, data[: size_bytes - at] if how == "zeros over" else data)
    case.detail.append(f"{journal.name} of {size_bytes} bytes: {how} {num_bytes}")


def flipped(case: Case) -> None:
    """A flipped bit: refused with file and byte where valid records follow, and then the file is removed; else torn."""
    journal = _interrupted(case)
    data = journal.read_bytes()
    bit = case.choice.randrange(8 * len(data))
    overwrite(journal, bit // 8, bytes([data[bit // 8] ^ 1 << bit % 8]))
    case.detail.append(f"{journal.name}: bit {bit % 8} of byte {bit // 8} of {len(data)}")
    starts = [0, *(offset for offset, _ in records(data))]
    damaged = max(start for start in starts if start <= bit // 8)
    if damaged == starts[-1]:
        return
    launch = case.start()
    code = case.end(launch)
    case.expect(code == 2, f"damage before valid records: exit {code}, expected 2")
    place = f"{journal.name}: damaged at byte {damaged}:"
    case.expect(place in launch.text(), f"the refusal does not say {place!r}")
    journal.unlink()


def cut(path: Path, num_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(num_bytes)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
