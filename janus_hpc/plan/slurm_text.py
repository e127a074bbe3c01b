"""The text of batch scripts that run a plan: sbatch's header, the step, and how a drained job comes back.

Knows bash and Slurm, nothing of plans. slurm/janus.sbatch is the pattern; PREPARE and COME_BACK are parts of it.
"""

# Placeholders in braces; doubled braces are bash's own.
SCRIPT = """\
#!/bin/bash
# {headline}
# Written by janus-hpc plan: sbatch {script_name}{argument_hint}
# Its ranks are in {map_name}; further arguments of `janus-hpc infer` may follow on sbatch's line, and win.
#SBATCH --job-name=janus-plan
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
{components}
set -euo pipefail
# Before bash 4.4 an empty array counts as unset.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || set +u
# The batch script is copied to a spool folder; the working folder is where sbatch was called.
cd "${{SLURM_SUBMIT_DIR:-.}}"
# Steps get what this script has set, also after sbatch --export=NONE or --export=JOB=...
export SLURM_EXPORT_ENV=ALL
[ -n "${{VIRTUAL_ENV:-}}" ] || [ ! -f .venv/bin/activate ] || source .venv/bin/activate
# What the site's MPI, network and file system want.
[ -z "${{JANUS_ENV:-}}" ] || source "$JANUS_ENV"

{prompts}
step=(
    # MPICH's ranks speak pmi2, Open MPI's pmix; JANUS_MPI picks what the site has.
    --mpi="${{JANUS_MPI:-pmi2}}"
    # Nodes are filled in turn, as in {map_name}.
    --distribution=block:block,Pack
    # A rank that dies ends the others, and so does one that ends early with code 0.
    --kill-on-bad-exit=1 --wait=60
    --unbuffered
)
program=(janus-hpc infer {options} "${{janus_args[@]}}" "${{args[@]}}")

{prepare}
code=0
{run} || code=$?
{come_back}"""

COMPONENT = """\
#SBATCH --nodes={num_nodes}
#SBATCH --ntasks={num_ranks}
#SBATCH --ntasks-per-node={per_node}
{resources}#SBATCH --time={time}
#SBATCH --signal=USR1@120
#SBATCH --requeue
"""

HETJOB = """\
# Component 0, attention: {attention}. Partitions of both go on sbatch's line: -p A : -p B {script_name}
{first}#SBATCH hetjob
# Component 1, experts: {experts}.
{second}"""

RUN = 'srun "${step[@]}"{sizes} "${program[@]}"'
# World ranks count through component 0 first: those do attention.
RUN_HETJOB = """\
srun "${step[@]}" --het-group=0{first} "${program[@]}" : \\
    "${step[@]}" --het-group=1{second} "${program[@]}\""""

DEMO_PROMPTS = """\
args=("$@")
if [ ${#args[@]} -eq 0 ]; then
    args=("$(python3 -c 'from janus_hpc.demo import demo_model_dir; print(demo_model_dir() / "prompts.jsonl")')")
fi
"""

PREPARE = """\
# How Slurm's commands name this job: the id alone would stand for the whole array.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}"
job="${job:-$SLURM_JOB_ID}"
job_field() { squeue -h -j "$job" -o "$1" | sed -n 1p; }
# Slurm sets it from 23.02 on; before that the job asks. No row is begun that cannot end in time.
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
    ends="$(job_field %e || true)"
    [ -z "$ends" ] || SLURM_JOB_END_TIME="$(date +%s -d "$ends" 2>/dev/null || true)"
    export SLURM_JOB_END_TIME
fi

# A node that dies takes the step with it long before Slurm calls it down: then a step of all nodes does not start,
# while one of this node alone does.
starts_on() {
    timeout 60 srun --overlap --mpi=none --quiet --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task=1 "$@" true
}
a_node_is_lost() {
    local group groups=("") nodes
    [ -z "${SLURM_HET_SIZE:-}" ] || mapfile -t groups < <(seq 0 $((SLURM_HET_SIZE - 1)))
    starts_on --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" || return
    for group in "${groups[@]}"; do
        nodes="SLURM_JOB_NUM_NODES${group:+_HET_GROUP_$group}"
        starts_on ${group:+--het-group="$group"} --nodes="${!nodes}" --ntasks="${!nodes}" || return 0
    done
    return 1
}

# After a requeue steps count from 0 again, but what was killed before left its shared memory on the nodes under its
# step's name, and MPI would take it for its own. So each start begins two numbers (doctor, infer) further on.
restarts="${SLURM_RESTART_COUNT:-0}"
for ((used = 0; used < 2 * restarts; used++)); do
    srun --mpi=none --quiet --nodes=1 --ntasks=1 true || true
done
"""

COME_BACK = """\
case "$code" in
    0 | 2 | 3) exit "$code" ;;
    # Drained; or ended by USR1 or USR2 that came before the ranks could listen.
    75 | 138 | 140) ;;
    *)
        a_node_is_lost || exit "$code"
        echo "janus: a node does not answer"
        ;;
esac

# Rows are left. After scancel, or where Slurm ends the job for another reason, it does not come back.
state="$(job_field %T || true)"
if [ "$state" != RUNNING ]; then
    kept="the job is ${state:-gone}"
elif [ "${JANUS_REQUEUE:-1}" = 0 ]; then
    kept="JANUS_REQUEUE=0"
elif [ "$restarts" -ge "${JANUS_MAX_REQUEUES:-20}" ]; then
    kept="restarted $restarts times (JANUS_MAX_REQUEUES)"
fi
if [ -n "${kept:-}" ]; then
    echo "janus: not requeued: $kept; the same sbatch command resumes"
    exit "$code"
fi
echo "janus: requeued as $job, restart $((restarts + 1))"
# Slurm ends this script soon after the request, but not between it and the next.
trap 'exit "$code"' TERM
(
    trap '' TERM
    scontrol requeue "$job" || exit 1
    # Left alone, Slurm waits for as many nodes as the job had.
    if [ -n "${JANUS_REQUEUE_NODES:-}" ]; then
        fewest=$((${JANUS_REQUEUE_NODES%-*} * ${SLURM_NTASKS_PER_NODE:-1}))
        scontrol update JobId="$job" NumNodes="$JANUS_REQUEUE_NODES" NumTasks="$fewest"
    fi
    true
) || exit "$code"
# A code of its own would come before Slurm's end of the job.
sleep 300 &
wait
exit "$code"
"""
