"""The demo model's corpus: eight small checkable tasks, right answers, and a held-out part.

Pure and seeded: no torch, no files. A prompt belongs to the held-out part by its hash alone, so
that no training stream, whatever its seed, contains one.
"""

import hashlib
import random
import string
from collections.abc import Callable
from typing import NamedTuple

from demo_words import DAYS, IRREGULAR_NOUNS, MONTHS, REGULAR_NOUNS

HELD_OUT_ONE_IN = 16
HELD_OUT_SEED = 1
NUM_HELD_OUT_PER_TASK = 64
MAX_WORD_LETTERS = 6
MAX_OFFSET = {"Days": 14, "Months": 12}
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnprstvw"


class Example(NamedTuple):
    """One prompt and the only answer that counts as right."""

    task: str
    prompt: str
    answer: str


def syllables(rng: random.Random, num_letters: int) -> str:
    """Return a pronounceable word: consonants and vowels in turn, with an occasional double."""
    at_vowel = rng.random() < 0.3
    letters = []
    for _ in range(num_letters):
        letters.append(rng.choice(VOWELS if at_vowel else CONSONANTS))
        at_vowel = not at_vowel if rng.random() < 0.85 else at_vowel
    return "".join(letters)


def letters(rng: random.Random) -> str:
    """Return 2 to MAX_WORD_LETTERS letters: pronounceable, or any letters, or few distinct ones."""
    num_letters = rng.randint(2, MAX_WORD_LETTERS)
    kind = rng.random()
    if kind < 0.4:
        return syllables(rng, num_letters)
    alphabet = string.ascii_lowercase if kind < 0.75 else rng.sample(string.ascii_lowercase, 3)
    return "".join(rng.choice(alphabet) for _ in range(num_letters))


def plural_of(noun: str) -> str:
    """Return the English plural of a noun in the list, or by rule for any other word."""
    if noun in IRREGULAR_NOUNS:
        return IRREGULAR_NOUNS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def make_add(rng: random.Random) -> Example:
    """Return the sum of two numbers of one to three digits."""
    a, b = (rng.randrange(10**digits) for digits in rng.choices((1, 2, 3), weights=(1, 4, 5), k=2))
    return Example("add", f"{a}+{b}=", str(a + b))


def make_reverse(rng: random.Random) -> Example:
    """Return a word and the same word read from its end."""
    word = letters(rng)
    return Example("reverse", f"Reverse: {word} =", word[::-1])


def make_sort(rng: random.Random) -> Example:
    """Return a word and its letters in alphabetic order, repeated ones kept."""
    word = letters(rng)
    return Example("sort", f"Sort: {word} =", "".join(sorted(word)))


def make_upper(rng: random.Random) -> Example:
    """Return a word and the same word in capitals."""
    word = letters(rng)
    return Example("upper", f"Upper: {word} =", word.upper())


def make_count(rng: random.Random) -> Example:
    """Return how often a letter stands in a word; it may stand there not at all."""
    word = letters(rng)
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice(string.ascii_lowercase)
    return Example("count", f"Count {letter}: {word} =", str(word.count(letter)))


def make_plural(rng: random.Random) -> Example:
    """Return a noun's plural: a real noun, or an invented one that follows the rules."""
    kind = rng.random()
    if kind < 0.1:
        noun = rng.choice(sorted(IRREGULAR_NOUNS))
    elif kind < 0.4:
        noun = rng.choice(REGULAR_NOUNS)
    else:
        ending = rng.choice(("", "", "", "y", "ay", "ey", "s", "x", "ch", "sh", "e"))
        noun = syllables(rng, rng.randint(2, 4)) + ending
        while noun.endswith(("f", "fe", "o", "i", "u")) or noun in IRREGULAR_NOUNS:
            noun = syllables(rng, rng.randint(3, 5)) + "n"
    return Example("plural", f"Plural: {noun} =", plural_of(noun))


def shift_names(rng: random.Random, task: str, keyword: str, names: tuple[str, ...]) -> Example:
    """Return one to three names, and each of them moved by the offset that the prompt states."""
    chosen = [rng.randrange(len(names)) for _ in range(rng.randint(1, 3))]
    offset = rng.randint(1, MAX_OFFSET[keyword]) * rng.choice((-1, 1))
    instruction = f"{keyword} {offset:+d}"
    if rng.random() < 0.25:
        offset = rng.choice((-1, 1))
        instruction = "Next" if offset > 0 else "Previous"
    moved = [names[(i + offset) % len(names)] for i in chosen]
    return Example(
        task, f"{instruction}: {', '.join(names[i] for i in chosen)} =", ", ".join(moved)
    )


def make_days(rng: random.Random) -> Example:
    """Return weekdays some days later or earlier."""
    return shift_names(rng, "days", "Days", DAYS)


def make_months(rng: random.Random) -> Example:
    """Return months some months later or earlier."""
    return shift_names(rng, "months", "Months", MONTHS)


# Each task's maker and its share of the training stream.
TASKS: dict[str, tuple[Callable[[random.Random], Example], float]] = {
    "add": (make_add, 0.30),
    "reverse": (make_reverse, 0.11),
    "sort": (make_sort, 0.14),
    "upper": (make_upper, 0.06),
    "count": (make_count, 0.11),
    "plural": (make_plural, 0.10),
    "days": (make_days, 0.09),
    "months": (make_months, 0.09),
}


def is_held_out(example: Example) -> bool:
    """Return whether a prompt is kept from training; irregular plurals, having no rule, are not."""
    if example.prompt[len("Plural: ") : -len(" =")] in IRREGULAR_NOUNS:
        return False
    digest = hashlib.blake2b(example.prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % HELD_OUT_ONE_IN == 0


def training_example(rng: random.Random) -> Example:
    """Draw one example of any task that is not held out."""
    makers = [maker for maker, _ in TASKS.values()]
    maker = rng.choices(makers, weights=[share for _, share in TASKS.values()])[0]
    example = maker(rng)
    while is_held_out(example):
        example = maker(rng)
    return example


def held_out_examples() -> list[Example]:
    """Return NUM_HELD_OUT_PER_TASK different held-out examples of every task, tasks in order."""
    examples: list[Example] = []
    for task, (maker, _) in TASKS.items():
        rng = random.Random(f"held-out {HELD_OUT_SEED} {task}")
        found: dict[str, Example] = {}
        while len(found) < NUM_HELD_OUT_PER_TASK:
            example = maker(rng)
            if is_held_out(example):
                found.setdefault(example.prompt, example)
        examples.extend(found.values())
    return examples
