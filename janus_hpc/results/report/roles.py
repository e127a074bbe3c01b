"""The ranks' roles over time, and the share of time in each."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, pairwise

from janus_hpc.results.report.axes import (
    LEFT,
    WIDE_WIDTH,
    Plot,
    draw_axes,
    figure,
    legend,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.facts import Batches
from janus_hpc.results.report.svg import element, escape, label, line, percent, rect, time_unit
from janus_hpc.results.timeline import ROLES

_MAX_SHARDS = 6
# Batches that are drawn one by one, and columns of a panel at most: more are narrower than a pixel.
_MAX_SINGLE = 200
_MAX_COLUMNS = 750
_CSS = {"a": "fill-a", "e": "fill-b", "c": "fill-c", "p": "fill-p"}


def roles_figure(batches: Batches) -> str:
    """A panel a shard: a bar a rank, coloured by role, the split above where it changes."""
    title = "Roles of the ranks over time"
    if not any(batches.roles):
        return sentence(title, "The file does not say which rank had which role.", wide=True)
    shards = batches.shards
    parts: list[str] = []
    top = 26.0
    for shard in shards[:_MAX_SHARDS]:
        name = f"shard {shard}" if len(shards) > 1 else ""
        panel, top = _panel(batches, shard, name, top)
        parts.append(panel)
    used = [letter for letter in ROLES if any(letter in its for its in set(batches.roles))]
    names = [(_CSS[letter], ROLES[letter][0]) for letter in used]
    parts.append(legend(LEFT, top, names))
    note = "Gaps are borders between batches, where experts and roles may move."
    size = max(_group_size(batches, batches.of_shard(it).tolist()) for it in shards[:_MAX_SHARDS])
    if size > 1:
        note += f" Up to {size} batches are drawn as one, in the roles that most of them had."
    if len(shards) > _MAX_SHARDS:
        note += f" The first {_MAX_SHARDS} of {len(shards)} shards are shown."
    return figure(title, "".join(parts), top + 10, wide=True, note=note)


def _panel(batches: Batches, shard: int, name: str, top: float) -> tuple[str, float]:
    """One shard's ranks below `top`, and where the next panel begins."""
    its = batches.of_shard(shard).tolist()
    num_ranks = max(len(batches.roles[at]) for at in its)
    began, seconds = batches.numbers["began_s"], batches.numbers["seconds"]
    end_s = max(float(began[at] + seconds[at]) for at in its)
    factor, unit = time_unit(max(end_s, 1e-9))
    height = max(40.0, min(260.0, 24.0 * num_ranks))
    plot = plot_area(
        (0, max(end_s, 1e-9) * factor),
        (num_ranks - 0.5, -0.5),
        right=WIDE_WIDTH - 10,
        top=top + 14,
        bottom=top + 14 + height,
    )
    axes = draw_axes(
        plot,
        f"time since the run began to answer, {unit}" + (f" ({name})" if name else ""),
        "world rank",
        x_ticks=ticks(0, plot.x.most, 8),
        y_ticks=whole_ticks(0, num_ranks - 1, 6),
    )
    blocks = []
    for first, last, roles in _runs(batches, its):
        left = plot.x(float(began[first]) * factor)
        right = plot.x(float(began[last] + seconds[last]) * factor)
        blocks += _column(plot, roles, left, max(right - left, 0.5), f"batches {first} to {last}")
    return axes + "".join(blocks) + _splits(plot, batches, its, factor), plot.bottom + 64


def _runs(batches: Batches, its: list[int]) -> Iterator[tuple[int, int, str]]:
    """Batches to draw as one: all by themselves, or of many, neighbours with the same roles; where these
    are too many as well, as many neighbours as needed.
    """
    if len(its) <= _MAX_SINGLE:
        yield from ((at, at, batches.roles[at]) for at in its)
        return
    size = _group_size(batches, its)
    groups = (its[start : start + size] for start in range(0, len(its), size))
    columns = ((group[0], group[-1], _usual_roles(batches, group)) for group in groups)
    for roles, column in groupby(columns, key=lambda found: found[2]):
        members = list(column)
        yield members[0][0], members[-1][1], roles


def _group_size(batches: Batches, its: list[int]) -> int:
    """How many batches make a column: 1 where neighbours with the same roles are few enough."""
    num_runs = 1 + sum(batches.roles[a] != batches.roles[b] for a, b in pairwise(its))
    return 1 if num_runs <= _MAX_COLUMNS else math.ceil(len(its) / _MAX_COLUMNS)


def _usual_roles(batches: Batches, its: list[int]) -> str:
    return Counter(batches.roles[at] for at in its).most_common(1)[0][0]


def _column(plot: Plot, roles: str, left: float, width: float, what: str) -> list[str]:
    """Neighbouring ranks of one role make one block."""
    blocks, rank = [], 0
    for letter, group in groupby(roles):
        count = len(list(group))
        top, bottom = plot.y(rank - 0.44), plot.y(rank + count - 1 + 0.44)
        role = ROLES[letter][0] if letter in ROLES else letter
        hint = f"{what}: ranks {rank} to {rank + count - 1} {role}"
        css = _CSS.get(letter, "fill-p")
        blocks.append(rect(left, top, width, bottom - top, hint, class_=f"{css} edged"))
        rank += count
    return blocks


def _splits(plot: Plot, batches: Batches, its: list[int], factor: float) -> str:
    parts: list[str] = []
    before, free_from = "", float("-inf")
    for at in its:
        split = batches.splits[at]
        left = plot.x(float(batches.numbers["began_s"][at]) * factor)
        if split != before and left >= free_from:
            parts.append(line(left, plot.bottom, left, plot.top - 10, class_="change"))
            parts.append(label(left + 3, plot.top - 4, split, class_="tick strong"))
            free_from = left + 12 + 8 * len(split)
        before = split
    return "".join(parts)


def role_strip(batches: Batches) -> str:
    """The share of the ranks' time in each role as one bar of HTML, empty where unknown."""
    shares = batches.role_shares
    if not shares:
        return ""
    parts, names = [], []
    for letter in sorted(shares, key=lambda its: list(ROLES).index(its) if its in ROLES else 9):
        name = ROLES[letter][0] if letter in ROLES else letter
        share = shares[letter]
        css = _CSS.get(letter, "fill-p")
        style = f"width:{share * 100:.2f}%"
        parts.append(element("span", "", class_=f"part {css}", style=style, title=name))
        swatch = element("i", "", class_=f"swatch {css}")
        told = f"{swatch}{escape(name)} {percent(share)}"
        names.append(element("span", told, class_="role", data_role=name, data_value=repr(share)))
    bar = element("div", "".join(parts), class_="strip")
    text = element("div", "Time of the ranks by role: " + " ".join(names), class_="strip-names")
    return element("section", text + bar, class_="roles")
