"""Whole jobs whose splits the SLO planner chooses: rows that change character midway, a profile from a file, and
profiles that cannot be used.
"""

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import pytest

from tests.jobs.killing import kill_when
from tests.jobs.launcher import export_text, run_janus, write_rows

BATCH_ROWS = 8
# A split to begin with that no planner would choose for these rows.
ASKED = ["--replan", "auto", "--batch-rows", str(BATCH_ROWS), "--split", "1a7e"]
ASKED += ["--profile", "free.json"]


def rows_that_change() -> list[dict[str, Any]]:
    """Short prompts with long answers, then long prompts with short answers."""
    generator = random.Random(3)
    shapes = [(6, 60)] * 16 + [(300, 3)] * 16
    return [
        {
            "prompt": [generator.randrange(10, 400) for _ in range(num_prompt)],
            "max_tokens": num_new,
            "ignore_eos": True,
            "temperature": [0, 1.0][index % 2],
        }
        for index, (num_prompt, num_new) in enumerate(shapes)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, one rank's answers, and a profile of two ranks."""
    folder = tmp_path_factory.mktemp("replan")
    write_rows(folder / "rows.jsonl", rows_that_change())
    run_janus(0, "infer", "rows.jsonl", "-o", "alone.h5", cwd=folder)
    (folder / "alone.jsonl").write_text(export_text(folder / "alone.h5", folder))
    run_janus(2, "profile", "--quick", "-o", "profile.json", cwd=folder)
    # Changes that cost nothing: so few rows would not pay for real ones.
    changed(folder, "free.json", loading__join_s=1e-6, loading__link_rate=1e15)
    return folder


def changed(folder: Path, name: str, **values: Any) -> str:
    """The profile with other values at dotted keys, under another name."""
    whole = json.loads((folder / "profile.json").read_text())
    for key, value in values.items():
        part, *rest = key.split("__")
        if rest:
            whole[part][rest[0]] = value
        else:
            whole[part] = value
    (folder / name).write_text(json.dumps(whole))
    return name


def texts(found: h5py.File, name: str) -> list[str]:
    values, offsets = (found[f"batches/{name}_{its}"][:] for its in ("values", "offsets"))
    return [values[start:stop].tobytes().decode() for start, stop in pairwise(offsets)]


def test_the_split_changes_for_a_reason_and_rows_do_not(folder: Path) -> None:
    run_janus(8, "infer", "rows.jsonl", *ASKED, "-o", "changing.h5", cwd=folder)
    assert export_text(folder / "changing.h5", folder) == (folder / "alone.jsonl").read_text()
    with h5py.File(folder / "changing.h5") as found:
        splits, decisions = texts(found, "split"), texts(found, "decision")
        assert len(splits) == 4 and splits[0] == "1a7e"
        for number in range(1, 4):
            moved = splits[number] != splits[number - 1]
            assert ("s for what is left" in decisions[number]) or "SLO" in decisions[number]
            if moved:
                assert found["batches/gain_predicted_s"][number] > 0
                assert found["batches/move_s"][number] > 0
        assert len(set(splits)) > 1, decisions
        for told, is_of in (("tpot_predicted_s", "decode_tpot_s"), ("moe_predicted_s", "moe_s")):
            assert (found[f"batches/{told}"][:] > 0).all() and (
                found[f"batches/{is_of}"][:] > 0
            ).all()
    table = run_janus(0, "results", "batches", "changing.h5", "--plot", "roles.png", cwd=folder)
    assert table.stdout.count("before batch") == 4
    assert (folder / "roles.png").read_bytes().startswith(b"\x89PNG")


def test_a_kill_while_ranks_change_roles_loses_nothing(folder: Path) -> None:
    asked = ["infer", "rows.jsonl", *ASKED, "-o", "killed.h5"]
    kill_when(8, asked, folder, " begins: ")
    assert not (folder / "killed.h5").exists()
    done = run_janus(3, "infer", "rows.jsonl", "-o", "killed.h5", cwd=folder)
    resumed = re.search(r"resuming: (\d+) of 32 rows", done.stderr)
    assert resumed is not None and int(resumed[1]) >= BATCH_ROWS
    assert export_text(folder / "killed.h5", folder) == (folder / "alone.jsonl").read_text()


def test_a_run_without_a_profile_measures_one(folder: Path) -> None:
    asked = ["--replan", "auto", "--batch-rows", "16", "-o", "measured.h5"]
    done = run_janus(2, "infer", "rows.jsonl", *asked, cwd=folder)
    assert "planned from the profile measured at the start of this run" in done.stderr
    assert export_text(folder / "measured.h5", folder) == (folder / "alone.jsonl").read_text()


def test_a_profile_plans_the_first_split_and_predicts_every_batch(folder: Path) -> None:
    asked = ["--profile", "profile.json", "--batch-rows", "16", "-o", "planned.h5"]
    done = run_janus(2, "infer", "rows.jsonl", *asked, cwd=folder)
    assert re.search(r"split \S+ \(planned from the profile profile.json, measured", done.stderr)
    assert export_text(folder / "planned.h5", folder) == (folder / "alone.jsonl").read_text()
    with h5py.File(folder / "planned.h5") as found:
        assert (found["batches/tpot_predicted_s"][:] > 0).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model__num_experts": 99}, "with num_experts 99, but"),
        ({"hardware__device": "cuda"}, "but this run is on cpu"),
        ({"hardware__cores_per_node": 777}, "nodes with 777 cores"),
        ({"loading__link_rate": -1.0}, "loading.link_rate is -1.0, expected 0 to 1e+18"),
        ({"exchange__fixed_s": 1e9}, "exchange.fixed_s is 1000000000.0"),
        ({"version": 99}, "version 99"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(
    folder: Path, values: dict[str, Any], expected: str
) -> None:
    name = changed(folder, "bad.json", **values)
    done = run_janus(
        2, "infer", "rows.jsonl", "--profile", name, "-o", "no.h5", cwd=folder, check=2
    )
    assert expected in done.stderr and name in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "no.h5.run").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h100", "weights in bfloat16 or float16"),
        ("nothing", "shipped are a100"),
        ("none.json", "none.json: cannot be read"),
    ],
)
def test_a_profile_by_name_must_be_of_this_hardware(folder: Path, name: str, expected: str) -> None:
    done = run_janus(
        2, "infer", "rows.jsonl", "--profile", name, "-o", "no.h5", cwd=folder, check=2
    )
    assert expected in done.stderr


def test_an_slo_that_no_split_meets_names_the_nearest(folder: Path) -> None:
    asked = ["--profile", "profile.json", "--slo-tpot-ms", "0.0001", "-o", "no.h5"]
    done = run_janus(2, "infer", "rows.jsonl", *asked, cwd=folder, check=2)
    assert re.search(r"no split of 2 ranks meets it; the nearest is \S+, with \S+ ms", done.stderr)
    assert not (folder / "no.h5.run").exists()
