"""Faults of what a run reads: a checkpoint that is cut short, a clock that jumps."""

import os
import shutil
import signal
import time
from pathlib import Path

from janus_hpc.demo import demo_model_dir
from tests.faults.bed import COMPLETE, NUM_ROWS
from tests.faults.case import DOCUMENTED, Case
from tests.faults.launch import send
from tests.faults.moments import BORDER, LOADING, after_rows, launch_until, random_moment, victim
from tests.faults.process_faults import KILLED

# SIGBUS: a process that reads beyond the end of a mapped file is ended by the system.
BUS_ERROR = frozenset({7, 135})
CLOCK_FOLDER = Path(__file__).parent / "clock"
HOUR_S = 3600


def checkpoint_cut(case: Case) -> None:
    """A shard of the model is cut short between two launches: refused by name; put back, the run goes on."""
    model = _own_model(case)
    launch = launch_until(case, after_rows(case.choice.randrange(1, NUM_ROWS - 4)))
    send(victim(case, launch), signal.SIGTERM)
    case.end(launch)
    shard, whole = _cut_a_shard(case, model)
    refused = case.start()
    code = case.end(refused)
    case.expect(code == 2, f"a cut shard: exit {code}, expected 2")
    case.expect(shard.name in refused.text(), f"the refusal does not name {shard.name}")
    shard.write_bytes(whole)


def checkpoint_cut_running(case: Case) -> None:
    """A shard is cut short while ranks read it, or later: whatever happens, no wrong answers."""
    model = _own_model(case)
    moments = [LOADING, BORDER, random_moment(case.choice)]
    launch = launch_until(case, case.choice.choice(moments))
    shard, whole = _cut_a_shard(case, model)
    case.end(launch, DOCUMENTED | BUS_ERROR | KILLED)
    shard.write_bytes(whole)


def clock_jump(case: Case) -> None:
    """The wall clock jumps by hours in mid-run, beyond the end of the job's time or back: nothing happens."""
    clock = case.folder / "clock"
    clock.write_text("0")
    path = os.pathsep.join([str(CLOCK_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": path, "JANUS_TEST_CLOCK": str(clock)}
    env["SLURM_JOB_END_TIME"] = str(int(time.time()) + HOUR_S)
    launch = launch_until(case, random_moment(case.choice), options=("--stall-s", "60"), env=env)
    hours = case.choice.choice([-30, -2, 2, 30])
    clock.write_text(str(hours * HOUR_S))
    case.detail.append(f"the clock jumps by {hours} h")
    case.end(launch, frozenset({COMPLETE}))


def _own_model(case: Case) -> Path:
    model = case.folder / "model"
    shutil.copytree(demo_model_dir(), model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    case.arguments = ["--model", model]
    return model


def _cut_a_shard(case: Case, model: Path) -> tuple[Path, bytes]:
    """The file, and what it held."""
    shard = case.choice.choice(sorted(model.glob("*.safetensors")))
    whole = shard.read_bytes()
    num_bytes = case.choice.randrange(len(whole))
    with shard.open("r+b") as file:
        file.truncate(num_bytes)
    case.detail.append(f"{shard.name} cut to {num_bytes} of {len(whole)} bytes")
    return shard, whole
