"""The outermost frame of a program on many ranks: no error on one rank leaves another one waiting.

Knows how a rank is named and how an error ends a program, nothing of what was being done.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from janus_hpc.comm.world import World
from janus_hpc.errors import ExitCode, JanusError, refusal_text
from janus_hpc.log import write_to_file

# How long a launcher gets to forward a last message.
FORWARD_S = 0.3
# How long MPI_Abort may take before this process just exits.
ABORT_LIMIT_S = 10.0
# How long ranks that are done wait for the others.
LEAVE_LIMIT_S = 600.0


@contextmanager
def guard(world: World) -> Iterator[None]:
    """Run the body; an exception that leaves it ends every rank within seconds.

    An error raised by `world.agree` is known to all ranks: rank 0 prints it and every rank exits
    with its code. Any other is printed with the rank's label and ends the job by MPI_Abort: with
    the error's own code, 75 for an interrupt from the keyboard, 70 otherwise, with a traceback unless
    it is the file system that refused something.
    SystemExit passes: it must be raised on every rank. Collective over the world.
    """
    previous = threading.excepthook
    threading.excepthook = lambda args: _end(world, args.exc_value or SystemError("unknown"))
    try:
        yield
        leave_together(world)
    except JanusError as error:
        if error is not world.agreed_error and world.world_size > 1:
            _end(world, error)
        if world.world_rank == 0:
            print(f"janus-hpc: {error}", file=sys.stderr, flush=True)
        leave_together(world)
        sys.exit(int(error.exit_code))
    except (KeyboardInterrupt, Exception) as error:
        _end(world, error)
    finally:
        threading.excepthook = previous


def leave_together(world: World) -> None:
    """Wait until every rank is about to exit; from here on only SIGKILL ends one early. Collective over the world.

    Ranks exit some milliseconds apart, and at the first code other than 0 `srun --kill-on-bad-exit` sends the
    others SIGTERM, whose 143 would then be the job's exit code in place of the one they agreed on.
    """
    if world.world_size > 1:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
    # Ranks that are done wait here with yields; the wait in MPI_Finalize would spin.
    world.barrier(timeout_s=LEAVE_LIMIT_S)


def end_from_thread(world: World, text: str, exit_code: int) -> None:
    """End every rank from a thread that is not the one in MPI. Does not return."""
    # Where the console, the log or the abort hangs too, the launcher ends the others once this process is gone.
    last_resort = threading.Timer(ABORT_LIMIT_S, os._exit, [exit_code])
    last_resort.daemon = True
    last_resort.start()
    sys.stderr.write(f"[{world.label}] {text}\n")
    sys.stderr.flush()
    write_to_file(text)
    time.sleep(FORWARD_S)
    if world.abortable_by_threads:
        world.abort(exit_code)
    os._exit(exit_code)


def _end(world: World, error: BaseException) -> None:
    """Print who failed, where and why, then end every rank. Does not return."""
    exit_code = int(ExitCode.INTERNAL)
    if isinstance(error, JanusError):
        exit_code, text = int(error.exit_code), str(error)
    elif isinstance(error, KeyboardInterrupt):
        exit_code, text = int(ExitCode.INTERRUPTED), "interrupted from the keyboard"
    else:
        trace = "".join(traceback.format_exception(error)).rstrip()
        refusal = refusal_text(error)
        if refusal is not None:
            write_to_file(trace)
        text = refusal or trace
    where = f" {world.pulse.where}" if world.pulse.where else ""
    # One write, so that lines of several ranks do not mix.
    sys.stdout.flush()
    line = f"[{world.label}]{where}: {text}"
    sys.stderr.write(f"{line}\n")
    write_to_file(line)
    sys.stderr.flush()
    # The launcher stops forwarding output as soon as it learns of the abort.
    time.sleep(FORWARD_S)
    world.abort(exit_code)
