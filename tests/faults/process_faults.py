"""Faults on processes: killed, stopped, or told to stop, by signals to ranks or to their launcher."""

import signal
from collections.abc import Callable
from functools import partial

from tests.faults.bed import COMPLETE
from tests.faults.case import DOCUMENTED, Case
from tests.faults.launch import POLL_S, name_of, send
from tests.faults.moments import LOADING, MERGING, launch_until, random_moment, victim

# What mpirun ends with where a process was killed: the signal's number (MPICH), or 128 more.
KILLED = frozenset({9, 137})
TERMINATED = frozenset({15, 143})
INTERRUPTED = frozenset({2, 130})
STOPPED_OR_DONE = frozenset({75, COMPLETE})
STALL_S = (3, 4, 5)


def kill_rank(case: Case) -> None:
    """kill -9 of a rank."""
    launch = launch_until(case, random_moment(case.choice))
    pid = victim(case, launch)
    case.detail.append(f"kill -9 of {name_of(pid)}")
    send(pid, signal.SIGKILL)
    case.end(launch, DOCUMENTED | KILLED)


def kill_launcher(case: Case) -> None:
    """kill -9 of mpirun, or of its proxy that started the ranks: they must not stay."""
    launch = launch_until(case, random_moment(case.choice))
    proxies = [pid for pid in launch.processes() if "hydra_pmi" in name_of(pid)]
    pid = case.choice.choice([launch.process.pid, *proxies])
    case.detail.append(f"kill -9 of {name_of(pid)}")
    send(pid, signal.SIGKILL)
    case.end(launch, DOCUMENTED | KILLED | {-9, 1, 255})


def stop_rank(case: Case) -> None:
    """SIGSTOP of a rank for ever: the watchdog must end the job with 71."""
    moment = random_moment(case.choice)
    limit = str(case.choice.choice(STALL_S))
    launch = launch_until(case, moment, fewest=2, options=("--stall-s", limit))
    pid = victim(case, launch)
    case.detail.append(f"SIGSTOP of {name_of(pid)}, --stall-s {limit}")
    send(pid, signal.SIGSTOP)
    # While it merges, the run may end before the stop is noticed, or hang after its watch is over.
    code = case.end(launch, frozenset({71}) if moment is not MERGING else frozenset({71, COMPLETE}))
    if code == 71:
        case.expect("who waits for whom" in launch.text(), "no wait-for graph was shown")


def pause_rank(case: Case) -> None:
    """SIGSTOP, and SIGCONT before the watchdog's limit: the run goes on as if nothing was."""
    launch = launch_until(case, random_moment(case.choice), options=("--stall-s", "60"))
    pid = victim(case, launch)
    pause_s = case.choice.uniform(0.2, 2.0)
    case.detail.append(f"SIGSTOP of {name_of(pid)} for {pause_s:.1f} s")
    send(pid, signal.SIGSTOP)
    polls = iter(range(int(pause_s / POLL_S)))
    launch.wait_for(lambda: next(polls, None) is None)
    send(pid, signal.SIGCONT)
    case.end(launch, frozenset({COMPLETE}))


def _signal(number: signal.Signals, case: Case) -> None:
    """A stop signal for one rank or all: agreed on, exit 75. Or for the launcher, which does as it likes."""
    moment = random_moment(case.choice)
    launch = launch_until(case, moment)
    whom = case.choice.choices(["a rank", "all ranks", "mpirun"], [5, 3, 2])[0]
    case.detail.append(f"{number.name} to {whom}")
    if whom == "mpirun":
        send(launch.process.pid, number)
        # MPICH's passes USR1 on, and USR2 ends it.
        own = {int(number), 128 + number, -number}
        case.end(launch, DOCUMENTED | KILLED | TERMINATED | INTERRUPTED | own)
        return
    for pid in [victim(case, launch)] if whom == "a rank" else launch.ranks():
        send(pid, number)
    case.end(launch, STOPPED_OR_DONE)


def double_fault(case: Case) -> None:
    """A fault, and another one during the resume."""
    faults: list[Callable[[Case], None]] = [
        kill_rank,
        stop_rank,
        *(partial(_signal, its) for its in STOP_SIGNALS),
    ]
    for fault in case.choice.choices(faults, k=2):
        fault(case)


def resumed_signal_while_loading(case: Case) -> None:
    """A stop before the first step of a resume: nothing that an earlier launch kept is lost."""
    launch = launch_until(case, random_moment(case.choice))
    send(victim(case, launch), signal.SIGUSR1)
    if case.end(launch, STOPPED_OR_DONE) == COMPLETE:
        return
    launch = launch_until(case, LOADING)
    case.detail.append("TERM to all ranks")
    for pid in launch.ranks():
        send(pid, signal.SIGTERM)
    case.end(launch, STOPPED_OR_DONE)


STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
usr1, usr2, term, interrupt = (partial(_signal, its) for its in STOP_SIGNALS)
