#!/usr/bin/env bash
# Sets up what is missing, runs the demo model on the demo prompts with 4 ranks, and shows what came of it.
# Usage: bash jobs/demo.sh [FOLDER]      (results go to FOLDER, default ./janus-demo)
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/setup.sh" mpich
folder="${1:-janus-demo}"
mkdir -p "$folder"
cd "$folder"
prompts="$(python -c 'from janus_hpc.demo import demo_model_dir; print(demo_model_dir() / "prompts.jsonl")')"
started=$SECONDS
mpirun -n 4 janus-hpc infer "$prompts" --overwrite
echo
janus-hpc results export prompts.h5 --to jsonl | python -c '
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print("  {:<10} {!r}".format(row["id"], row["text"] or row["error"]))
'
echo
echo "the job took $((SECONDS - started)) s; results: $PWD/prompts.h5 (janus-hpc results export prompts.h5 --to jsonl)"
