"""Prints rows that change character midway: 64 short prompts with long answers, then 64 long with short ones."""

import json
from collections.abc import Iterator
from typing import Any


def rows() -> Iterator[dict[str, Any]]:
    """For the demo model: token ids below its vocabulary of 406, at most 512 tokens in all."""
    for kind, num_prompt, num_new, row, step in (("s", 8, 120, 7, 1), ("l", 400, 4, 5, 3)):
        for index in range(64):
            yield {
                "id": f"{kind}{index}",
                "prompt": [10 + (row * index + step * place) % 300 for place in range(num_prompt)],
                "max_tokens": num_new,
                "ignore_eos": True,
                "temperature": 0,
            }


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
