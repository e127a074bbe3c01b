"""Writes the held-out prompts and, apart from them, their answers; always the same bytes.

python jobs/demo_files.py --out jobs
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from demo_corpus import NUM_HELD_OUT_PER_TASK, held_out_examples

CHAT_ONE_IN = 5


def held_out_rows() -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the prompt rows, every fifth as a chat, and the answers under the same ids."""
    rows: list[dict[str, Any]] = []
    answers: list[dict[str, str]] = []
    for i, example in enumerate(held_out_examples()):
        row_id = f"{example.task}-{i % NUM_HELD_OUT_PER_TASK + 1:04d}"
        prompt: dict[str, Any] = {"prompt": example.prompt}
        if i % CHAT_ONE_IN == CHAT_ONE_IN - 1:
            prompt = {"messages": [{"role": "user", "content": example.prompt}]}
        rows.append({"id": row_id, **prompt, "max_tokens": 16, "temperature": 0})
        answers.append({"id": row_id, "answer": example.answer})
    return rows, answers


def write_held_out(folder: Path) -> None:
    """Write heldout.jsonl and heldout_answers.jsonl into `folder`."""
    rows, answers = held_out_rows()
    for name, lines in (("heldout.jsonl", rows), ("heldout_answers.jsonl", answers)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def main() -> int:
    """Write both files where the command line says."""
    parser = argparse.ArgumentParser(description="Write the demo model's held-out prompts.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    write_held_out(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
