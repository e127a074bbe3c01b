"""When a fault comes, told by what the run has done, never by a clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.bed import COMPLETE, NUM_ROWS
from tests.faults.case import Case, Missed
from tests.faults.launch import Launch, Shape, random_shape, rows_done

# rank 0 says it once the plan is agreed on, before it reads weights.
_LOADING = "] model "
_BORDERS = ("re-split ", "experts move", "experts stay")


@dataclass(frozen=True)
class Moment:
    """`name` for the report; `has_come` looks at a launch. `borders`: the launch needs several batches."""

    name: str
    has_come: Callable[[Launch], bool]
    borders: bool = False


def after_rows(num_rows: int) -> Moment:
    """So many rows are journalled."""
    return Moment(f"after {num_rows} rows", lambda its: rows_done(its.run_dir) >= num_rows)


LOADING = Moment("while loading", lambda its: _LOADING in its.text())
# Its last row is journalled, and nothing is removed yet: between the last step and the rename.
MERGING = Moment("while merging", lambda its: rows_done(its.run_dir) >= NUM_ROWS)
BORDER = Moment("at a border", lambda its: any(text in its.text() for text in _BORDERS), True)


def random_moment(choice: random.Random) -> Moment:
    """Mostly after some rows; also while loading, at a border between batches, and while merging."""
    kind = choice.choices(["rows", "loading", "border", "merging"], [60, 12, 16, 12])[0]
    if kind == "rows":
        return after_rows(choice.randrange(1, NUM_ROWS - 2))
    return {"loading": LOADING, "border": BORDER, "merging": MERGING}[kind]


def launch_until(
    case: Case,
    moment: Moment,
    *,
    fewest: int = 1,
    options: tuple[str, ...] = (),
    shape: Shape | None = None,
    env: dict[str, str] | None = None,
) -> Launch:
    """Start a launch and wait for the moment; Missed where the launch ended before."""
    its = shape or random_shape(case.choice, fewest, moment.borders)
    launch = case.start(its, options, env)
    case.detail.append(f"{moment.name} of {its}")
    if not launch.wait_for(lambda: moment.has_come(launch)):
        case.end(launch, frozenset({COMPLETE}))
        raise Missed(moment.name)
    return launch


def victim(case: Case, launch: Launch) -> int:
    """A random rank's process id; Missed where there is none any more."""
    ranks = launch.ranks()
    if not ranks:
        case.end(launch)
        raise Missed("no ranks left")
    return case.choice.choice(ranks)
