"""Puts a results file's figures, plots and tables together into one page of HTML that needs nothing
else: no network, no script.
"""

import math
import time
from pathlib import Path

from janus_hpc.results.access import Columns, open_results
from janus_hpc.results.report.experts import ExpertFigures
from janus_hpc.results.report.facts import Facts
from janus_hpc.results.report.heat import heat_map
from janus_hpc.results.report.latency import lengths_figure, tpot_figure, ttft_figure
from janus_hpc.results.report.predicted import predicted_figure
from janus_hpc.results.report.progress import finish_figure, rows_figure
from janus_hpc.results.report.roles import role_strip, roles_figure
from janus_hpc.results.report.stages import stages_figure
from janus_hpc.results.report.streams import length_stream
from janus_hpc.results.report.style import STYLE
from janus_hpc.results.report.svg import count, duration, element, energy, escape, number, percent
from janus_hpc.results.report.tables import decisions_section, errors_section, provenance_section

_MAX_SPLITS = 4
_EMPTY_ICON = '<link rel="icon" href="data:,">'


def report_page(path: Path) -> str:
    """The report of the results file `path` as HTML. Streams the file: its memory does not grow
    with the rows. Raises UsageError for no results file, JournalError for a damaged one.
    """
    with open_results(path) as file:
        facts = Facts(Columns(file))
        body = element("main", _header(path, facts) + _plots(facts) + _tables(facts))
    title = escape(f"{path.name}: Janus-HPC report")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>{_EMPTY_ICON}<style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _header(path: Path, facts: Facts) -> str:
    attrs = facts.attrs
    created = attrs.get("created")
    when = ""
    if isinstance(created, int | float) and created > 0:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(created))
    told = [
        Path(str(attrs["model"])).name if attrs.get("model") else "",
        str(attrs.get("architecture") or ""),
        _splits(facts),
        f"device {attrs['device']}" if attrs.get("device") else "",
        when,
    ]
    about = element("p", escape(" \u00b7 ".join(filter(None, told))), class_="about")
    cards = element("div", "".join(_cards(facts)), class_="cards")
    return element("h1", escape(path.name)) + about + cards + role_strip(facts.batches)


def _splits(facts: Facts) -> str:
    """The splits of the run in their order, the first few of them."""
    found = list(dict.fromkeys(facts.batches.splits)) or [str(facts.attrs.get("split") or "")]
    told = ", ".join(found[:_MAX_SPLITS]) + (", \u2026" if len(found) > _MAX_SPLITS else "")
    return f"split{'s' if len(found) > 1 else ''} {told}" if told else ""


def _cards(facts: Facts) -> list[str]:
    batches, tpot, ttft = facts.batches, facts.tpot, facts.ttft
    failed = element(
        "span",
        escape(f"{facts.num_failed:,} failed"),
        class_="bad-text" if facts.num_failed else "ok-text",
        data_figure="failed",
        data_value=facts.num_failed,
    )
    prompts = escape(f"after {count(facts.num_prompt_tokens)} prompt tokens")
    spent = escape(f"answering took {duration(batches.answering_s)}")
    per = "Tokens/s a shard" if len(batches.shards) > 1 else "Tokens a second"
    mean_s, first_s = tpot.summary.mean, ttft.summary.mean
    tpot_more = escape(f"p99 {duration(tpot.p99_s)}") + _slo(facts)
    ttft_more = escape(f"p50 {duration(ttft.p50_s)}, p99 {duration(ttft.p99_s)}")
    hours, name = batches.rank_hours, "GPU-hours" if facts.on_gpu else "Rank-hours"
    rate = batches.tokens_per_s
    tokens = facts.num_tokens
    return [
        _card("rows", facts.num_rows, "Rows", count(facts.num_rows), failed),
        _card("tokens", tokens, "Tokens generated", count(tokens), prompts),
        _card("tokens-per-s", rate, per, number(rate), spent),
        _card("tpot", mean_s, "TPOT, mean", duration(mean_s), tpot_more),
        _card("ttft", first_s, "TTFT, mean", duration(first_s), ttft_more),
        _card("rank-hours", hours, name, number(hours), "all ranks, while answering"),
        *_energy_card(facts),
    ]


def _energy_card(facts: Facts) -> list[str]:
    """Nothing where the run could not read its energy."""
    per_token, joules = (facts.energy.get(name) for name in ("joules_per_token", "joules"))
    if not isinstance(per_token, int | float):
        return []
    sources = facts.energy.get("sources")
    names = ", ".join(map(str, sources)) if isinstance(sources, list) else str(sources)
    whole = f"{energy(joules)} in all, " if isinstance(joules, int | float) else ""
    more = escape(f"{whole}from {names}")
    return [_card("energy", per_token, "Energy a token", f"{number(per_token)} J", more)]


def _card(key: str, value: float, what: str, figure: str, more: str) -> str:
    """`key` and `value` are for who reads the page by program; `more` is markup."""
    shown = element(
        "div", escape(figure), class_="figure", data_figure=key, data_value=f"{value!r}"
    )
    return element(
        "div",
        element("div", escape(what), class_="what") + shown + element("div", more, class_="more"),
        class_="card",
    )


def _slo(facts: Facts) -> str:
    slo_s = facts.slo_tpot_s
    if not math.isfinite(slo_s) or not math.isfinite(facts.slo_measured_s):
        return ""
    kept = facts.slo_measured_s <= slo_s
    text = f"SLO {duration(slo_s)} ({facts.slo_percentile}) {'kept' if kept else 'missed'}"
    return "<br>" + element("span", escape(text), class_="ok-text" if kept else "bad-text")


def _plots(facts: Facts) -> str:
    experts = ExpertFigures(facts)
    columns = facts.columns
    answers = length_stream(columns, "samples/token_ids_offsets")
    prompts = length_stream(columns, "rows/prompt_token_ids_offsets")
    sections = (
        ("Rows", rows_figure(facts), finish_figure(facts)),
        ("Latency", tpot_figure(facts), ttft_figure(facts)),
        (
            "Lengths",
            lengths_figure("Lengths of the answers", "generated", answers, "samples"),
            lengths_figure("Lengths of the prompts", "prompt", prompts, "rows"),
        ),
        (
            "Time and roles",
            stages_figure(facts.batches),
            roles_figure(facts.batches),
            predicted_figure(facts.batches),
        ),
        ("Experts", heat_map(experts.layers), experts.load_order(), experts.a_max()),
    )
    return "".join(
        element("h2", escape(name)) + element("div", "".join(figures), class_="plots")
        for name, *figures in sections
    )


def _tables(facts: Facts) -> str:
    failed = (
        f"Failed rows ({percent(facts.num_failed / facts.num_rows)})"
        if facts.num_failed
        else "Failed rows"
    )
    return "".join(
        element("h2", escape(name)) + content
        for name, content in (
            (failed, errors_section(facts)),
            ("Decisions between batches", decisions_section(facts)),
            ("Where it comes from", provenance_section(facts)),
        )
    )
