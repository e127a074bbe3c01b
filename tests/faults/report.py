"""What a campaign came to: a line a case, a table by kind, and JSON."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

HEAD = ("kind", "faults", "exit codes", "launches", "lost", "doubled", "differing", "findings")


@dataclass
class Outcome:
    """One case. `codes`: of its launches in order, the disturbed ones first. `num_shm_left`: segments that MPICH left
    in shared memory; `num_missed`: runs that were over before the fault came.
    """

    number: int
    kind: str
    detail: str
    codes: list[int]
    num_launches: int
    lost: int
    doubled: int
    differing: int
    num_shm_left: int
    num_missed: int
    seconds: float
    findings: list[str] = field(default_factory=list)
    folder: str = ""

    def line(self, seed: int, count: int) -> str:
        verdict = "ok" if not self.findings else "FAILED"
        text = f"{self.number:3d} {verdict} {self.kind}: {self.detail}"
        text += f"; exit {' '.join(map(str, self.codes))}; {self.seconds:.0f} s"
        for finding in self.findings:
            text += f"\n    {finding}"
        if self.findings:
            again = f"python -m tests.faults --seed {seed} --count {count} --only {self.number}"
            text += f"\n    again: {again}"
        return text


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a line a kind, and the sum."""
    kinds = sorted({its.kind for its in outcomes})
    lines = [_cells(HEAD), "|" + "---|" * len(HEAD)]
    lines += [_row(kind, [its for its in outcomes if its.kind == kind]) for kind in kinds]
    if len(kinds) > 1:
        lines.append(_row("all", outcomes))
    return "\n".join(lines)


def to_json(outcomes: list[Outcome], seed: int, skipped: list[str], bed_facts: object) -> str:
    values = {"seed": seed, "skipped": skipped, "bed": bed_facts}
    values["cases"] = [asdict(its) for its in outcomes]
    return json.dumps(values, indent=1) + "\n"


def _row(name: str, its: list[Outcome]) -> str:
    codes = Counter(code for one in its for code in one.codes)
    shown = ", ".join(f"{code} x{count}" for code, count in sorted(codes.items()))
    sums = [sum(getattr(one, key) for one in its) for key in ("lost", "doubled", "differing")]
    num_launches = sum(one.num_launches for one in its)
    num_findings = sum(bool(one.findings) for one in its)
    return _cells((name, len(its), shown, num_launches, *sums, num_findings))


def _cells(values: tuple[object, ...]) -> str:
    return "| " + " | ".join(map(str, values)) + " |"
