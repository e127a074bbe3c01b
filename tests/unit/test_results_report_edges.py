"""What a report, a plot or a file of it must not do: mislead where little or odd things were measured, or
take the place of what it reads.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.errors import UsageError
from janus_hpc.results.commands import results as results_group
from janus_hpc.results.durable import write_file
from janus_hpc.results.join import join
from janus_hpc.results.report.page import report_page
from janus_hpc.results.report.svg import duration
from janus_hpc.results.stats import BatchStats, LayerStats, RunStats
from tests.unit.test_results_join import write_shard
from tests.unit.test_results_merge import make_results
from tests.unit.test_results_report import Page, batches, layers, timed_results, write


def test_exchange_below_zero(tmp_path: Path) -> None:
    """The scale reaches down to it, and the factor is of the other batches alone."""
    overlapping = [
        BatchStats(**vars(its) | {"comm_s": comm_s, "comm_predicted_s": 0.002})
        for its, comm_s in zip(batches(["ae"] * 3), (-0.008, -0.006, 0.004), strict=True)
    ]
    page = Page(report_page(write(tmp_path, timed_results(), RunStats(batches=overlapping))))
    assert "exchange, ms (\u00d7\u20092)" in page.text
    dots = [float(str(its["y"])) for _, its in page.elements if its.get("class") == "fill-x"]
    assert len(dots) >= 3 and all(30 - 3 <= its <= 196 - 3 for its in dots[-3:])


def test_rows_finished_at_once_took_no_time(tmp_path: Path) -> None:
    results = make_results(5)
    for row in results:
        row.finished_at_unix_s = 1e9
    page = Page(report_page(write(tmp_path, results)))
    assert f"5 rows in {duration(0)}, half of them by {duration(0)}." in page.text


def test_a_sentence_where_no_pass_was_counted(tmp_path: Path) -> None:
    nothing = vars(layers(2, 8)) | {
        "num_steps": 0,
        "a_max_mean": np.zeros(2),
        "a_max_max": np.zeros(2, np.int64),
    }
    stats = RunStats(layers=LayerStats(**nothing))
    page = Page(report_page(write(tmp_path, timed_results(), stats)))
    assert "The run counted no activated experts." in page.text


def test_roles_that_alternate_are_grouped(tmp_path: Path) -> None:
    stats = RunStats(batches=batches(["ae", "ea", "ae"] * 1000))
    text = report_page(write(tmp_path, make_results(2), stats))
    assert "Up to 4 batches are drawn as one, in the roles that most of them had." in text
    assert text.count("ranks 0 to 0 ") <= 750


def test_a_page_never_takes_the_place_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, timed_results())
    before = path.read_bytes()
    named_html = tmp_path / "b.html"
    named_html.write_bytes(before)
    for arguments in (
        ["report", str(path), "-o", str(path)],
        ["report", str(named_html)],
        ["export", str(path), "-o", str(path)],
        ["batches", str(path), "--plot", str(path)],
        ["compare", str(path), str(named_html), "--json", str(named_html)],
    ):
        ran = CliRunner().invoke(results_group, arguments)
        assert "is the file that is read; name another" in str(ran.exception), arguments
    assert path.read_bytes() == named_html.read_bytes() == before
    aside = tmp_path / "c.tmp"
    aside.write_bytes(before)
    ran = CliRunner().invoke(results_group, ["export", str(aside), "-o", str(tmp_path / "c")])
    assert "is written by way of c.tmp, the file that is read" in str(ran.exception)
    assert aside.read_bytes() == before


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, timed_results())
    with pytest.raises(UsageError, match=r"x\.html: cannot write: Not a directory"):
        write_file(path / "x.html", "-o", lambda out: out.write(b"x"))


def test_batches_as_json_and_as_a_plot(tmp_path: Path) -> None:
    its = write_shard(tmp_path, 1, 2, stats=RunStats(batches=batches(["aee"])))
    ran = CliRunner().invoke(results_group, ["batches", str(its), "--json"])
    (found,) = json.loads(ran.output, parse_constant=pytest.fail)
    assert found["move_predicted_s"] is None and found["decode_tpot_s"] == 0.02
    other = write_shard(tmp_path, 2, 2, stats=RunStats(batches=batches(["ae"])))
    join([its, other], tmp_path / "all.h5")
    plot = tmp_path / "roles.png"
    ran = CliRunner().invoke(
        results_group, ["batches", str(tmp_path / "all.h5"), "--plot", str(plot)]
    )
    assert "of 2 shards; janus-hpc results report" in str(ran.exception) and not plot.exists()
