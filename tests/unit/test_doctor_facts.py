"""Faults planted in what ranks report, found by the checks: what no single test machine can have."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from janus_hpc.comm.libraries import UcxLibrary
from janus_hpc.doctor import (
    bandwidth,
    clocks,
    gpus,
    hdf5,
    kernels,
    limits,
    memory,
    mpi,
    output,
    ranks,
    shm,
    slurm,
    threads,
    ucx,
    versions,
)
from janus_hpc.doctor.check import Skip
from janus_hpc.doctor.context import Context, Places, Target
from janus_hpc.doctor.finding import Finding, Level
from janus_hpc.launch import LaunchEnv, read_launch

OK, INFO, WARNING, ERROR = Level.OK, Level.INFO, Level.WARNING, Level.ERROR
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
TARGET = Target(model_dir=Path("model"), output=Path("out.h5"))


def context(node_ids: tuple[int, ...] = (0, 0, 1, 1), **environ: str) -> Context:
    """Rank 0's view of hosts n0, n1, ..., a node each."""
    return Context(
        env=read_launch({"HOME": "/root", **environ}),
        places=Places(
            node_ids=node_ids,
            hosts=tuple(f"n{node}" for node in node_ids),
            local_ranks=tuple(node_ids[:r].count(node) for r, node in enumerate(node_ids)),
        ),
        world_rank=0,
        world=None,
        no_mpi="",
        target=TARGET,
        quick=False,
        timeout_s=1.0,
    )


def only(findings: list[Finding], level: Level, *parts: str, ranks: tuple[int, ...] = ()) -> None:
    """There is one finding of the level, worded like this, with a reason and a remedy."""
    bad = [its for its in findings if its.level == level]
    assert len(bad) == 1, findings
    text = f"{bad[0].what} | {bad[0].why} | {bad[0].fix}"
    assert all(part in text for part in parts), text
    assert bad[0].ranks == ranks, bad[0]
    if level in (WARNING, ERROR):
        assert bad[0].why and bad[0].fix, bad[0]


def fine(findings: list[Finding]) -> None:
    assert [its.level for its in findings] == [OK], findings


MPI = mpi.MpiFacts(
    name="MPICH 5",
    standard="5.0",
    binding="b",
    files=("l",),
    is_from_pip=False,
    has_fabric=False,
)


def test_mpi() -> None:
    four = [MPI] * 4
    fine(mpi.judge(four, context(**HYDRA)))
    fine(mpi.judge(four, context(**SRUN, SLURM_STEP_NUM_TASKS="4")))
    found = mpi.judge([*[MPI] * 3, replace(MPI, name="MPICH 4")], context(**HYDRA))
    only(found, ERROR, "2 MPI libraries", ranks=(3,))
    both = replace(MPI, files=("/a/libmpi.so.12", "/b/libmpi.so.40"))
    only(mpi.judge([both, *[MPI] * 3], context(**HYDRA)), ERROR, "/b/libmpi.so.40", ranks=(0,))
    pip = replace(MPI, is_from_pip=True, has_fabric=True)
    only(mpi.judge([pip] * 4, context(**HYDRA)), WARNING, "InfiniBand", ranks=(0, 1, 2, 3))
    fine(mpi.judge([pip] * 2, context((0, 0), PMI_RANK="0", PMI_SIZE="2")))
    only(mpi.judge([None], context((0,))), ERROR, "finds no MPI library")


def test_world_size_against_slurm() -> None:
    four = [MPI] * 4
    found = mpi.judge(four, context(**SRUN, SLURM_STEP_NUM_TASKS="8"))
    only(found, ERROR, "4 ranks", "SLURM_STEP_NUM_TASKS=8")
    found = mpi.judge(four, context(**HYDRA, SLURM_NTASKS="8"))
    only(found, WARNING, "4 ranks", "SLURM_NTASKS=8")
    only(mpi.judge([MPI], context((0,), SLURM_NTASKS="8")), WARNING, "without srun or mpirun")
    # Each process of srun alone: the launcher's word is enough.
    found = mpi.judge([MPI], context((0,), **SRUN, SLURM_STEP_NUM_TASKS="8"))
    only(found, ERROR, "slurm started 8 processes", "sees only itself", "--mpi=")
    # mpirun in a job inherits the variables of its own helper, one a node.
    fine(mpi.judge(four, context(**HYDRA, **SRUN, SLURM_STEP_NUM_TASKS="2", SLURM_NTASKS="2")))


def test_local_ranks_and_nodes() -> None:
    facts = [ranks.RankFacts(local_rank=r % 2, num_local=2) for r in range(4)]
    fine(ranks.judge(facts, context()))
    fine(ranks.judge([ranks.RankFacts(local_rank=None, num_local=None)] * 4, context()))
    wrong = [*facts[:2], facts[1], facts[0]]
    only(ranks.judge(wrong, context()), WARNING, "world rank 2 local rank 1", ranks=(2, 3))
    many = [replace(its, num_local=4) for its in facts]
    only(ranks.judge(many, context()), WARNING, "started 4 ranks", ranks=(0, 1, 2, 3))
    alone = [ranks.RankFacts(local_rank=None, num_local=None)] * 3
    only(ranks.judge(alone, context((0, 0, 1))), WARNING, "2 on n0, 1 on n1")
    split = context()
    split = replace(split, places=replace(split.places, hosts=("a",) * 4))
    only(ranks.judge(facts, split), WARNING, "count as several nodes", ranks=(0, 1, 2, 3))
    mixed = replace(split, places=replace(split.places, hosts=("a", "b", "c", "c")))
    only(ranks.judge(facts, mixed), WARNING, "different host names: a, b", ranks=(0, 1))


def test_versions() -> None:
    same = versions.VersionFacts(
        python="3.11.7",
        versions={"torch": "2.13.0+cpu", "h5py": "3.16", "mpi4py": "4.1.2"},
        required={"torch": ">=2.11,<2.14", "h5py": ">=3.11"},
        code="abc",
        folder="/x",
    )
    fine(versions.judge([same] * 4, context()))
    other = replace(same, versions=same.versions | {"torch": "2.12.1+cu128"})
    found = versions.judge([same, same, same, other], context())
    only(found, ERROR, "torch differs", "2.12.1+cu128", ranks=(3,))
    found = versions.judge([same, replace(same, code="def", folder="/y"), same, same], context())
    only(found, ERROR, "code of janus_hpc differs", "def in /y", ranks=(1,))
    fine(versions.judge([same, replace(same, folder="/y")], context((0, 1))))
    old = [replace(same, versions=same.versions | {"torch": "2.10.0"})] * 4
    only(versions.judge(old, context()), WARNING, "torch 2.10.0 is outside", ranks=(0, 1, 2, 3))
    none = [replace(same, versions=same.versions | {"h5py": ""})] * 4
    only(versions.judge(none, context()), ERROR, "h5py is not installed", ranks=(0, 1, 2, 3))


def test_version_ranges() -> None:
    assert versions.in_range("2.13.0+cpu", ">=2.11,<2.14")
    assert versions.in_range("2.11", ">=2.11.0")
    assert not versions.in_range("2.14", ">=2.11,<2.14")
    assert not versions.in_range("2.9.1", ">=2.11")
    assert versions.in_range("7", "")
    read = versions.requirements(
        ["torch<2.14,>=2.11", "mpich>=4.2; extra == 'mpich'", "click>=8.1"]
    )
    assert read == {"torch": "<2.14,>=2.11", "click": ">=8.1"}


def cpus(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def test_threads_against_cores() -> None:
    eight = frozenset(range(8))
    free = threads.ThreadFacts(own=eight, allowed=eight, quota=None, asked=None)
    two = context((0, 0))
    fine(threads.judge([free, free], two))
    many = replace(free, asked=6)
    only(threads.judge([many, many], two), WARNING, "12 threads", "OMP_NUM_THREADS=4", ranks=(0, 1))
    fine(threads.judge([replace(free, asked=4)] * 2, two))
    small = replace(free, own=cpus(0, 1), allowed=cpus(0, 1))
    only(threads.judge([small] * 3, context((0, 0, 0))), WARNING, "3 ranks on 2", ranks=(0, 1, 2))
    same = replace(free, own=cpus(3))
    only(threads.judge([same, same], two), WARNING, "bound to the same 1 of 8", ranks=(0, 1))
    bound = [replace(free, own=cpus(r)) for r in range(2)]
    only(threads.judge(bound, two), WARNING, "bound to 2 of the 8", ranks=(0, 1))
    container = replace(free, quota=2.0)
    only(threads.judge([container, container], two), WARNING, "grants 2 cores", ranks=(0, 1))
    # Only the second node is at fault.
    found = threads.judge([free, free, many, many], context())
    only(found, WARNING, "n1: 2 ranks", ranks=(2, 3))


GPU = gpus.GpuFacts(uuids=("a", "b"), names=("H100", "H100"), num_driver=2, torch_cuda="12.8")


def test_gpus() -> None:
    two = context((0, 0))
    fine(gpus.judge([GPU, GPU], two))
    fine(gpus.judge([gpus.GpuFacts()] * 2, two))
    hides = {"SLURM_GPUS_PER_TASK": "1"}
    hidden = [replace(GPU, uuids=(its,), names=("H100",), settings=hides) for its in "ab"]
    found = gpus.judge(hidden, two)
    only(
        found, WARNING, "do not see all 2", "SLURM_GPUS_PER_TASK=1", "--gpu-bind=none", ranks=(0, 1)
    )
    only(gpus.judge([GPU] * 3, context((0, 0, 0))), WARNING, "3 ranks share 2", ranks=(0, 1, 2))
    apart = [replace(GPU, no_access=((0, 1),)), replace(GPU, no_access=((1, 0),))]
    only(gpus.judge(apart, two), WARNING, "no peer access", "0 and 1", ranks=(0, 1))
    turned = [GPU, replace(GPU, uuids=("b", "a"))]
    only(gpus.judge(turned, two), WARNING, "different orders", ranks=(0, 1))
    cpu_build = replace(GPU, uuids=(), names=(), torch_cuda="")
    only(gpus.judge([cpu_build] * 2, two), WARNING, "build for CPUs", ranks=(0, 1))
    off = replace(GPU, uuids=(), names=(), settings={"CUDA_VISIBLE_DEVICES": ""})
    only(gpus.judge([off] * 2, two), WARNING, "CUDA_VISIBLE_DEVICES=''", ranks=(0, 1))
    found = gpus.judge([GPU, GPU, gpus.GpuFacts(), gpus.GpuFacts()], context())
    only(found, ERROR, "2 of 4 ranks see no GPU", ranks=(2, 3))
    on_cpus = replace(two, target=replace(two.target, device="cpu"))
    for gather in (gpus.gather, gpus.gather_ipc):
        with pytest.raises(Skip, match="on CPUs"):
            gather(on_cpus)


def test_cuda_ipc_and_expandable_segments() -> None:
    fine(gpus.judge_ipc([""] * 4, context()))
    found = gpus.judge_ipc(["", "", "GPU 0 has no peer access to GPU 1"] * 2, context())
    assert len(found) == 1
    only(found, WARNING, "n1: GPU 0 has no peer access", ranks=(2, 3))
    name, value = "PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64, expandable_segments:True"
    both = gpus.judge_allocator([{name: value}] * 2, context((0, 0)))
    only(both, WARNING, value, "CUDA IPC", ranks=(0, 1))
    fine(gpus.judge_allocator([{name: "expandable_segments:False"}], context((0,))))


UCX = ucx.UcxFacts(
    library=UcxLibrary(
        detail="UCX 1.21 (/l/libucp.so) with tcp", transports=("tcp", "posix"), files=("/l",)
    )
)


def test_ucx() -> None:
    four = context()
    fine(ucx.judge([UCX] * 4, four))
    fabric = replace(UCX, has_fabric=True)
    found = ucx.judge([fabric] * 4, four)
    only(found, WARNING, "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=true", ranks=(0, 1, 2, 3))
    rc = replace(UCX.library, transports=("rc_mlx5", "tcp"))
    fine(ucx.judge([replace(fabric, library=rc)] * 4, four))
    none = replace(UCX, library=UcxLibrary(why_not="no module"))
    only(ucx.judge([none] * 4, four), INFO, "no module")
    only(ucx.judge([UCX, UCX, none, UCX], four), WARNING, "1 of 4 ranks", ranks=(2,))
    both = replace(UCX, library=replace(UCX.library, files=("/a/libucp.so", "/b/libucp.so")))
    only(ucx.judge([both] * 4, four), ERROR, "/b/libucp.so", ranks=(0, 1, 2, 3))
    tcp = replace(UCX, settings={"UCX_TLS": "tcp,self"})
    only(ucx.judge([tcp] * 4, four), WARNING, "leaves out shared memory", ranks=(0, 1, 2, 3))
    other = replace(UCX, library=replace(UCX.library, detail="UCX 1.18"))
    only(ucx.judge([UCX, other, UCX, UCX], four), WARNING, "UCX 1.18")


def rates(across: dict[tuple[int, int], float], *, crowded: bool = False) -> Any:
    figures = {pair: (1e-6, rate) for pair, rate in across.items()}
    its = bandwidth.LinkRates(link="ucx", is_crowded=crowded, across=figures, inside={})
    return [[its]] * 4


def test_a_slow_pair_and_a_slow_host() -> None:
    nodes = context((0, 1, 2, 3))
    pairs = {(a, b): 10e9 for a in range(4) for b in range(a + 1, 4)}
    fine(bandwidth.judge(rates(pairs), nodes))
    found = bandwidth.judge(rates(pairs | {(1, 3): 1e9}), nodes)
    only(found, WARNING, "1 of 6 pairs", "n1 (rank 1) to n3 (rank 3): 1 GB/s", ranks=(1, 3))
    slow = {(0, 2): 2e9, (2, 3): 1.9e9}
    found = bandwidth.judge(rates(pairs | slow), nodes)
    only(found, WARNING, "have n2 in common: leave it out (--exclude=n2)", ranks=(0, 2, 3))
    fine(bandwidth.judge(rates(pairs | slow, crowded=True), nodes))


def test_quick_measures_nothing() -> None:
    with pytest.raises(Skip, match="--quick"):
        bandwidth.gather(replace(context(), quick=True))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 7, 8])
def test_rounds_hold_every_pair_once_and_no_node_twice(num_nodes: int) -> None:
    rounds = bandwidth.rounds_of(num_nodes)
    pairs = [pair for its in rounds for pair in its]
    expected = [(a, b) for a in range(num_nodes) for b in range(a + 1, num_nodes)]
    assert sorted(pairs) == expected
    for its in rounds:
        nodes = [node for pair in its for node in pair]
        assert len(nodes) == len(set(nodes))


def test_clock_skew() -> None:
    fine(clocks.judge([{1: (0.2, 0.001)}, {}, {}, {}], context()))
    found = clocks.judge([{1: (-3.5, 0.01)}, {}, {}, {}], context())
    only(found, WARNING, "clock of n1 is 3.5 s behind", "NTP", ranks=(2, 3))
    # What a slow network cannot tell is no finding.
    fine(clocks.judge([{1: (1.5, 0.8)}, {}, {}, {}], context()))


def test_output() -> None:
    good = output.OutputFacts(folder="/o", kind="lustre", free_bytes=10**12, locked=True)
    seen: list[output.OutputFacts | None] = [replace(good, locked=None), None, good, None]
    fine(output.judge(seen, context()))

    def judged(other: output.OutputFacts) -> list[Finding]:
        return output.judge([seen[0], None, other, None], context())

    only(judged(replace(good, problem="/o is read-only")), ERROR, "/o is read-only", ranks=(2,))
    only(judged(replace(good, sees_first=False)), ERROR, "not the same folder", ranks=(2,))
    only(judged(replace(good, free_bytes=10**7)), ERROR, "10 MB free", ranks=(2,))
    only(judged(replace(good, free_bytes=5 * 10**8)), WARNING, "500 MB free", ranks=(2,))
    only(judged(replace(good, free_files=3)), ERROR, "3 more files")
    only(judged(replace(good, locked=False)), WARNING, "localflock", ranks=(2,))
    only(judged(replace(good, unsafe="O_EXCL creates")), ERROR, "O_EXCL", ranks=(2,))


def test_small_or_cluttered_shared_memory() -> None:
    docker = shm.ShmFacts(total_bytes=64 << 20, free_bytes=60 << 20)
    found = shm.judge([docker, None], context((0, 0)))
    only(found, ERROR, "/dev/shm has 62.9 MB of 67.1 MB free", "--shm-size", ranks=(0, 1))
    fine(shm.judge([docker], context((0,))))
    only(shm.judge([shm.ShmFacts(exists=False), None], context((0, 0))), ERROR, ranks=(0, 1))
    left = shm.ShmFacts(total_bytes=1 << 34, free_bytes=1 << 33, left=(("mpich_x", 1 << 30),))
    only(shm.judge([left], context((0,))), WARNING, "remove them: /dev/shm/mpich_x", ranks=(0,))


def test_hdf5_locks() -> None:
    good = hdf5.Hdf5Facts(
        folder="/o", kind="nfs4", version="h5py 3", setting="", problem="", keeps_out=True, lock_problem=""
    )  # fmt: skip
    fine(hdf5.judge([good, None], context((0, 0))))
    off = replace(good, setting="FALSE", keeps_out=False)
    only(hdf5.judge([off], context((0,))), WARNING, "HDF5_USE_FILE_LOCKING=FALSE")
    no_locks = replace(good, lock_problem="flock: No locks available", keeps_out=False)
    only(hdf5.judge([no_locks], context((0,))), WARNING, "No locks available")
    broken = replace(good, problem="h5py: unable to lock file, errno = 37")
    only(hdf5.judge([broken], context((0,))), ERROR, "BEST_EFFORT")


def test_kernels() -> None:
    good, bad = kernels.KernelFacts(path="/c/k.so"), kernels.KernelFacts(problem="no C compiler")
    fine(kernels.judge([good, good], context((0, 0))))
    only(kernels.judge([bad, bad], context((0, 0))), WARNING, "no C compiler")
    only(kernels.judge([good, bad], context((0, 0))), ERROR, "1 of 2 ranks", ranks=(1,))
    on_gpu = replace(bad, on_gpu=True)
    only(kernels.judge([on_gpu], context((0,))), INFO, "GPUs do not need them")


def test_memory() -> None:
    gb = 10**9
    its = memory.MemoryFacts(
        kind="cpu", room_bytes=60 * gb, attention_bytes=8 * gb, expert_bytes=80 * gb
    )
    fine(memory.judge([its] * 2, context((0, 1))))
    only(memory.judge([its], context((0,))), ERROR, "88 GB", "60 GB")
    only(memory.judge([replace(its, room_bytes=50 * gb)] * 2, context((0, 1))), WARNING, "100 GB")
    gpu = replace(its, kind="cuda", attention_bytes=70 * gb)
    only(memory.judge([gpu] * 4, context()), ERROR, "attention weights take 70 GB")


def test_limits() -> None:
    none = limits.UNLIMITED
    good = limits.LimitFacts(num_files=4096, locked_bytes=1 << 23, core_bytes=0, has_fabric=False)
    fine(limits.judge([good] * 4, context()))
    fine(limits.judge([replace(good, num_files=none)] * 4, context()))
    few = [*[good] * 3, replace(good, num_files=128)]
    only(limits.judge(few, context()), ERROR, "128 files (ulimit -n)", ranks=(3,))
    fabric = [replace(good, has_fabric=True)] * 4
    only(limits.judge(fabric, context()), WARNING, "ulimit -l", ranks=(0, 1, 2, 3))
    fine(limits.judge([replace(its, locked_bytes=none) for its in fabric], context()))
    only(limits.judge([replace(good, core_bytes=none)] * 4, context()), INFO, "core dumps")


def test_slurm() -> None:
    job = slurm.SlurmFacts(job_id="7", left_s=7200.0, requeues=True)
    fine(slurm.judge([job, None], context((0, 0))))
    only(slurm.judge([replace(job, left_s=120.0)], context((0,))), WARNING, "ends in 2.0 minutes")
    only(slurm.judge([replace(job, requeues=False)], context((0,))), INFO, "--requeue")
    shown = (
        "JobId=7 Requeue=1 StartTime=2026-11-29T15:00:00 EndTime=2026-11-29T16:00:00 Deadline=N/A"
    )
    assert slurm.end_time(shown) == datetime(2026, 11, 29, 16).timestamp()
    assert slurm.end_time("EndTime=Unknown") is None


def test_the_environment_reaches_the_checks() -> None:
    env: LaunchEnv = read_launch(
        {"HOME": "/", "SLURM_GPUS_PER_TASK": "1", "HDF5_USE_FILE_LOCKING": "FALSE", "EDITOR": "vi"}
    )
    assert env.settings == {"SLURM_GPUS_PER_TASK": "1", "HDF5_USE_FILE_LOCKING": "FALSE"}
