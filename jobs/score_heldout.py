"""Scores exported answers against the right ones: the exact-match share per task and overall.

janus-hpc results export heldout.h5 --to jsonl > answers.jsonl
python jobs/score_heldout.py answers.jsonl
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).resolve().parent / "heldout_answers.jsonl"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, one a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def score(exported: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of exact answers; a missing or failed row counts as wrong."""
    texts = {row["id"]: row.get("text") for row in exported}
    hits: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        task = answer["id"].rpartition("-")[0]
        hits[task].append(texts.get(answer["id"]) == answer["answer"])
    total = sum(len(rights) for rights in hits.values())
    return {
        "overall": sum(sum(rights) for rights in hits.values()) / total,
        "tasks": {task: sum(rights) / len(rights) for task, rights in hits.items()},
        "num_rows": total,
        "num_missing": sum(answer["id"] not in texts for answer in answers),
    }


def main() -> int:
    """Print the shares as JSON; exit 1 where the overall share is below --at-least."""
    parser = argparse.ArgumentParser(description="Score exported answers of jobs/heldout.jsonl.")
    parser.add_argument("exported", type=Path, help="JSONL of `janus-hpc results export`")
    parser.add_argument("--answers", type=Path, default=ANSWERS)
    parser.add_argument("--at-least", type=float, default=0.0, help="smallest share that passes")
    args = parser.parse_args()
    shares = score(read_jsonl(args.exported), read_jsonl(args.answers))
    print(json.dumps(shares, indent=1))
    return 0 if shares["overall"] >= args.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
