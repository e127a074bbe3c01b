"""The demo model's corpus: right answers, a held-out part that training never sees, same bytes."""

import calendar
import datetime
import importlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

JOBS = Path(__file__).resolve().parents[2] / "jobs"
IRREGULAR = """
man men woman women child children foot feet tooth teeth goose geese mouse mice ox oxen sheep sheep
fish fish deer deer leaf leaves wolf wolves knife knives wife wives life lives half halves loaf
loaves potato potatoes tomato tomatoes hero heroes piano pianos photo photos quiz quizzes person
people
"""


@pytest.fixture(scope="module")
def corpus() -> Any:
    """The corpus module, imported from jobs/ as the scripts there import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(JOBS))
        yield importlib.import_module("demo_corpus")


@pytest.fixture(scope="module")
def files(corpus: ModuleType) -> ModuleType:
    """The module that writes the held-out files."""
    return importlib.import_module("demo_files")


def moved_day(name: str, offset: int) -> str:
    """Return the weekday by the calendar: 2024-01-01 was a Monday."""
    day = datetime.date(2024, 1, 1)
    while day.strftime("%A") != name:
        day += datetime.timedelta(days=1)
    return (day + datetime.timedelta(days=offset)).strftime("%A")


def moved_month(name: str, offset: int) -> str:
    """Return the month by walking one month at a time."""
    month = list(calendar.month_name).index(name)
    for _ in range(abs(offset)):
        month += 1 if offset > 0 else -1
        month = {0: 12, 13: 1}.get(month, month)
    return calendar.month_name[month]


def plural(noun: str) -> str:
    """Return the plural by the irregular list above, else by spelling rules."""
    irregular = IRREGULAR.split()
    table = dict(zip(irregular[::2], irregular[1::2], strict=True))
    if noun in table:
        return table[noun]
    if re.search(r"[^aeiou]y$", noun):
        return re.sub(r"y$", "ies", noun)
    return noun + ("es" if re.search(r"(s|x|[cs]h)$", noun) else "s")


def solve(prompt: str) -> str:
    """Return a prompt's answer, computed from its text alone."""
    if match := re.fullmatch(r"(\d+)\+(\d+)=", prompt):
        return str(int(match[1]) + int(match[2]))
    keyword, argument, body = re.fullmatch(r"(\w+) ?([-+\w]*): (.+) =", prompt).groups()  # type: ignore[union-attr]
    if keyword in {"Days", "Months", "Next", "Previous"}:
        offset = {"Next": 1, "Previous": -1}.get(keyword) or int(argument)
        move = moved_day if "day" in body else moved_month
        return ", ".join(move(name, offset) for name in body.split(", "))
    if keyword == "Count":
        return str(Counter(body)[argument])
    if keyword == "Upper":
        return "".join(chr(ord(letter) - 32) for letter in body)
    if keyword == "Reverse":
        return "".join(reversed(body))
    if keyword == "Sort":
        return "".join(letter * body.count(letter) for letter in sorted(set(body)))
    assert keyword == "Plural", f"{prompt=}"
    return plural(body)


def test_training_answers_are_right(corpus: ModuleType) -> None:
    rng = random.Random(3)
    examples = [corpus.training_example(rng) for _ in range(8000)]
    wrong = [e for e in examples if solve(e.prompt) != e.answer]
    assert not wrong
    assert {e.task for e in examples} == set(corpus.TASKS)


def test_held_out_answers_are_right() -> None:
    rows = read_jsonl(JOBS / "heldout.jsonl")
    answers = {a["id"]: a["answer"] for a in read_jsonl(JOBS / "heldout_answers.jsonl")}
    assert [row["id"] for row in rows] == list(answers)
    assert all(solve(prompt_of(row)) == answers[row["id"]] for row in rows)


def test_training_never_sees_a_held_out_prompt(corpus: ModuleType) -> None:
    held_out = {prompt_of(row) for row in read_jsonl(JOBS / "heldout.jsonl")}
    rng = random.Random(4)
    trained = {corpus.training_example(rng).prompt for _ in range(20_000)}
    assert len(held_out) == 512
    assert not held_out & trained


def test_held_out_part_is_about_a_sixteenth(corpus: ModuleType) -> None:
    rng = random.Random(5)
    for maker, _ in corpus.TASKS.values():
        share = sum(corpus.is_held_out(maker(rng)) for _ in range(4000)) / 4000
        assert 0.03 < share < 0.1


def test_a_fifth_of_the_held_out_rows_are_chats() -> None:
    rows = read_jsonl(JOBS / "heldout.jsonl")
    chats = Counter(row["id"].rpartition("-")[0] for row in rows if "messages" in row)
    assert set(chats.values()) <= {12, 13}
    assert all(row["max_tokens"] == 16 and row["temperature"] == 0 for row in rows)


def test_held_out_files_are_reproducible(files: ModuleType, tmp_path: Path) -> None:
    files.write_held_out(tmp_path)
    for name in ("heldout.jsonl", "heldout_answers.jsonl"):
        assert (tmp_path / name).read_bytes() == (JOBS / name).read_bytes()


def test_score_counts_missing_and_wrong_rows(corpus: ModuleType) -> None:
    scorer = importlib.import_module("score_heldout")
    answers = [{"id": f"add-{i}", "answer": str(i)} for i in range(4)]
    exported = [{"id": "add-0", "text": "0"}, {"id": "add-1", "text": "1 "}, {"id": "add-2"}]
    shares = scorer.score(exported, answers)
    assert shares == {"overall": 0.25, "tasks": {"add": 0.25}, "num_rows": 4, "num_missing": 1}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_of(row: dict[str, Any]) -> str:
    """Return a row's prompt, plain or of its only message."""
    prompt = row["messages"][0]["content"] if "messages" in row else row["prompt"]
    assert isinstance(prompt, str)
    return prompt
