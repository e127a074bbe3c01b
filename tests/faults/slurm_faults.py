"""Faults under a real Slurm of four nodes on this host: a step cancelled, a node set down, a node killed.

Knows Slurm's commands; what comes after the fault is the case's to judge.
"""

from collections.abc import Callable
from pathlib import Path

from tests.faults.bed import COMPLETE, NUM_ROWS
from tests.faults.case import DOCUMENTED, Case, Missed
from tests.faults.launch import LAUNCH_LIMIT_S, rows_done
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.nodes import bring_back, kill_node, set_state, start_node

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "janus.sbatch"
SHAPES = (("1", "2", "1a1e"), ("2", "1", "1a1e"), ("2", "1", "colocated"), ("2", "2", "2a2e"))
STALL_S = 20


def step_cancel(case: Case, cluster: Cluster) -> None:
    """scancel of the step: the job ends, and the same command goes on."""
    job = _submit_and_wait(case, cluster)
    case.detail.append("scancel of the step")
    cluster.command("scancel", f"{job}.0")
    _note_end(case, cluster, job)


def node_down(case: Case, cluster: Cluster) -> None:
    """`scontrol update State=DOWN` of a node: Slurm requeues the job, which goes on by itself."""
    job = _submit_and_wait(case, cluster)
    node = case.choice.choice(_nodes_of(cluster, job))
    case.detail.append(f"{node} set down")
    set_state(cluster, node, "DOWN")
    _note_end(case, cluster, job, comes_back=True)
    bring_back(cluster, node)


def node_killed(case: Case, cluster: Cluster) -> None:
    """kill -9 of all that runs on a node, its slurmd included; it is set down, and comes back later."""
    job = _submit_and_wait(case, cluster)
    node = case.choice.choice(_nodes_of(cluster, job))
    case.detail.append(f"all of {node} killed")
    kill_node(cluster, node)
    set_state(cluster, node, "DOWN")
    _note_end(case, cluster, job, comes_back=True)
    start_node(cluster, node)
    bring_back(cluster, node)


FAULTS: dict[str, Callable[[Case, Cluster], None]] = {
    "step cancel": step_cancel,
    "node down": node_down,
    "node killed": node_killed,
}


def _submit_and_wait(case: Case, cluster: Cluster) -> str:
    """A job in its middle; its id."""
    nodes, per_node, split = case.choice.choice(SHAPES)
    sizes = [f"--nodes={nodes}", f"--ntasks-per-node={per_node}"]
    options: list[str | Path] = ["-o", case.out, "--split", split, "--max-sequences", "4"]
    options += ["--microbatches", "1", "--stall-s", str(STALL_S)]
    job = cluster.submit(case.folder, *sizes, SCRIPT, case.bed.rows, *options)
    num_rows = case.choice.randrange(1, NUM_ROWS - 8)
    case.detail.append(f"job {job} on {nodes} nodes x {per_node}, {split}, after {num_rows} rows")
    wait_until(
        lambda: rows_done(case.run_dir) >= num_rows or case.out.exists(), "rows", LAUNCH_LIMIT_S
    )
    if case.out.exists():
        cluster.wait_for(job, LAUNCH_LIMIT_S)
        raise Missed("the job was complete")
    return job


def _note_end(case: Case, cluster: Cluster, job: str, *, comes_back: bool = False) -> None:
    """Wait for the job, and note its exit code; what does not end, or must come back and did not, is a finding."""
    try:
        state, code = cluster.wait_for(job, LAUNCH_LIMIT_S)
    except AssertionError:
        case.findings.append(f"job {job} did not end within {LAUNCH_LIMIT_S:g} s")
        cluster.command("scancel", "--signal=KILL", "--full", job)
        return
    exit_code, number = map(int, code.split(":"))
    case.codes.append(exit_code or number)
    case.detail.append(f"{state} {code}")
    said = (case.folder / f"janus-{job}.out").read_text(errors="replace")
    case.expect("Traceback (most recent call last)" not in said, "a traceback")
    allowed = {COMPLETE} if comes_back else DOCUMENTED | {9, 15, 137, 143}
    case.expect(exit_code in allowed, f"the job's exit code is {exit_code}")


def _nodes_of(cluster: Cluster, job: str) -> list[str]:
    names = cluster.command("squeue", "-h", "-j", job, "-o", "%N").strip()
    if not names:
        raise Missed("the job was over")
    return cluster.command("scontrol", "show", "hostnames", names).split()
