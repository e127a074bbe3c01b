"""Faults of the disk the results go to: full, limited, not writable, or gone."""

import resource
import shutil
import signal
from contextlib import suppress

from tests.faults.bed import COMPLETE, NUM_ROWS, mount, remount, unmount, without_override
from tests.faults.case import OUT_NAME, Case, Missed
from tests.faults.launch import send
from tests.faults.moments import MERGING, after_rows, launch_until, random_moment, victim

PAGE_BYTES = 4096
FILLER = "filler"


def disk_full(case: Case) -> None:
    """A file system too small from the start, or filled up in mid-run; then there is room again."""
    disk = case.folder / "disk"
    disk.mkdir()
    case.out = disk / OUT_NAME
    if case.choice.random() < 0.5:
        pages = case.choice.randrange(4, case.bed.num_bytes // PAGE_BYTES)
        mount(disk, str(pages * PAGE_BYTES))
        launch = case.start()
        case.detail.append(f"a disk of {pages} pages, {launch.shape}")
        code = case.end(launch)
        remount(disk, "size=64m")
    else:
        mount(disk, "4m")
        moment = case.choice.choice([random_moment(case.choice), MERGING])
        launch = launch_until(case, moment)
        room = case.choice.randrange(0, 12) * PAGE_BYTES
        _fill(case, room)
        case.detail.append(f"disk filled up, {room} bytes left")
        code = case.end(launch)
        (disk / FILLER).unlink()
    if code == COMPLETE:
        raise Missed("there was room enough")
    is_clear = code == 75 or "no space left" in launch.text().lower()
    case.expect(is_clear, f"exit {code}, and nothing says that the disk is full")


def _fill(case: Case, room: int) -> None:
    disk = case.folder / "disk"
    with suppress(OSError), (disk / FILLER).open("wb", buffering=0) as file:
        left = shutil.disk_usage(disk).free - room
        while left > 0:
            left -= file.write(bytes(min(left, PAGE_BYTES)))


def file_size_limit(case: Case) -> None:
    """A rank may write no larger files from some moment on, as under a quota."""
    launch = launch_until(case, after_rows(case.choice.randrange(1, NUM_ROWS - 2)))
    pid = victim(case, launch)
    size_bytes = case.choice.randrange(1, 40_000)
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
    case.detail.append(f"files of at most {size_bytes} bytes")
    code = case.end(launch)
    if code == COMPLETE:
        raise Missed("no file was so large")
    is_clear = code == 75 or "file too large" in launch.text().lower()
    case.expect(is_clear, f"exit {code}, and nothing says that a file became too large")


def run_folder_removed(case: Case) -> None:
    """Somebody removes the run folder in mid-run, or puts a file in its place: all begins anew."""
    launch = launch_until(case, random_moment(case.choice))
    how = case.choice.choice(["removed", "moved away", "a file now"])
    case.detail.append(f"run folder {how}")
    aside = case.folder / "aside"
    with suppress(OSError):
        case.run_dir.rename(aside)
    if how == "removed":
        shutil.rmtree(aside, ignore_errors=True)
    if how == "a file now":
        with suppress(OSError):
            case.run_dir.write_text("not a folder")
    case.end(launch)
    if how == "a file now" and case.run_dir.is_file():
        refused = case.start()
        code = case.end(refused)
        case.expect(code in (2, 3), f"a file where the run folder goes: exit {code}")
        case.run_dir.unlink()
    if how == "moved away" and aside.exists() and not case.run_dir.exists():
        aside.rename(case.run_dir)


def read_only(case: Case) -> None:
    """The results' file system is read-only at the start of a resume: refused, and afterwards it goes on."""
    disk = case.folder / "disk"
    disk.mkdir()
    case.out = disk / OUT_NAME
    mount(disk, "16m")
    launch = launch_until(case, after_rows(case.choice.randrange(1, NUM_ROWS - 4)))
    send(victim(case, launch), signal.SIGUSR2)
    case.end(launch)
    remount(disk, "ro")
    refused = case.start()
    code = case.end(refused)
    # Where the first launch was complete there is nothing to write.
    case.expect(code in (2, 3), f"a read-only disk: exit {code}, expected 2")
    case.expect(code == 3 or "Read-only file system" in refused.text(), "no word of read-only")
    remount(disk, "rw")


def no_permission(case: Case) -> None:
    """The results' folder loses its write permission in mid-run, and gets it back; root is held to it as well."""
    case.out = case.folder / "home" / OUT_NAME
    case.out.parent.mkdir()
    case.prefix = [*without_override()]
    launch = launch_until(case, random_moment(case.choice))
    folders = [case.out.parent, case.run_dir]
    for folder in folders:
        with suppress(OSError):
            folder.chmod(0o555)
    case.detail.append("folders lose their permissions")
    code = case.end(launch)
    case.expect(code in (3, 75) or "ermission denied" in launch.text(), f"exit {code}, no reason")
    if code not in (3, 75):
        refused = case.start()
        refusal = case.end(refused)
        case.expect(refusal == 2, f"an unwritable folder: exit {refusal}, expected 2")
        case.expect("ermission denied" in refused.text(), "no word of permissions")
    for folder in folders:
        with suppress(OSError):
            folder.chmod(0o755)


def clean_up(case: Case) -> None:
    """Unmount what the case mounted."""
    disk = case.folder / "disk"
    if disk.is_mount():
        unmount(disk)
